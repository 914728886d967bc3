"""What LeRobot's files say of a robot is what LeRobot does with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lram_export import StepPolicy, export_bundle, load_policy
from lram_export.errors import CheckpointError, LramError, UsageError
from lram_export.export import ExportOptions
from lram_export.interface_file import read_interface_file
from lram_export.spec.interface import FieldInterface, Interface, normalized, scaled
from lram_export.spec.tensors import TensorSpec
from lram_export.trainers.lerobot import CLOSE, interface_of
from lram_export.trainers.lerobot.statistics import STATISTICS, plain
from tests.conftest import fail, succeed

SIZE, VECTORS = 6, 1000
STATE, ACTION = "observation.state", "action"
IMAGE = "observation.images.top"
JOINTS = [f"joint_{i}.pos" for i in range(SIZE)]
Stats = dict[str, dict[str, Any]]


def measured(far: float = 1.0) -> tuple[Stats, np.ndarray[Any, Any]]:
    """Statistics of a dataset as LeRobot computes them, and the data."""
    rng = np.random.default_rng(4)
    data = far * rng.normal(0, 1, SIZE) + rng.uniform(0.05, 2, SIZE) * rng.standard_normal((VECTORS, SIZE))
    of = {
        "mean": data.mean(0),
        "std": data.std(0),
        "min": data.min(0),
        "max": data.max(0),
        "count": np.array([VECTORS]),
    }
    of |= {f"q{q:02}": np.quantile(data, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    image = {"mean": np.full((3, 1, 1), 0.5), "std": np.ones((3, 1, 1))}
    return {STATE: of, ACTION: dict(of), IMAGE: image, "timestamp": {"mean": np.zeros(1)}}, data.astype(np.float32)


def processors(folder: Path, stats: Stats, mode: str, **config: Any) -> Path:
    """A policy with processors, as LeRobot 0.4 saves it."""
    features = {STATE: ("STATE", [SIZE]), IMAGE: ("VISUAL", [3, 4, 4]), ACTION: ("ACTION", [SIZE])}
    for name, kind, own in (
        ("policy_preprocessor", "normalizer_processor", features),
        ("policy_postprocessor", "unnormalizer_processor", {ACTION: features[ACTION]}),
    ):
        state = f"{name}_step_1_{kind}.safetensors"
        settings = {
            "eps": 1e-8,
            "features": {key: {"type": of, "shape": shape} for key, (of, shape) in own.items()},
            "norm_map": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
            **config,
        }
        steps = [
            {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
            {"registry_name": kind, "config": settings, "state_file": state},
        ]
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
        tensors = {f"{key}.{k}": np.asarray(v, np.float32) for key, of in stats.items() for k, v in of.items()}
        save_file(tensors, folder / state)
    return folder


def weights(folder: Path, stats: Stats, mode: str) -> Path:
    """An older policy, its statistics among its weights."""
    tensors = {"model.weight": np.zeros((3, 3), np.float32)}
    for prefix, feature in (
        ("normalize_inputs", STATE),
        ("unnormalize_outputs", ACTION),
        ("normalize_targets", ACTION),
    ):
        for name in STATISTICS[mode]:
            key = f"{prefix}.buffer_{feature.replace('.', '_')}.{name}"
            tensors[key] = np.asarray(stats[feature][name], np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def dataset(folder: Path, stats: Stats, names: Any = JOINTS) -> Path:
    """A dataset's metadata."""
    (folder / "meta").mkdir()
    plain_stats = {key: {k: np.asarray(v).tolist() for k, v in of.items()} for key, of in stats.items()}
    (folder / "meta" / "stats.json").write_text(json.dumps(plain_stats))
    features = {key: {"dtype": "float32", "shape": [SIZE], "names": names} for key in (STATE, ACTION)}
    (folder / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": "v3.0", "fps": 30, "features": features})
    )
    return folder


def lerobots(stats: Stats, mode: str, *, old: bool) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """LeRobot's formulas: of 0.4.4, and of 0.3.3 for weights."""
    one, other = (torch.tensor(np.asarray(stats[STATE][name]), dtype=torch.float32) for name in STATISTICS[mode])
    if mode == "MEAN_STD":
        return lambda x: (x - one) / (other + 1e-8), lambda x: x * other + one
    if old:
        return lambda x: (x - one) / (other - one + 1e-8) * 2 - 1, lambda x: (x + 1) / 2 * (other - one) + one
    width = torch.where(other == one, torch.tensor(1e-8), other - one)
    return lambda x: 2 * (x - one) / width - 1, lambda x: (x + 1) / 2 * width + one


def ours(said: Interface, x: Any, a: Any) -> tuple[Any, Any]:
    """What an interface does to observations and to actions."""
    normalization, scaling = said.observation["observation"].normalization, said.action["action"].scaling
    assert normalization is not None
    spec = TensorSpec("x", x.shape, "float32")
    return normalized(x, spec, normalization), scaled(a, spec, FieldInterface(scaling=scaling))


SOURCES = [
    *(("processors", mode) for mode in STATISTICS),
    *(("dataset", mode) for mode in STATISTICS),
    ("weights", "MEAN_STD"),
    ("weights", "MIN_MAX"),
]


def read(source: str, folder: Path, stats: Stats, mode: str) -> tuple[Interface, list[str]]:
    if source == "dataset":
        return interface_of(dataset(folder, stats), mode=mode)
    return interface_of({"processors": processors, "weights": weights}[source](folder, stats, mode))


@pytest.mark.parametrize(("source", "mode"), SOURCES)
@pytest.mark.parametrize("far", [1.0, 100.0])
def test_numbers_are_lerobots(source: str, mode: str, far: float, tmp_path: Path) -> None:
    stats, x = measured(far)
    forward, back = lerobots(stats, mode, old=source == "weights")
    a = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
    said, notes = read(source, tmp_path, stats, mode)
    observed, acted = ours(said, x, a)
    expected, robots = forward(torch.from_numpy(x)).numpy(), back(torch.from_numpy(a)).numpy()
    if mode == "MEAN_STD":
        assert np.array_equal(observed, expected) and np.array_equal(acted, robots)
    else:
        said_so = [float(note.split()[3]) for note in notes if "rounding" in note]
        assert np.abs(observed - expected).max() < 1.05 * next(iter(said_so), CLOSE if far > 1 else 0) + 1e-6
        ends = np.maximum(*(np.abs(stats[ACTION][name]) for name in STATISTICS[mode]))
        assert (np.abs(acted - robots) <= 3e-7 * ends).all()


@pytest.mark.parametrize(("source", "mode"), SOURCES)
def test_an_element_that_never_changed_is_what_lerobot_makes_of_it(source: str, mode: str, tmp_path: Path) -> None:
    stats, x = measured()
    for feature in (STATE, ACTION):
        for i, value in ((2, 0.7), (4, 0.0)):
            for name in stats[feature]:
                stats[feature][name][i if name != "count" else 0] = 0.0 if name == "std" else value
    x[:, 2], x[:, 4] = 0.7, 0.0
    forward, back = lerobots(stats, mode, old=source == "weights")
    said, notes = read(source, tmp_path, stats, mode)
    a = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
    observed, acted = ours(said, x, a)
    assert np.array_equal(observed[:, [2, 4]], forward(torch.from_numpy(x)).numpy()[:, [2, 4]])
    np.testing.assert_allclose(acted[:, [2, 4]], back(torch.from_numpy(a)).numpy()[:, [2, 4]], rtol=1e-7, atol=1e-14)
    for feature in (STATE, ACTION):
        assert any(note.startswith(f"{feature}: 2, 4: never changed in training") for note in notes)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_are_short_and_are_read_as_what_they_were(value: float) -> None:
    (found,) = plain(np.array([value], np.float32))
    assert np.float32(found) == np.float32(value)
    assert plain(np.array([0.1], np.float32)) == (0.1,)


class TestFromTheCommandLine:
    def test_a_policy_and_its_dataset_are_the_interface_of_an_export(self, tmp_path: Path) -> None:
        stats, x = measured()
        for name in ("policy", "data"):
            (tmp_path / name).mkdir()
        policy = processors(tmp_path / "policy", stats, "MEAN_STD")
        data = dataset(tmp_path / "data", stats, {"motors": JOINTS})  # as before version 3
        robot = tmp_path / "robot.yaml"
        succeed(
            *("interface", policy, "--dataset", data, "-o", robot, "--observation", "joints", "--action", "targets")
        )
        said = read_interface_file(robot)
        assert said == interface_of(policy, "joints", "targets", dataset=data)[0]
        assert said.rate == 30 and said.action["targets"].elements == tuple(JOINTS)

        torch.manual_seed(0)
        network = torch.nn.Linear(SIZE, SIZE)
        made = StepPolicy(network, observation={"joints": SIZE}, action={"targets": SIZE}, interface=said)
        export_bundle(made, None, tmp_path / "p.lram", ExportOptions(("onnxruntime",), report=False, reference_steps=4))
        forward, back = lerobots(stats, "MEAN_STD", old=False)
        with load_policy(tmp_path / "p.lram") as loaded, torch.no_grad():
            for row in x[:50]:
                expected = back(network(forward(torch.from_numpy(row)))).numpy()
                np.testing.assert_allclose(loaded.act(row), expected, atol=1e-5, rtol=1e-5)

    def test_a_dataset_is_shown_and_its_images_are_named(self, tmp_path: Path) -> None:
        stats, _ = measured()
        output = succeed("interface", dataset(tmp_path, stats), "--mode", "MIN_MAX").output
        assert "30 Hz" in " ".join(output.split()) and JOINTS[0] in output
        assert f"note: {IMAGE}: statistics are left out, an image is pixels" in output

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("DATASET",), "--mode: a dataset does not say how a policy normalizes; expected one of MEAN_STD, MIN_MAX"),
            (("POLICY", "--mode", "MIN_MAX"), "--mode: only for a dataset; .*, a policy, says itself"),
            (("POLICY", "--dataset", "POLICY"), "--dataset: .*: no meta/info.json in it"),
            (("POLICY", "--action", "a b"), "--action: expected a name of letters, digits and underscores, got 'a b'"),
            (("NEITHER", "--action", "a"), "--mode, --dataset, --observation, --action: only for what LeRobot writes"),
        ],
    )
    def test_options_that_do_not_fit_are_named(self, words: tuple[str, ...], told: str, tmp_path: Path) -> None:
        stats, _ = measured()
        places = {name: tmp_path / name for name in ("DATASET", "POLICY", "NEITHER")}
        for place in places.values():
            place.mkdir()
        dataset(places["DATASET"], stats)
        processors(places["POLICY"], stats, "MIN_MAX")
        output = tmp_path / "robot.yaml"
        code, line = fail("interface", *(places.get(word, word) for word in words), "-o", output)
        assert code == 2 and re.search(told, line), line
        assert not output.exists()


class TestWhatIsMissing:
    """One line, with the file and the field."""

    def edited(self, file: Path, edit: Callable[[Any], Any]) -> None:
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))

    @pytest.mark.parametrize(
        ("edit", "told"),
        [
            (lambda s: s.pop(STATE), "stats.json: observation.state: missing"),
            (lambda s: s[ACTION].pop("std"), "stats.json: action.std: missing"),
            (lambda s: s[ACTION]["std"].pop(), "stats.json: action: mean has 6 numbers, std 5"),
            (lambda s: s[ACTION]["std"].__setitem__(1, -2.0), "action.std: expected 0 or more, got -2 at element 1"),
            (lambda s: s[STATE]["mean"].__setitem__(1, "x"), "observation.state.mean.1: expected a number"),
            (lambda s: s[STATE].update(mean=[[0.0] * SIZE]), "observation.state.mean.0: expected a number"),
            (lambda s: s[STATE].update(mean=[], std=[]), "observation.state.mean: expected a vector of numbers"),
        ],
    )
    def test_in_a_dataset(self, edit: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
        folder = dataset(tmp_path, measured()[0])
        self.edited(folder / "meta" / "stats.json", edit)
        with pytest.raises(CheckpointError, match=told):
            interface_of(folder, mode="MEAN_STD")

    def test_in_a_range(self, tmp_path: Path) -> None:
        stats, _ = measured()
        stats[STATE]["max"][3] = stats[STATE]["min"][3] - 1
        with pytest.raises(
            CheckpointError, match=r"observation.state.max: expected at least min, .*, got .* element 3"
        ):
            interface_of(dataset(tmp_path, stats), mode="MIN_MAX")

    @pytest.mark.parametrize(
        ("edit", "told"),
        [
            (lambda c: c["norm_map"].update(STATE="CUBIC"), "norm_map.STATE: expected one of MEAN_STD, .* got 'CUBIC'"),
            (lambda c: c["features"][STATE].pop("type"), "features.observation.state.type: missing"),
            (lambda c: c.pop("norm_map"), r"policy_preprocessor.json: steps\[1\].config.norm_map: missing"),
            (lambda c: c.update(eps=-1), r"steps\[1\].config.eps: expected a number from 0"),
        ],
    )
    def test_in_a_processor(self, edit: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
        folder = processors(tmp_path, measured()[0], "MEAN_STD")
        self.edited(folder / "policy_preprocessor.json", lambda content: edit(content["steps"][1]["config"]))
        with pytest.raises(CheckpointError, match=told):
            interface_of(folder)

    @pytest.mark.parametrize(
        ("edit", "told"),
        [
            (lambda c: c["steps"].append(c["steps"][1]), "steps: expected one normalizer_processor, got 2"),
            (lambda c: c["steps"][1].update(state_file="../x"), r"steps\[1\].state_file: expected the name of a file"),
            (lambda c: c["steps"][1].update(state_file="x"), "policy_preprocessor.json: No such file"),
            (lambda c: c.pop("steps"), "policy_preprocessor.json: steps: missing"),
        ],
    )
    def test_in_a_pipeline(self, edit: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
        folder = processors(tmp_path, measured()[0], "MEAN_STD")
        self.edited(folder / "policy_preprocessor.json", edit)
        with pytest.raises(CheckpointError, match=told):
            interface_of(folder)

    def test_in_tensors(self, tmp_path: Path) -> None:
        stats, _ = measured()
        stats[STATE].pop("std")
        with pytest.raises(CheckpointError, match=r"preprocessor.json: observation.state.std: missing in policy_pre"):
            interface_of(processors(tmp_path, stats, "MEAN_STD"))
        (tmp_path / "policy_preprocessor_step_1_normalizer_processor.safetensors").write_bytes(b"junk")
        with pytest.raises(CheckpointError, match=r"policy_preprocessor.json: "):
            interface_of(tmp_path)
        (tmp_path / "policy_preprocessor.json").unlink()
        with pytest.raises(CheckpointError, match=r"policy_preprocessor.json: No such file"):
            interface_of(tmp_path)

    def test_a_deviation_of_nothing(self, tmp_path: Path) -> None:
        stats, _ = measured()
        stats[STATE]["std"][2] = 0
        with pytest.raises(CheckpointError, match=r"normalization.deviation: expected positive numbers, got 0"):
            interface_of(processors(tmp_path, stats, "MEAN_STD", eps=0))

    def test_statistics_that_were_never_set(self, tmp_path: Path) -> None:
        stats, _ = measured()
        stats[STATE]["mean"] = np.full(SIZE, np.inf)  # as LeRobot makes them before it loads others
        with pytest.raises(CheckpointError, match=r"buffer_observation_state.mean: expected finite numbers, got inf"):
            interface_of(weights(tmp_path, stats, "MEAN_STD"))

    def test_weights_of_something_else(self, tmp_path: Path) -> None:
        save_file({"x": np.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="no statistics of LeRobot in it, such as normalize_inputs"):
            interface_of(tmp_path)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"no policy_preprocessor.json, model.safetensors or meta/stats.json in it"
        ):
            interface_of(tmp_path, mode="MIN_MAX")

    @pytest.mark.parametrize(
        ("names", "told"), [(JOINTS[:5], "names: expected 6, as many as statistics, got 5"), ({"a": 3}, None)]
    )
    def test_names_that_do_not_fit(self, names: Any, told: str | None, tmp_path: Path) -> None:
        folder = dataset(tmp_path, measured()[0], names)
        if told is None:
            said, notes = interface_of(folder, mode="MIN_MAX")
            assert said.action["action"].elements is None and any("names are left out" in note for note in notes)
            return
        with pytest.raises(LramError, match=told):
            interface_of(folder, mode="MIN_MAX")


class TestWhatIsNotNormalized:
    def test_a_feature_without_a_mode_is_left_as_it_is(self, tmp_path: Path) -> None:
        said, _ = interface_of(processors(tmp_path, measured()[0], "IDENTITY"))
        assert said == Interface()

    def test_keys_that_are_chosen(self, tmp_path: Path) -> None:
        folder = processors(tmp_path, measured()[0], "MEAN_STD", normalize_observation_keys=[IMAGE])
        said, _ = interface_of(folder)
        assert said.observation == {} and said.action["action"].scaling is not None

    def test_other_features_and_steps_are_named(self, tmp_path: Path) -> None:
        stats, _ = measured()
        folder = processors(tmp_path, stats, "MEAN_STD", norm_map={"VISUAL": "MEAN_STD", "STATE": "MEAN_STD"})
        content = json.loads((folder / "policy_preprocessor.json").read_text())
        content["steps"].append({"registry_name": "delta_action", "config": {}})
        (folder / "policy_preprocessor.json").write_text(json.dumps(content))
        said, notes = interface_of(folder)
        assert said.action == {}
        assert f"{IMAGE}: statistics are left out, an image is pixels; the policy has to normalize it itself" in notes
        assert any(note.startswith("policy_preprocessor.json: 'delta_action' is no part of an") for note in notes)

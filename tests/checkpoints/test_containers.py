"""Containers of weights: whatever training left is read, nothing in it is run, and what is none is told what it is."""

from __future__ import annotations

import collections
import json
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lram_export.checkpoints.checkpoint import Checkpoint, Hints
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.hub import fetched, wanted
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.names import find_policy, without_wrappers
from lram_export.errors import CheckpointError, HubError, LramError, UsageError
from lram_export.hub.address import is_address
from tests.checkpoints.test_checkpoint import Malicious, Weights, assert_same, read_weights, write_zip
from tests.conftest import GOLDEN

SIZES = Hints(act_dim=8)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return read_weights(GOLDEN / "state_m" / "model.zip")


@pytest.fixture(scope="module")
def expected() -> Checkpoint:
    return load_checkpoint(GOLDEN / "state_m" / "model.zip")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, with its config."""
    shutil.copytree(GOLDEN / "state_m" / ".hydra", tmp_path / "run" / ".hydra")
    return tmp_path / "run"


def write_torch(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Settings:
    """What scripts keep beside weights: no tensor, no plain value."""

    def __init__(self) -> None:
        self.rate, self.where = 0.1, pathlib.Path("/data")


CONTENTS: dict[str, Callable[[Weights], object]] = {
    "a bare state dict": lambda w: w,
    "an ordered one": lambda w: collections.OrderedDict(w),
    "a checkpoint of Lightning": lambda w: {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"policy.{k}": v for k, v in w.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}],
    },
    "beside settings of foreign kinds": lambda w: {
        "model": w,
        "args": Settings(),
        "best": np.float64(1.0),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
    },
    "compiled inside, distributed outside": lambda w: {
        f"module.{k.replace('encoder.', 'encoder._orig_mod.', 1)}": v for k, v in w.items()
    },
    "an averaged model": lambda w: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in w.items()}},
    "deep": lambda w: {"a": [{"b": {"agent.model": 1, "policy": {f"agent.model.{k}": v for k, v in w.items()}}}]},
    "under a number": lambda w: {0: w},
    "beside a critic": lambda w: {**{f"actor.{k}": v for k, v in w.items()}, "critic.0.weight": torch.ones(3, 3)},
}


class TestFilesOfTorch:
    @pytest.mark.parametrize("case", CONTENTS)
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_the_policy_is_found_wherever_it_lies(
        self, case: str, zipped: bool, run: Path, weights: Weights, expected: Checkpoint
    ) -> None:
        if case == "beside settings of foreign kinds" and not zipped:
            pytest.skip("a container of before 2020 does not say what it needs")
        path = run / "last.ckpt"
        torch.save(CONTENTS[case](weights), path, _use_new_zipfile_serialization=zipped)
        assert_same(load_checkpoint(path), expected)

    def test_a_folder_of_checkpoints_in_that_of_the_run(
        self, run: Path, weights: Weights, expected: Checkpoint
    ) -> None:
        (run / "checkpoints").mkdir()
        assert_same(load_checkpoint(write_torch(run / "checkpoints" / "last.ckpt", weights)), expected)
        with pytest.raises(UsageError, match="--act-dim"):  # any other folder may be of another run
            (run / "elsewhere").mkdir()
            bare = {k: v for k, v in weights.items() if not k.startswith("embed_action_disc")}
            load_checkpoint(write_torch(run / "elsewhere" / "last.ckpt", bare))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_weights_of_any_precision_become_float32(self, dtype: torch.dtype, run: Path, weights: Weights) -> None:
        path = write_torch(run / "policy.pt", {k: v.to(dtype) for k, v in weights.items()})
        for name, weight in load_checkpoint(path).weights.items():
            assert weight.dtype == torch.float32, name
            assert torch.equal(weight, weight.to(dtype).float()), name

    def test_beyond_float32_is_no_weight(self, run: Path, weights: Weights) -> None:
        changed = {**weights, "embed_ln.bias": weights["embed_ln.bias"].double() * 0 + 1e300}
        with pytest.raises(
            CheckpointError, match=r"embed_ln\.bias: 64 of 64 weights are NaN, infinite or beyond float32"
        ):
            load_checkpoint(write_torch(run / "policy.pt", changed))

    def test_what_lies_beside_is_listed(self, run: Path, weights: Weights) -> None:
        found = load_checkpoint(write_torch(run / "a.pt", CONTENTS["beside a critic"](weights)))
        assert "critic.0.weight" in found.skipped

    def test_of_several_policies_one_is_named(self, run: Path, weights: Weights, expected: Checkpoint) -> None:
        ones = {k: torch.ones_like(v) for k, v in weights.items()}
        content = {"state_dict": {**weights, **{f"target.{k}": v for k, v in ones.items()}}, "ema": {"shadow": weights}}
        path = write_torch(run / "a.pt", content)
        with pytest.raises(
            UsageError, match=r"--weights-key: .* holds 3 policies, state_dict, state_dict\.target, ema"
        ):
            load_checkpoint(path)
        for key in ("state_dict", "ema", "ema.shadow", "shadow"):
            assert_same(load_checkpoint(path, weights_key=key), expected)
        target = load_checkpoint(path, weights_key="target")
        assert all(bool((w == 1).all()) for w in target.weights.values())
        for key in ("dict", "optimizer", "ema.state_dict"):
            with pytest.raises(UsageError, match=f"--weights-key {key}: .*expected one of them"):
                load_checkpoint(path, weights_key=key)

    @pytest.mark.parametrize(
        "other",
        [
            lambda w: {"models": [w, {"x": 1}]},
            lambda w: {0: w},
            lambda w: {"state_dict": {k: v.numpy() for k, v in w.items()}},
            lambda w: {"a": {"b": {"c": {"d": {"e": {"f": w}}}}}},
        ],
        ids=["in a list", "under a number", "arrays of numpy", "deep"],
    )
    def test_no_policy_is_taken_because_the_other_is_hard_to_see(
        self, other: Callable[[Weights], dict[Any, Any]], run: Path, weights: Weights
    ) -> None:
        ones = {k: torch.ones_like(v) for k, v in weights.items()}
        path = write_torch(run / "a.pt", {**other(weights), "target": ones})
        with pytest.raises(UsageError, match=r"holds 2 policies, .*target.*: say which one"):
            load_checkpoint(path)

    def test_which_of_several_it_is_is_part_of_its_digest(self, run: Path, weights: Weights) -> None:
        path = write_torch(run / "a.pt", {"state_dict": weights, "ema": weights | {}})
        digests = {load_checkpoint(path, weights_key=key).sha256 for key in ("state_dict", "ema")}
        assert len(digests) == 2

    def test_where_a_policy_was_found_is_said(self, run: Path, weights: Weights) -> None:
        path = write_torch(run / "a.pt", {"state_dict": {f"policy.{k}": v for k, v in weights.items()}})
        assert load_checkpoint(path).assumptions == ("the policy is what lies under 'state_dict.policy'",)
        assert load_checkpoint(path, weights_key="policy").assumptions == ()

    def test_one_in_the_open_is_named_by_a_dot(self, run: Path, weights: Weights, expected: Checkpoint) -> None:
        ones = {f"ema.{k}": torch.ones_like(v) for k, v in weights.items()}
        path = write_torch(run / "a.pt", {**weights, **ones})
        with pytest.raises(UsageError, match=r"holds 2 policies, \., ema: say which one"):
            load_checkpoint(path)
        assert_same(load_checkpoint(path, weights_key="."), expected)

    def test_without_a_config_the_message_says_what_the_file_is(self, tmp_path: Path, weights: Weights) -> None:
        bare = {k: v for k, v in weights.items() if not k.startswith("embed_action_disc")}
        path = write_torch(tmp_path / "policy.pt", bare)
        with pytest.raises(
            UsageError, match=rf"--act-dim: .*policy\.pt: a bare state dict of {len(bare)} tensors: .*or --config$"
        ):
            load_checkpoint(path)
        assert load_checkpoint(path, hints=SIZES).config.head.to_json()["act_dim"] == 8

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda w: w.update({"embed_ln.bias": w["embed_ln.bias"].numpy()}),
                "expected a tensor of torch, got numpy",
            ),
            (lambda w: w.update({"embed_ln.bias": torch.tensor(1.0)}), "expected a plain tensor with a dimension"),
            (
                lambda w: w.update({"action_net.0.weight": torch.tensor(1.0)}),
                "expected a plain tensor with a dimension",
            ),
            (lambda w: w.update({"embed_ln.bias": w["embed_ln.bias"].to_sparse()}), "expected a plain tensor with"),
            (lambda w: w.update({"embed_ln.bias": w["embed_ln.bias"].to("meta")}), "expected a plain tensor with"),
            (lambda w: w.update({"embed_ln.bias": w["embed_ln.bias"].int()}), "expected floating-point weights"),
            (lambda w: w.update({"odd\nname": w["embed_ln.bias"]}), r"'odd\\nname': a name that cannot be shown"),
        ],
    )
    def test_what_is_no_weight_is_refused(
        self, change: Callable[[dict[str, Any]], Any], message: str, run: Path, weights: Weights
    ) -> None:
        changed = dict(weights)
        change(changed)
        with pytest.raises(CheckpointError, match=message) as error:
            load_checkpoint(write_torch(run / "policy.pt", changed))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "beside",
        [
            {"state_mean": np.ones(3)},
            {"normalizer": {"obs_normalizer.mean": torch.ones(3)}},
            {"obs_rms": torch.ones(3)},
        ],
    )
    def test_observations_normalized_beside_the_policy(
        self, beside: dict[str, Any], run: Path, weights: Weights
    ) -> None:
        path = write_torch(run / "a.pt", {"state_dict": {f"policy.{k}": v for k, v in weights.items()}, **beside})
        with pytest.raises(CheckpointError, match="the training run normalized its observations by statistics beside"):
            load_checkpoint(path)
        path = write_torch(run / "a.pt", {"state_dict": weights, "state_mean": None, "args": {"normalize": True}})
        load_checkpoint(path)

    def test_statistics_beside_unpacked_weights(self, run: Path, weights: Weights) -> None:
        write_torch(run / "pytorch_variables.pth", {"state_mean": torch.ones(3)})
        with pytest.raises(CheckpointError, match=r"pytorch_variables\.pth: state_std: expected a vector of floats"):
            load_checkpoint(write_torch(run / "policy.pth", weights))

    def test_a_view_of_negated_numbers(self, run: Path, weights: Weights) -> None:
        negated = torch.view_as_complex(torch.stack([torch.zeros(64), weights["embed_ln.bias"]], dim=1)).conj().imag
        path = write_torch(run / "a.pt", {**weights, "embed_ln.bias": negated})
        assert torch.equal(load_checkpoint(path).weights["embed_ln.bias"], -weights["embed_ln.bias"])

    def test_the_digest_is_that_of_the_file(self, run: Path, weights: Weights) -> None:
        from lram_export.system.files import file_sha256

        path = write_torch(run / "policy.pt", weights)
        assert load_checkpoint(path).sha256 == file_sha256(path)


class TestSafetensors:
    def test_one_file(self, run: Path, weights: Weights, expected: Checkpoint) -> None:
        save_file({f"model.{k}": v.contiguous() for k, v in weights.items()}, run / "policy.safetensors")
        assert_same(load_checkpoint(run / "policy.safetensors"), expected)

    @pytest.fixture
    def shards(self, run: Path, weights: Weights) -> Path:
        names = list(weights)
        parts = [names[i::3] for i in range(3)]
        weight_map = {}
        for i, part in enumerate(parts):
            file = f"model-{i + 1:05}-of-00003.safetensors"
            save_file({name: weights[name].contiguous() for name in part}, run / file)
            weight_map.update(dict.fromkeys(part, file))
        index = run / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        return index

    def test_several_files_with_their_index(self, shards: Path, expected: Checkpoint) -> None:
        found = load_checkpoint(shards)
        assert_same(found, expected)
        assert found.sha256 == load_checkpoint(shards).sha256 != expected.sha256

    def test_a_folder_as_on_the_hub(self, shards: Path, expected: Checkpoint) -> None:
        (shards.parent / "config.json").write_text('{"architectures": ["Policy"], "model_type": "policy"}')
        assert_same(load_checkpoint(shards.parent), expected)

    def test_a_changed_shard_is_another_checkpoint(self, shards: Path, weights: Weights) -> None:
        before = load_checkpoint(shards).sha256
        name = next(iter(weights))
        file = shards.parent / "model-00001-of-00003.safetensors"
        save_file({**{n: weights[n] for n in list(weights)[0::3]}, name: weights[name] + 1}, file)
        assert load_checkpoint(shards).sha256 != before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(weight_map={}), "weight_map: expected names of files beside it"),
            (lambda d: d["weight_map"].update(x="../../etc/passwd"), "weight_map: expected names of files beside it"),
            (lambda d: d["weight_map"].update(x="model-9.safetensors"), r"model-9\.safetensors is not beside it"),
            (
                lambda d: d["weight_map"].update(x="model-00001-of-00003.safetensors"),
                r"weight_map: 'x': not in model-0",
            ),
            (lambda d: d["weight_map"].update(x=3), "weight_map: expected names of files beside it"),
            (lambda d: d.pop("weight_map"), "weight_map: missing"),
        ],
    )
    def test_an_index_that_does_not_fit(
        self, shards: Path, change: Callable[[dict[str, Any]], Any], message: str
    ) -> None:
        document = json.loads(shards.read_text())
        change(document)
        shards.write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(shards)

    def test_each_tensor_is_that_of_the_file_that_the_index_names(
        self, shards: Path, weights: Weights, expected: Checkpoint
    ) -> None:
        names, last = list(weights), shards.parent / "model-00003-of-00003.safetensors"
        own = {name: weights[name].contiguous() for name in names[2::3]}
        save_file({**own, names[0]: torch.zeros_like(weights[names[0]])}, last)
        assert_same(load_checkpoint(shards), expected)

    def test_one_of_several_files_is_not_the_whole(self, shards: Path) -> None:
        with pytest.raises(CheckpointError, match=r"give their index, model\.safetensors\.index\.json$"):
            load_checkpoint(shards.parent / "model-00001-of-00003.safetensors")

    def test_two_that_could_be_meant(self, shards: Path, weights: Weights) -> None:
        save_file({k: v.contiguous() for k, v in weights.items()}, shards.parent / "model.safetensors")
        with pytest.raises(UsageError, match=r"it holds model\.safetensors and model\.safetensors\.index\.json: give"):
            load_checkpoint(shards.parent)

    def test_several_files_of_torch(self, run: Path, weights: Weights, expected: Checkpoint) -> None:
        names = list(weights)
        weight_map = {}
        for i in range(2):
            file = f"pytorch_model-{i + 1:05}-of-00002.bin"
            write_torch(run / file, {name: weights[name] for name in names[i::2]})
            weight_map.update(dict.fromkeys(names[i::2], file))
        (run / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert_same(load_checkpoint(run), expected)

    def test_that_of_our_own_format_stands_for_its_folder(self, expected: Checkpoint, tmp_path: Path) -> None:
        save_checkpoint(expected, tmp_path / "own")
        assert_same(load_checkpoint(tmp_path / "own" / "model.safetensors"), expected)


class Beside:
    """A pickle that would run code of a module that is harmless to name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('pathlib').Path('ran').touch()",)


class TestNothingIsRun:
    def test_objects_beside_the_weights_do_nothing(
        self, run: Path, weights: Weights, expected: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(run)
        path = write_torch(run / "a.pt", {"model": weights, "hooks": Beside()})
        assert_same(load_checkpoint(path), expected)
        assert not Path("ran").exists()
        torch.load(path, weights_only=False)  # guards the guard
        assert Path("ran").exists()

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_what_asks_for_the_system_is_refused(self, run: Path, weights: Weights, zipped: bool) -> None:
        path = run / "a.pt"
        content = {"model": weights, "hooks": Malicious(str(run / "ran"))}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"holds more than weights .*refused, nothing of it ran\. Where it"):
            load_checkpoint(path)
        assert not (run / "ran").exists()


def endless() -> dict[str, Any]:
    content: dict[str, Any] = {"embed_ln.weight": torch.ones(9)}
    for _ in range(40):
        content = {"inner": content}
    return content


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))  # type: ignore[no-untyped-call]


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bare state dict of something else": (
        "resnet.pt",
        lambda p: torch.save(torch.nn.Linear(2, 3).state_dict(), p),
        r"a bare state dict of 2 tensors: .*none is called embed_ln\.weight: these are not the weights of a policy",
    ),
    "a whole module": (
        "policy.pth",
        lambda p: torch.save(torch.nn.Linear(2, 3), p),
        r"a whole object of torch\.save, a 'torch\.nn\.modules\.linear\.Linear', not its weights: .*state_dict\(\)",
    ),
    "a program of TorchScript": ("policy.pt", script, "a program of TorchScript: its weights alone are read"),
    "a checkpoint without weights": (
        "run.ckpt",
        lambda p: torch.save({"epoch": 3, "global_step": 7}, p),
        r"a checkpoint of torch\.save with 'epoch', 'global_step': it holds no named weights",
    ),
    "one tensor": ("x.pt", lambda p: torch.save(torch.ones(3), p), r"torch\.save with a Tensor: it holds no named"),
    "a pointer of Git LFS": (
        "model.zip",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "a pointer of Git LFS, not the file itself: git lfs pull",
    ),
    "an empty file": ("model.zip", lambda p: p.touch(), "an empty file"),
    "a web page": (
        "model.zip",
        lambda p: p.write_text("<!DOCTYPE html><html>Not found</html>"),
        "a web page: the down",
    ),
    "Keras": (
        "policy.h5",
        lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
        "an HDF5 file, as Keras writes it",
    ),
    "arrays of numpy": (
        "policy.npz",
        lambda p: np.savez(p, w=np.ones(3)),
        r"arrays of numpy \(\.npz\): weights of tor",
    ),
    "an ONNX graph": (
        "policy.onnx",
        lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch"),
        "an ONNX graph: a checkpoint of",
    ),
    "a compressed file": (
        "model.tar.gz",
        lambda p: p.write_bytes(b"\x1f\x8b\x08\x00"),
        "compressed by gzip: unpack it",
    ),
    "a text": ("model.zip", lambda p: p.write_text("hello"), "not a complete zip file"),
    "a text under another name": (
        "policy.pt",
        lambda p: p.write_text("hello"),
        "not a file of weights: expected a model",
    ),
    "a zip of something else": (
        "model.zip",
        lambda p: write_zip(p, {}, entry="other"),
        r"the zip holds no policy\.pth",
    ),
    "a damaged file": (
        "policy.pt",
        lambda p: (torch.save({"embed_ln.weight": torch.ones(9999)}, p), p.write_bytes(p.read_bytes()[:-700])),
        r"policy\.pt: not a complete zip file",
    ),
    "a list of something that grows": (
        "policy.pt",
        lambda p: torch.save({"embed_ln.weight": torch.ones(9), "last": collections.deque([1])}, p),
        r"holds more than weights \(.*collections\.deque.*\); refused, nothing of it ran",
    ),
    "nested without end": ("policy.pt", lambda p: torch.save(endless(), p), "nested more than 32 levels deep"),
    "damaged safetensors": (
        "policy.safetensors",
        lambda p: (save_file({"a": torch.ones(9)}, p), p.write_bytes(p.read_bytes()[:-4])),
        "not a readable safetensors file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_container_is_told_what_it_is(case: str, tmp_path: Path) -> None:
    name, write, message = WRONG[case]
    path = tmp_path / name
    write(path)
    with pytest.raises(LramError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


class TestNames:
    @given(st.lists(st.sampled_from(["module", "_orig_mod", "encoder", "weight", "0", "modules"]), max_size=6))
    def test_wrappers_go_wherever_they_are(self, parts: list[str]) -> None:
        found = without_wrappers(".".join(parts)).split(".")
        assert [p for p in found if p] == [p for p in parts if p not in ("module", "_orig_mod")]

    @given(
        prefixes=st.lists(
            st.lists(st.sampled_from(["a", "b", "module", "policy"]), max_size=3).map(".".join), min_size=1, max_size=4
        ),
        keys=st.lists(st.sampled_from(["state_dict", "ema", "model"]), max_size=2),
    )
    @settings(deadline=None)
    def test_every_policy_of_a_file_is_found_whole_and_by_its_label(self, prefixes: list[str], keys: list[str]) -> None:
        bare = {without_wrappers(prefix): prefix for prefix in prefixes}
        tensors = {}
        for i, prefix in enumerate(bare.values()):
            for name in ("embed_ln.weight", "encoder.0.weight"):
                tensors[f"{prefix}.{name}".removeprefix(".")] = torch.full((2,), float(i))
        content: Any = tensors
        for key in reversed(keys):
            content = {key: content}
        for i, prefix in enumerate(bare):
            label = ".".join([*keys, *filter(None, prefix.split("."))]) or "."
            found = find_policy(content, "file", None if len(bare) == 1 else label)
            assert set(found.weights) == {"embed_ln.weight", "encoder.0.weight"}
            assert all(bool((w == i).all()) for w in found.weights.values())
            assert (found.label or ".") == label
            assert len(found.beside) == 2 * (len(bare) - 1)
            assert len(found.among) == len(bare)

    def test_no_weight_of_ours_has_a_wrapper_in_its_name(self) -> None:
        from lram_export.backbones.registry import BACKBONES
        from lram_export.checkpoints.random import preset_config

        for kind in BACKBONES:
            config = preset_config("16m", kind)
            assert all(without_wrappers(name) == name for name in config.shapes())


class TestHub:
    @pytest.mark.parametrize(
        ("address", "known"),
        [
            ("hf://someone/policy", True),
            ("hf://someone/policy@v1.0", True),
            ("hf://someone/policy/runs/last.ckpt", True),
            ("hf://someone", False),
            ("someone/policy", False),
            ("hf/someone/policy", False),
        ],
    )
    def test_addresses(self, address: str, known: bool) -> None:
        assert is_address(Path(address)) is known

    @pytest.mark.parametrize("path", ["runs/last.ckpt", "../policy", "policy", "a/b/c", "there/policy"])
    def test_a_path_that_was_mistyped_is_no_name_there(
        self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "there").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=r"no such checkpoint; expected .*config\.json$"):
            load_checkpoint(Path(path))

    def test_a_name_without_the_scheme_is_told_how(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UsageError, match=r"no such checkpoint; .*\(of the Hugging Face Hub: hf://someone/policy\)$"
        ):
            load_checkpoint(Path("someone/policy"))

    def test_without_the_package_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lram_export.hub.client.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"^hf://someone/policy: needs .*pip install 'lram-export\[hub\]'$"):
            fetched(Path("hf://someone/policy"))

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The cache of one repository as the package leaves it, without a network."""
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = tmp_path / "cache" / "models--someone--policy"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        return snapshot

    def test_a_repository_with_standard_files(self, cache: Path, weights: Weights, expected: Checkpoint) -> None:
        (cache / "config.json").write_text('{"model_type": "policy"}')
        write_torch(cache / "pytorch_model.bin", weights)
        shutil.copytree(GOLDEN / "state_m" / ".hydra", cache / ".hydra")
        assert_same(load_checkpoint(Path("hf://someone/policy")), expected)

    def test_a_repository_without_them_asks_for_a_file(self, cache: Path, weights: Weights) -> None:
        write_torch(cache / "last.ckpt", weights)  # there may be others, which are not in the cache
        with pytest.raises(
            UsageError, match=r"none of model\.safetensors, .*: say which file, hf://someone/policy/FILE"
        ):
            load_checkpoint(Path("hf://someone/policy"))

    def test_only_what_belongs_to_a_checkpoint_is_fetched(self) -> None:
        assert wanted("runs/checkpoints/last.ckpt") == [
            "runs/.hydra/config.yaml",
            "runs/checkpoints/.hydra/config.yaml",
            "runs/checkpoints/last.ckpt",
        ]
        assert wanted("a/model.safetensors.index.json") == [
            ".hydra/config.yaml",
            "a/.hydra/config.yaml",
            "a/config.json",
            "a/model-?????-of-?????.safetensors",
            "a/model.safetensors.index.json",
        ]
        assert {"config.json", "model.safetensors", "pytorch_model-?????-of-?????.bin"} < set(wanted(None))

    def test_a_file_of_a_repository(self, cache: Path, weights: Weights, expected: Checkpoint) -> None:
        shutil.copytree(GOLDEN / "state_m" / ".hydra", cache / "runs" / ".hydra")
        write_torch(cache / "runs" / "last.ckpt", weights)
        assert_same(load_checkpoint(Path("hf://someone/policy@main/runs/last.ckpt")), expected)
        with pytest.raises(UsageError, match=r"^hf://someone/policy/first\.ckpt: the repository has no such file"):
            load_checkpoint(Path("hf://someone/policy/first.ckpt"))

    def test_our_own_format(self, cache: Path, expected: Checkpoint) -> None:
        save_checkpoint(expected, cache, force=True)
        assert_same(load_checkpoint(Path("hf://someone/policy")), expected)

    def test_what_was_never_fetched_is_one_line(self, cache: Path) -> None:
        with pytest.raises(HubError, match=r"^hf://nobody/nothing: not in the cache, and \S+ was not reached") as error:
            load_checkpoint(Path("hf://nobody/nothing"))
        assert "\n" not in str(error.value)


def test_an_encrypted_or_damaged_zip_is_one_line(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "model.zip", {"a": torch.ones(999)})
    content = bytearray(path.read_bytes())
    for start in (i for i in range(len(content)) if content[i : i + 4] in (b"PK\x01\x02", b"PK\x03\x04")):
        content[start + (8 if content[start + 2] == 1 else 6)] |= 1  # the flag of encryption
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a complete zip file \(RuntimeError: .*encrypted"):
        load_checkpoint(path)


def test_a_folder_without_weights_is_not_said_to_have_a_config(tmp_path: Path) -> None:
    (tmp_path / "policy.pt").touch()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_checkpoint(tmp_path, GOLDEN / "state_m" / ".hydra" / "config.yaml")


def test_a_config_goes_with_any_container(tmp_path: Path, weights: Weights, expected: Checkpoint) -> None:
    config = GOLDEN / "state_m" / ".hydra" / "config.yaml"
    assert_same(load_checkpoint(write_torch(tmp_path / "a.pt", weights), config), expected)
    with pytest.raises(UsageError, match=r"only for weights without a config; .*config\.yaml already says it"):
        load_checkpoint(tmp_path / "a.pt", config, SIZES)

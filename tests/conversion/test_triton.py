"""What is written for Triton fits together, and does what the policy does, alone and between other robots."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.conversion.servers.triton_python import open_model, request
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety
from tests.conftest import SLOW, ExportFunction, cli, fail, load_golden
from tests.conversion.closed import observed
from tests.conversion.pbtxt import read
from tests.conversion.sequences import TYPES, Server, assert_as_private_policies, session_of
from tests.step_module.modules import POLICIES

ONLY = ("onnxruntime",)
OLDER = Path(__file__).parents[1] / "bundles"
GOLDEN = ("state_ms", "dt_state", *(pytest.param(name, marks=SLOW) for name in ("mamba_state", "image_m", "dt_image")))
OWN = ("echoing", "seeing", "choosing", "counting", "plain")


def of(name: str, exported: ExportFunction) -> Path:
    """A bundle that other tests of a session have, too."""
    return exported(name, targets=ONLY) if name in ("state_m", "state_ms") else exported(name)


def convert(bundle: Path, folder: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """What the command says of it, and where it is."""
    path = folder / "reach"
    result = cli("convert", bundle, "--to", "triton", "-o", path, "--json", "--quiet", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), path


def config_of(path: Path) -> dict[str, Any]:
    return read((path / "config.pbtxt").read_text())


def own(name: str, folder: Path) -> Path:
    return export_bundle(POLICIES[name](), None, folder / "own.lram", ExportOptions(ONLY, report=False)).path


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module whose actions, a square and a number, are held to a safety."""
    torch.manual_seed(0)

    class Two(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            found = 2 * super().forward(x)
            return found[:, :4].reshape(-1, 2, 2), found[:, 4]

    field = FieldInterface(limits=Limits(-0.5, 0.5), safety=Safety(most_change=0.3, most_clamps=2, safe_action=0.125))
    interface = Interface(action={"square": field, "one": field})
    policy = StepPolicy(Two(6, 5), observation=6, action={"square": (2, 2), "one": ()}, interface=interface)
    path = tmp_path_factory.mktemp("careful") / "careful.lram"
    return export_bundle(policy, None, path, ExportOptions(ONLY, report=False)).path


@pytest.fixture(scope="module")
def served(exported: ExportFunction, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle on the native engine, and its folder for two robots at a time."""
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    bundle = exported("state_ms", targets=("onnxruntime", "native"), options=options)
    options = ("--backend", "python", "--target", "native", "--sequences", "2")
    said, path = convert(bundle, tmp_path_factory.mktemp("served"), *options)
    assert said["actions_different"] == 0 and said["states"] == []
    return bundle, path


class TestConfiguration:
    @pytest.mark.parametrize("name", ["state_ms", "dt_state", "seeing"])
    def test_it_names_every_input_and_output_of_the_graph_once(
        self, name: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        _, path = convert(own(name, tmp_path) if name in OWN else of(name, exported), tmp_path)
        config, session = config_of(path), session_of(path)
        (batching,) = config["sequence_batching"]
        states, (control,) = batching["state"], batching["control_input"]
        graph = {port.name: port for port in (*session.get_inputs(), *session.get_outputs())}
        named = [*(p["name"][0] for side in ("input", "output") for p in config[side]), *control["name"]]
        named += [entry[key][0] for entry in states for key in ("input_name", "output_name")]
        assert sorted(named) == sorted(graph)
        described = {p["name"][0]: p for side in ("input", "output") for p in config[side]}
        described |= {entry[key][0]: entry for entry in states for key in ("input_name", "output_name")}
        described[control["name"][0]] = {"dims": [1], "data_type": ["TYPE_FP32"]}
        kinds = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64"}
        for port_name, port in graph.items():
            assert port.shape == ["rows", *described[port_name]["dims"]], port_name
            assert [kinds[port.type]] == described[port_name]["data_type"]
        assert config["name"] == ["reach"] and config["backend"] == ["onnxruntime"]
        assert {*TYPES} >= {entry["data_type"][0] for entry in described.values()}

    def test_states_pair_up_when_both_their_names_are_sorted(self, exported: ExportFunction, tmp_path: Path) -> None:
        """By which Triton finds the input of an output."""
        states = config_of(convert(of("state_ms", exported), tmp_path)[1])["sequence_batching"][0]["state"]
        pairs = [(entry["input_name"][0], entry["output_name"][0]) for entry in states]
        assert sorted(pairs) == list(zip(*map(sorted, zip(*pairs, strict=True)), strict=True))

    def test_options_say_how_many_and_how_long(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of("state_m", exported)
        for options, batch, sequences, idle in (
            ((), 32, 64, 60_000_000),
            (("--max-batch", "8", "--sequences", "300", "--idle", "2.5"), 8, 300, 2_500_000),
        ):
            config = config_of(convert(bundle, tmp_path, *options, "--force")[1])
            (batching,) = config["sequence_batching"]
            assert config["max_batch_size"] == [batch]
            assert batching["oldest"] == [{"max_candidate_sequences": [sequences]}]
            assert batching["max_sequence_idle_microseconds"] == [idle]

    def test_a_policy_without_a_state_is_no_sequence(self, tmp_path: Path) -> None:
        said, path = convert(own("plain", tmp_path), tmp_path)
        config = config_of(path)
        assert "sequence_batching" not in config and config["dynamic_batching"] == [{}] and said["states"] == []
        assert [port.name for port in session_of(path).get_inputs()] == ["observation"]


class TestActions:
    @pytest.mark.parametrize("name", GOLDEN)
    def test_interleaved_robots_act_as_with_policies_of_their_own(
        self, name: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = of(name, exported)
        said, path = convert(bundle, tmp_path)
        assert said["actions_different"] == 0 and said["actions"] >= 128
        robots = [observed(bundle, seed, 12) for seed in range(3)]
        with ExitStack() as stack:
            policies = [stack.enter_context(load_policy(bundle, "onnxruntime", threads=1, batch=1)) for _ in robots]
            assert_as_private_policies(Server(path), policies, robots)

    def test_so_they_do_at_int8(self, exported: ExportFunction, tmp_path: Path) -> None:
        options = (*load_golden("state_ms").task_options, "--precision", "int8")
        said, _ = convert(exported("state_ms", targets=("onnxruntime", "native"), options=options), tmp_path)
        assert said["actions_different"] == 0

    @pytest.mark.parametrize("name", OWN)
    def test_and_modules_of_ones_own(self, name: str, tmp_path: Path) -> None:
        said, _ = convert(own(name, tmp_path), tmp_path)
        assert said["largest_error"] <= 1e-5

    def test_they_are_held_to_the_safety(self, careful: Path, tmp_path: Path) -> None:
        said, path = convert(careful, tmp_path)
        assert "state.safety.one.held" in said["states"] and said["largest_error"] <= 1e-5
        server, counts = Server(path), 0
        robots = [observed(careful, seed, 12) for seed in range(3)]
        with load_policy(careful, threads=1, batch=3) as policy:
            for step in range(12):
                given = [{"observation": robot[step]["observation"]} for robot in robots]
                found = server.infer(*[(i, row, step == 0) for i, row in enumerate(given)])
                expected = policy.step(np.concatenate([row["observation"] for row in given]))
                for i, row in enumerate(found):
                    for name, values in row.items():
                        np.testing.assert_allclose(values.ravel(), expected[name][i].ravel(), rtol=1e-6, atol=1e-6)
                        counts += values.size
            held = policy.counts()
        assert counts == 12 * 3 * 5 and held["square"].slowed.any() and held["one"].stopped.any()

    @pytest.mark.parametrize(("name", "feedback"), [("state_ms", "none"), ("dt_state", "observed")])
    def test_the_reward_is_an_input_where_that_is_asked_for(
        self, name: str, feedback: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = exported(name, feedback) if feedback == "observed" else of(name, exported)
        said, path = convert(bundle, tmp_path, "--reward-input")
        assert said["inputs"] == ["observation", "reward"] and said["actions_different"] == 0
        assert config_of(path)["input"][1]["dims"] == [1]

    @pytest.mark.parametrize("name", ["state_ms", "dt_state"])
    def test_five_rows_are_five_times_a_row(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of(name, exported)
        _, path = convert(bundle, tmp_path)
        robots = [observed(bundle, seed, 10) for seed in range(5)]
        together, alone = Server(path), Server(path)
        for step in range(10):
            rows = together.infer(*[(i, robot[step], step == 0) for i, robot in enumerate(robots)])
            for i, robot in enumerate(robots):
                (row,) = alone.infer((i, robot[step], step == 0))
                np.testing.assert_array_equal(rows[i]["action"], row["action"])
                for part, values in alone.kept[i].items():
                    np.testing.assert_allclose(together.kept[i][part], values, rtol=1e-4, atol=1e-4, err_msg=part)


class TestStart:
    @pytest.mark.parametrize("name", ["state_ms", "dt_state"])
    def test_the_control_alone_begins_an_episode(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        """Whatever is left in the state."""
        bundle = of(name, exported)
        _, path = convert(bundle, tmp_path)
        steps = observed(bundle, steps=6)
        played = []
        for server in (Server(path), dirty := Server(path, dirty=True)):
            if server is dirty:
                for i, step in enumerate(steps[::-1]):
                    server.infer((1, step, i == 0))
            played.append([server.infer((1, step, i == 0))[0]["action"] for i, step in enumerate(steps)])
        np.testing.assert_array_equal(*played)

    def test_so_does_a_state_of_zeros_alone(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of("state_ms", exported)
        _, path = convert(bundle, tmp_path)
        steps = observed(bundle, steps=6)
        told, silent = Server(path), Server(path)
        silent.kept[1] = {s["input_name"][0]: np.zeros((1, *s["dims"]), np.float32) for s in silent.states}
        for i, step in enumerate(steps):
            (one,), (other,) = told.infer((1, step, i == 0)), silent.infer((1, step, False))
            np.testing.assert_array_equal(one["action"], other["action"])

    def test_an_uninitialised_state_does_not_survive(self, exported: ExportFunction, tmp_path: Path) -> None:
        """Without an initial state in the configuration Triton's is whatever was in memory."""
        bundle = of("state_ms", exported)
        _, path = convert(bundle, tmp_path)
        zeros, nothing = Server(path), Server(path)
        nothing.states = [{k: v for k, v in state.items() if k != "initial_state"} for state in nothing.states]
        for i, step in enumerate(observed(bundle, steps=6)):
            (one,), (other,) = (server.infer((1, step, i == 0)) for server in (zeros, nothing))
            np.testing.assert_array_equal(one["action"], other["action"])
            assert all(np.isfinite(values).all() for values in nothing.kept[1].values())


class TestPython:
    def model(self, path: Path) -> Any:
        """As the server opens it: the configuration as JSON."""
        config = config_of(path)
        (batching,) = config["sequence_batching"]
        return open_model(
            path,
            {
                "input": [{"name": p["name"][0]} for p in config["input"]],
                "output": [{"name": p["name"][0]} for p in config["output"]],
                "sequence_batching": {"oldest": {k: v[0] for k, v in batching["oldest"][0].items()}},
                "parameters": [
                    {"key": p["key"][0], "value": {"string_value": p["value"][0]["string_value"][0]}}
                    for p in config["parameters"]
                ],
            },
        )

    def test_the_configuration_says_the_target_and_the_controls(self, served: tuple[Path, Path]) -> None:
        config = config_of(served[1])
        controls = config["sequence_batching"][0]["control_input"]
        assert [c["control"][0]["kind"][0].rpartition("_")[2] for c in controls] == ["START", "END", "CORRID"]
        assert config["backend"] == ["python"] and "state" not in config["sequence_batching"][0]
        assert config["parameters"] == [{"key": ["target"], "value": [{"string_value": ["native"]}]}]
        model = self.model(served[1])
        assert model.free[0].origin.target == "native" and model.free[0].origin.path.is_relative_to(served[1])
        model.finalize()

    def test_every_sequence_has_a_policy_of_its_own(self, served: tuple[Path, Path]) -> None:
        bundle, path = served
        model = self.model(path)
        robots = [observed(bundle, seed, 10) for seed in range(2)]
        with ExitStack() as stack:
            policies = [stack.enter_context(load_policy(bundle, "native", batch=1)) for _ in robots]
            for episode in range(2):  # numbers are used again, after an end and without one
                for step in range(10):
                    start, end = step == 0, step == 9 and episode == 0
                    asked = [request(i, robot[step], start, end and i == 0) for i, robot in enumerate(robots)]
                    for policy, robot, answer in zip(policies, robots, model.execute(asked), strict=True):
                        expected = policy.step(robot[step], first=start)["action"]
                        np.testing.assert_array_equal(answer.tensors[0].values, expected)
                        assert answer.tensors[0].name == "action"
        model.finalize()

    def test_policies_are_used_again_and_not_more_than_there_are_sequences(self, served: tuple[Path, Path]) -> None:
        bundle, path = served
        model, (step,) = self.model(path), observed(bundle, steps=1)
        fresh = model.execute([request(1, step, start=True, end=True)])[0].tensors[0].values
        assert len(model.free) == 1 and not model.running
        for sequence in (2, 3, 2, 4):  # 3 has been forgotten by the server, which says nothing of it
            (answer,) = model.execute([request(sequence, step, start=sequence != 2 or 2 not in model.running)])
            if sequence != 2 or len(model.running) == 1:
                np.testing.assert_array_equal(answer.tensors[0].values, fresh)
        assert [*model.running] == [2, 4] and not model.free
        model.finalize()

    def test_what_a_policy_refuses_is_an_answer_and_the_others_go_on(self, served: tuple[Path, Path]) -> None:
        bundle, path = served
        model, (step,) = self.model(path), observed(bundle, steps=1)
        wrong = {"observation": np.full_like(step["observation"], np.nan)}
        bad, good = model.execute([request(1, wrong, start=True), request(2, step, start=True)])
        assert "ValueError: observation" in bad.error and good.error is None
        (again,) = model.execute([request(1, step)])  # it is still at the start of its episode
        np.testing.assert_array_equal(again.tensors[0].values, good.tensors[0].values)
        model.finalize()

    @pytest.mark.parametrize("name", ["awkward", "seeing", "choosing", "counting"])
    def test_modules_of_ones_own(self, name: str, tmp_path: Path) -> None:
        said, _ = convert(own(name, tmp_path), tmp_path, "--backend", "python")
        assert said["actions_different"] == 0 and said["largest_error"] == 0

    def test_the_reward_is_an_input(self, exported: ExportFunction, tmp_path: Path) -> None:
        said, path = convert(exported("dt_state", "observed"), tmp_path, "--backend", "python", "--reward-input")
        assert said["inputs"] == ["observation", "reward"] and said["actions_different"] == 0
        assert "parameters" not in config_of(path)


class TestErrors:
    def refused(self, folder: Path, bundle: Path, *options: str) -> str:
        """The one line; nothing is left."""
        before = sorted(folder.iterdir())
        code, line = fail("convert", bundle, "--to", "triton", "-o", folder / "reach", *options)
        assert code == 2 and sorted(folder.iterdir()) == before
        return line

    def test_a_target_for_the_backend_that_has_none(self, exported: ExportFunction, tmp_path: Path) -> None:
        line = self.refused(tmp_path, of("state_m", exported), "--target", "native")
        assert "--target native: only with --backend python; the other runs the graph of target onnxruntime" in line

    def test_a_target_that_the_bundle_has_not(self, exported: ExportFunction, tmp_path: Path) -> None:
        line = self.refused(tmp_path, of("state_m", exported), "--backend", "python", "--target", "native")
        assert "no artifact for target 'native'; it has: onnxruntime" in line

    def test_a_bundle_without_the_graph(self, exported: ExportFunction, tmp_path: Path) -> None:
        line = self.refused(tmp_path, exported("state_m", targets=("native",)))
        assert "it has: native. Export again with --target onnxruntime" in line

    def test_a_graph_for_some_rows_alone(self, tmp_path: Path) -> None:
        for bundle, rows in ((OLDER / "schema-3.lram", "2 rows"), (own("awkward", tmp_path), "1 row")):
            line = self.refused(tmp_path, bundle)
            assert (
                f"its graph is for {rows} alone, and a server's batches have any number; say --backend python" in line
            )

    def test_more_than_one_file_can_hold(
        self, exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lram_export.conversion.closed.source.MOST_BYTES", 1000)
        assert "one ONNX file holds 1000" in self.refused(tmp_path, of("state_m", exported))

    def test_rewards_that_the_policy_needs(self, exported: ExportFunction, tmp_path: Path) -> None:
        for options in ((), ("--backend", "python")):
            line = self.refused(tmp_path, exported("dt_state", "observed"), *options)
            assert "add --reward-input" in line

    @pytest.mark.parametrize("name", ["a b", ".hidden", "ü", "x" * 130])
    def test_a_name_that_has_no_place_in_an_address(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        code, line = fail("convert", of("state_m", exported), "--to", "triton", "-o", tmp_path / name)
        assert code == 2 and "a server calls the model as its folder" in line and name in line
        assert not list(tmp_path.iterdir())

    def test_only_a_folder_of_ours_is_replaced(self, exported: ExportFunction, tmp_path: Path) -> None:
        (tmp_path / "reach").mkdir()
        (tmp_path / "reach" / "config.pbtxt").write_text("name: 'mine'")
        line = self.refused(tmp_path, of("state_m", exported), "--force")
        assert "it has no lram.json" in line

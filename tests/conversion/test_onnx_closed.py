"""A closed file does what the policy does, to whoever runs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lram_export import Bundle, ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.conversion.closed.tape import graphs
from lram_export.spec.interface import FieldInterface, Interface, Limits, Normalization, Safety, Scaling
from lram_export.spec.tasks import resolve_task
from tests.conftest import GOLDEN_NAMES, SLOW, ExportFunction, cli, fail, load_golden, succeed
from tests.conversion.closed import Stranger, assert_same_actions, observed
from tests.step_module.modules import POLICIES, Echoing

ONLY = ("onnxruntime",)
OLDER = Path(__file__).parents[1] / "bundles"


FED_BACK = ("state_ms", "mamba_state", "dt_state")


def of(name: str, exported: ExportFunction) -> Path:
    """A bundle that other tests of a session have, too."""
    return exported(name, targets=ONLY) if name in ("state_m", "state_ms") else exported(name)


def seldom(name: str, *names: str) -> object:
    """A parameter; what is exported for this alone is left to `make test-slow`."""
    return pytest.param(name, marks=SLOW if name in names else ())


def convert(bundle: Path, folder: Path, *options: str) -> Path:
    path = folder / "closed.onnx"
    succeed("convert", bundle, "--to", "onnx-closed", "-o", path, "--quiet", *options)
    return path


class TestActions:
    @pytest.mark.parametrize("name", [seldom(n, "mamba_state", "dt_image") for n in GOLDEN_NAMES])
    def test_not_one_differs_over_two_episodes(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of(name, exported)
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            assert_same_actions(policy, Stranger(convert(bundle, tmp_path)), observed(bundle))

    @pytest.mark.parametrize("name", [seldom(n, "state_m", "image_m", "mamba_image", "dt_image") for n in GOLDEN_NAMES])
    def test_nor_do_those_of_int8(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        options = (*load_golden(name).task_options, "--precision", "int8")
        bundle = exported(name, targets=("onnxruntime", "native") if name == "state_ms" else ONLY, options=options)
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            assert_same_actions(policy, Stranger(convert(bundle, tmp_path)), observed(bundle))

    @pytest.mark.parametrize("name", ["awkward", "echoing", "seeing", "choosing", "plain", "counting"])
    def test_nor_do_those_of_a_module_of_ones_own(self, name: str, tmp_path: Path) -> None:
        bundle = export_bundle(POLICIES[name](), None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        file = Stranger(convert(bundle, tmp_path))
        assert bool(file.feedback) == (name != "plain")
        with load_policy(bundle, threads=1) as policy:
            assert_same_actions(policy, file, observed(bundle))

    @pytest.mark.parametrize("precision", [pytest.param(p, marks=SLOW) for p in ("int4", "int8g", "fp16", "bf16")])
    def test_nor_do_those_of_other_precisions(self, precision: str, exported: ExportFunction, tmp_path: Path) -> None:
        options = (*load_golden("state_m").task_options, "--precision", precision)
        bundle = exported("state_m", targets=ONLY, options=options)
        with load_policy(bundle, threads=1) as policy:
            assert_same_actions(policy, Stranger(convert(bundle, tmp_path)), observed(bundle))

    @pytest.mark.parametrize(("name", "feedback"), [("state_ms", "none"), *((n, "observed") for n in FED_BACK)])
    def test_the_reward_is_an_input_where_that_is_asked_for(
        self, name: str, feedback: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = exported(name, feedback) if feedback == "observed" else of(name, exported)
        file, rng = Stranger(convert(bundle, tmp_path, "--reward-input")), np.random.default_rng(0)
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            for _ in range(2):
                policy.reset()
                file.start()
                reward = np.full(1, np.nan, np.float32)
                for step in observed(bundle):
                    found = file.step({**step, "reward": reward})["action"]
                    np.testing.assert_array_equal(found, policy.step(step, reward)["action"])
                    reward = rng.standard_normal(1, np.float32)


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows its robot, and is careful with it: bins."""
    names = ("x", "y", "z", "grip")
    of = FieldInterface(
        elements=names,
        scaling=Scaling((3.0, -2.0, 1.5, 2.0), 0.25),
        limits=Limits(-1.0, (0.75, 1.0, 1.0, 0.5)),
        safety=Safety(most_change=(0.4, 0.4, 0.7, 3.0), most_clamps=6, safe_action=(0.0, 0.1, 0.0, -0.25)),
    )
    observation = FieldInterface(
        elements=tuple(f"o{i}" for i in range(39)), normalization=Normalization(0.1, 2.0, clip=1.5)
    )
    options = ExportOptions(ONLY, report=False, interface=Interface(50.0, {"observation": observation}, {"action": of}))
    path = tmp_path_factory.mktemp("robot") / "robot.lram"
    checkpoint = load_checkpoint(load_golden("state_m").checkpoint)
    return export_bundle(checkpoint, resolve_task("metaworld/reach-v2"), path, options).path


class TestSafety:
    def test_it_holds_actions_in_the_file_as_the_policy_does(self, robot: Path, tmp_path: Path) -> None:
        file, steps = Stranger(convert(robot, tmp_path)), observed(robot)
        with load_policy(robot, threads=1) as policy:
            assert_same_actions(policy, file, steps)
            counts = policy.counts()["action"]
        assert counts.slowed.any() and counts.stopped.any() and counts.clamped.any()

    @pytest.mark.parametrize("part", ["most_change", "most_clamps"])
    def test_it_holds_computed_actions_of_any_shape(self, part: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        said = {"most_change": {"most_change": 0.5}, "most_clamps": {"most_clamps": 2, "safe_action": 0.125}}[part]
        interface = Interface(
            action={"action": FieldInterface(limits=Limits(-0.5, 0.5), safety=Safety(**said))}  # type: ignore[arg-type]
        )

        class Square(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 0.5 * super().forward(x).reshape(-1, 2, 2)

        policy = StepPolicy(Square(6, 4), observation=6, action=(2, 2), interface=interface)
        bundle = export_bundle(policy, None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        with load_policy(bundle, threads=1) as loaded:
            assert_same_actions(loaded, Stranger(convert(bundle, tmp_path)), observed(bundle))
            counts = loaded.counts()["action"]
        assert counts.slowed.any() if part == "most_change" else counts.stopped.any()

    def test_more_clamps_than_float32_counts_are_refused(self, tmp_path: Path) -> None:
        safety = Safety(most_clamps=1 << 25, safe_action=0.0)
        interface = Interface(action={"action": FieldInterface(limits=Limits(-1.0, 1.0), safety=safety)})
        policy = StepPolicy(torch.nn.Linear(3, 3), observation=3, action=3, interface=interface)
        bundle = export_bundle(policy, None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "closed.onnx")
        assert code == 2 and "action.action.safety.most_clamps: a graph of float32 counts to 16777216" in line


class TestStart:
    @pytest.mark.parametrize("rubbish", [np.nan, np.inf, -3.5, 1e30])
    @pytest.mark.parametrize("name", ["state_ms", "mamba_image", "dt_state", "robot"])
    def test_whatever_the_state_holds_an_episode_starts_the_same(
        self, name: str, rubbish: float, exported: ExportFunction, robot: Path, tmp_path: Path
    ) -> None:
        bundle = robot if name == "robot" else of(name, exported)
        file, played = Stranger(convert(bundle, tmp_path)), []
        for value in (0.0, rubbish):
            file.start(value)
            played.append([file.step(step)["action"] for step in observed(bundle, steps=6)])
        np.testing.assert_array_equal(*played)

    def test_the_next_running_state_is_computed_from_this_one(self, exported: ExportFunction, tmp_path: Path) -> None:
        """OpenVINO makes a variable that never changes of a constant."""
        graph = onnx.load(convert(exported("state_m", targets=ONLY), tmp_path)).graph
        made = {name: node for node in graph.node for name in node.output}
        pending, seen = ["next_state.running"], set()
        while pending:
            name = pending.pop()
            seen.add(name)
            pending += made[name].input if name in made else ()
        assert made["next_state.running"].op_type == "Max" and "state.running" in seen


class TestNames:
    def test_memory_is_what_exploy_looks_for(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_ms", targets=ONLY)
        file = Stranger(convert(bundle, tmp_path, "--names", "memory"), "memory")
        assert [*file.inputs][:3] == ["observation", "memory.running.in", "memory.0.conv.in"]
        assert file.outputs[:2] == ["action", "memory.running.out"]
        with load_policy(bundle, threads=1) as policy:
            assert_same_actions(policy, file, observed(bundle))

    @pytest.mark.parametrize("name", ["state_ms", "dt_state"])
    def test_packed_is_a_gru_of_rsl_rl(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of(name, exported)
        file = Stranger(convert(bundle, tmp_path, "--names", "packed"), "packed")
        assert [*file.inputs] == ["obs", "h_in"] and file.outputs == ["actions", "h_out"]
        assert file.inputs["h_in"].shape[:2] == [1, 1]
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            assert_same_actions(policy, file, observed(bundle), {"observation": "obs", "action": "actions"})

    def test_a_policy_without_a_state_is_observation_and_action_alone(self, tmp_path: Path) -> None:
        bundle = export_bundle(POLICIES["plain"](), None, tmp_path / "own.lram", ExportOptions(ONLY, report=False))
        file = Stranger(convert(bundle.path, tmp_path, "--names", "packed"), "packed")
        assert [*file.inputs] == ["obs"] and file.outputs == ["actions"]

    def test_packed_is_refused_where_there_is_more_than_a_vector(
        self, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = of("image_m", exported)
        code, line = fail("convert", bundle, "--to", "onnx-closed", "--names", "packed", "-o", tmp_path / "a.onnx")
        assert code == 2 and "--names packed: takes one observation, a vector of float32" in line
        assert "observation (uint8 of shape (3, 64, 64)); leave out --names, or say --names memory" in line
        assert not list(tmp_path.iterdir())


class TestFile:
    def test_it_is_one_file_that_older_runtimes_read(self, exported: ExportFunction, tmp_path: Path) -> None:
        model = onnx.load(convert(exported("state_ms", targets=ONLY), tmp_path), load_external_data=False)
        assert [path.name for path in tmp_path.iterdir()] == ["closed.onnx"]
        assert model.ir_version == 8 and not any(t.external_data for t in model.graph.initializer)
        norms = [n for part in graphs(model.graph) for n in part.node if n.op_type == "LayerNormalization"]
        assert norms and all(len(node.input) == 3 for node in norms)
        sizes = [d for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim]
        assert all(size.dim_value for size in sizes)

    @pytest.mark.parametrize("name", ["state_ms", "robot"])
    def test_nothing_in_it_is_left_unread(
        self, name: str, exported: ExportFunction, robot: Path, tmp_path: Path
    ) -> None:
        """ONNX Runtime 1.16 to 1.18 would compute wrong numbers, from the second step on and without a word."""
        graph = onnx.load(convert(robot if name == "robot" else of(name, exported), tmp_path)).graph
        read = {name for part in graphs(graph) for node in part.node for name in node.input}
        read |= {output.name for part in graphs(graph) for output in part.output}
        assert not {name for part in graphs(graph) for node in part.node for name in node.output} - read
        assert not {tensor.name for tensor in graph.initializer} - read

    def test_it_says_what_mjlab_and_exploy_read(self, robot: Path, tmp_path: Path) -> None:
        model = onnx.load(convert(robot, tmp_path, "--names", "packed"))
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["joint_names"] == "x,y,z,grip" and said["action_scale"] == "1.000,1.000,1.000,1.000"
        assert said["observation_names"].split(",") == [f"o{i}" for i in range(39)]
        assert json.loads(said["update_rate"]) == 50 and isinstance(json.loads(said["exploy_version"]), str)
        assert json.loads(said["lram.interface"])["rate"] == 50.0 and said["lram.names"] == "packed"

    def test_the_same_bundle_gives_the_same_bytes(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=ONLY)
        for name in "ab":
            (tmp_path / name).mkdir()
        one, other = (convert(bundle, tmp_path / name).read_bytes() for name in "ab")
        assert one == other

    def test_the_bundle_may_be_of_an_earlier_version(self, tmp_path: Path) -> None:
        """Its codes lie in another folder."""
        bundle = OLDER / "schema-6.lram"
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            assert_same_actions(policy, Stranger(convert(bundle, tmp_path)), observed(bundle))

    def test_the_bundle_may_be_of_links(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=ONLY)
        for path in bundle.rglob("*"):
            if path.is_file():
                link = tmp_path / "linked.lram" / path.relative_to(bundle)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        convert(tmp_path / "linked.lram", tmp_path)


class TestErrors:
    def test_a_bundle_without_the_graph_says_what_would_work(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=("native",))
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 2 and "it has: native. Export again with --target onnxruntime" in line
        assert not list(tmp_path.iterdir())

    def test_rewards_that_the_policy_needs_or_does_not_take(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_ms", "observed")
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 2 and "add --reward-input" in line and "--reward-feedback none" in line
        own = export_bundle(POLICIES["plain"](), None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        code, line = fail("convert", own, "--to", "onnx-closed", "--reward-input", "-o", tmp_path / "a.onnx")
        assert code == 2 and "this policy aims at no return" in line

    def test_more_than_one_file_can_hold(
        self, exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lram_export.conversion.closed.source.MOST_BYTES", 1000)
        code, line = fail(
            "convert", exported("state_m", targets=ONLY), "--to", "onnx-closed", "-o", tmp_path / "a.onnx"
        )
        assert code == 2 and "one ONNX file holds 1000; export with a smaller --precision" in line
        assert not list(tmp_path.iterdir())

    def test_a_state_of_the_policys_own_that_is_called_as_ours(self, tmp_path: Path) -> None:
        policy = StepPolicy(
            Echoing(),
            observation={"x": 4},
            action={"action": 5, "again": 5, "heard": 4, "held": 2},
            state={"running": 5, "kept": 2},
        )
        bundle = export_bundle(policy, None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 2 and "state.running: the policy has a state of that name" in line

    def test_a_graph_for_other_rows(self, tmp_path: Path) -> None:
        code, line = fail("convert", OLDER / "schema-3.lram", "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 2 and "its graph steps 2 rows at a time, not one; export again with --batch 1" in line

    def test_a_file_that_acts_otherwise_gets_no_name(
        self, exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = exported("state_m", targets=ONLY)
        real = Bundle.open(bundle)
        task = dataclasses.replace(real.manifest.task, target_return=real.manifest.task.target_return + 500)
        wrong = dataclasses.replace(real, manifest=dataclasses.replace(real.manifest, task=task))
        monkeypatch.setattr(
            "lram_export.conversion.convert.Bundle", type("Wrong", (), {"open": staticmethod(lambda path: wrong)})
        )
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 1 and "acts otherwise than the policy: episode 0, step" in line
        assert not list(tmp_path.iterdir())

    def test_a_damaged_bundle(self, exported: ExportFunction, tmp_path: Path) -> None:
        import shutil

        bundle = tmp_path / "damaged.lram"
        shutil.copytree(exported("state_m", targets=ONLY), bundle)
        weights = bundle / "onnxruntime" / "model.onnx.data"
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)
        code, line = fail("convert", bundle, "--to", "onnx-closed", "-o", tmp_path / "a.onnx")
        assert code == 1 and "model.onnx.data: content differs" in line
        assert not (tmp_path / "a.onnx").exists()

    def test_options_of_the_other_kind(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle, checkpoint = exported("state_m", targets=ONLY), load_golden("state_m").checkpoint
        for words, expected in (
            ((bundle, "--to", "onnx-closed", "--act-dim", "4"), "only for checkpoints; --to takes a bundle"),
            ((bundle, "--to", "leapp", "--names", "packed"), "--names: --to leapp has no such choice; leave it out"),
            ((checkpoint, "--names", "packed"), "--names: only with --to, which takes a bundle"),
            ((checkpoint, "--to", "onnx-closed"), "expected a bundle"),
            ((bundle,), "is a bundle, which becomes one of: onnx-closed, leapp, physicalai, lerobot, triton, ovms"),
        ):
            code, line = fail("convert", *words, "-o", tmp_path / "a.onnx")
            assert code in (1, 2) and expected in line, line
        assert not list(tmp_path.iterdir())

    def test_json_says_what_was_written(self, exported: ExportFunction, tmp_path: Path) -> None:
        result = cli(
            "convert", exported("state_m", targets=ONLY), "--to", "onnx-closed", "-o", tmp_path / "a.onnx", "--json"
        )
        said = json.loads(result.stdout)
        assert said["inputs"] == ["observation"] and said["outputs"] == ["action"] and said["actions_different"] == 0
        assert said["actions"] == 512 and said["bytes"] == (tmp_path / "a.onnx").stat().st_size
        assert said["states"][0] == "state.running"

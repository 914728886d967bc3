"""Recordings, quantization calibrated on them, and the mixture that `auto` chooses, on the trained policy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.episodes.batches import batch_episodes
from lram_export.episodes.intervals import Estimate
from lram_export.episodes.steps import joined, load_steps, save_steps
from lram_export.errors import LramError
from lram_export.export import ExportOptions, export_bundle
from lram_export.exporters.native import exporter as native
from lram_export.exporters.tvm.weights import pack_weights
from lram_export.lowering import LoweredPolicy, Quantization, lower, matrix_values, with_quantization
from lram_export.policy import load_policy
from lram_export.progress import SILENT
from lram_export.quantization import episode_runs as rollouts
from lram_export.quantization.activation_ranges import activation_range
from lram_export.quantization.auto import (
    LADDER,
    Candidate,
    Judgement,
    group_matrices,
    judge_held_out,
    ladder,
    sizes_by_format,
)
from lram_export.quantization.calibrated import quantize_blockwise
from lram_export.quantization.calibration import Calibration, InputStatistics, check_enough, load_calibration
from lram_export.quantization.episode_runs import outputs
from lram_export.quantization.gptq import fit_to_inputs, gptq
from lram_export.quantization.nearest import round_to_nearest
from lram_export.quantization.quantize import QuantizationOptions, cost_on_episodes, quantize
from lram_export.quantization.stagewise import run_stage, stages
from lram_export.rollouts.observations import Recording
from lram_export.rollouts.recording import record_observations
from lram_export.spec.cost import QuantizationCost
from lram_export.spec.precision import FORMATS
from lram_export.spec.tasks import resolve_task
from tests.conftest import GOLDEN, SLOW, fail, succeed
from tests.models import lram_steps

TRAINED = Path(__file__).parent.parent.parent / "examples" / "metaworld" / "checkpoints" / "xlstm" / "model.zip"
TASK = ("--task", "metaworld/reach-v2")
BEYOND_THE_FIRST_BLOCK = "blocks.[!0]*"
"""What stays in float32 where a few matrices are enough to choose between."""
ENVIRONMENTS = ("metaworld/drawer-close-v3", "metaworld/window-open-v3", "metaworld/button-press-topdown-v3")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained policy as an fp32 bundle."""
    path = tmp_path_factory.mktemp("trained") / "fp32.lram"
    succeed("export", TRAINED, "-o", path, *TASK, "-q", "--no-report")
    return path


@pytest.fixture(scope="module")
def recording(fp32: Path) -> Path:
    """Five episodes of three tasks."""
    path = fp32.parent / "steps.npz"
    chosen = [argument for name in ENVIRONMENTS for argument in ("--env", name)]
    succeed("record", fp32, *chosen, "--episodes", "5", "--threads", "1", "-o", path, "-q")
    return path


@pytest.fixture(scope="module")
def policy() -> LoweredPolicy:
    return lower(load_checkpoint(TRAINED), resolve_task("metaworld/reach-v2"), name="policy")


@pytest.fixture(scope="module")
def calibration(recording: Path, policy: LoweredPolicy) -> Calibration:
    return load_calibration([recording], policy.spec)


@pytest.fixture(scope="module")
def short(calibration: Calibration) -> Calibration:
    """The first 60 steps of every episode: enough to choose by."""
    cut = [episode.map(lambda values: values[:60]) for episode in calibration.episodes]
    return Calibration(tuple(cut), calibration.sha256)


@pytest.fixture(scope="module")
def short_recording(short: Calibration, fp32: Path) -> Path:
    """The same as a file."""
    steps = joined(short.episodes, np.concatenate).map(lambda values: values[:, None])
    path = fp32.parent / "short.npz"
    save_steps(steps, path)
    return path


class TestRecord:
    def test_episodes_hold_what_the_policy_was_given(self, recording: Path, fp32: Path) -> None:
        steps = load_steps(recording, Bundle.open(fp32).manifest.spec)
        assert steps["observation"].shape == (3000, 1, 39)
        starts = np.flatnonzero(steps["is_first"][:, 0])
        assert starts.tolist() == list(range(0, 3000, 200))
        # every task aims at its own return, and rewards lower it
        aims = steps["return_to_go"][starts, 0]
        assert len(set(aims.tolist())) == 3
        assert (steps["return_to_go"][starts + 199, 0] < aims).all()

    def test_observations_of_a_file_are_recorded_as_run_would_step_them(self, fp32: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        arrays = {
            "observations": rng.standard_normal((12, 39)).astype(np.float32),
            "rewards": rng.standard_normal(12).astype(np.float32),
            "is_first": np.arange(12) % 6 == 0,
        }
        np.savez(tmp_path / "observations.npz", **arrays)
        succeed("record", fp32, "--observations", tmp_path / "observations.npz", "-o", tmp_path / "steps.npz")
        steps = load_steps(tmp_path / "steps.npz", Bundle.open(fp32).manifest.spec)
        np.testing.assert_array_equal(steps["observation"][:, 0], arrays["observations"])
        with load_policy(fp32) as running:
            again = record_observations(
                running,
                Recording(
                    {"observation": arrays["observations"]},
                    arrays["rewards"].reshape(-1, 1),
                    arrays["is_first"].reshape(-1, 1),
                ),
            )
        np.testing.assert_array_equal(again["return_to_go"], steps["return_to_go"])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "--env, --observations: give one of them"),
            (["--env", "gym/x", "--observations", str(TRAINED)], "--env, --observations: give one of them"),
            (["--observations", str(TRAINED), "--seed", "3"], "only with --env"),
            (
                ["--observations", "nowhere.npz"],
                "Invalid value for '--observations': File 'nowhere.npz' does not exist",
            ),
            (["--env", "metaworld/fly-v3"], "unknown environment"),
        ],
    )
    def test_wrong_requests_are_refused(self, fp32: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
        code, line = fail("record", fp32, *arguments, "-o", tmp_path / "steps.npz")
        assert code in (1, 2) and words in line
        assert not (tmp_path / "steps.npz").exists()


def spoiled(recording: Path, folder: Path, **changes: Any) -> Path:
    with np.load(recording) as file:
        arrays = {name: file[name].copy() for name in file.files}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    path = folder / "spoiled.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


class TestBadRecordings:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"observation": lambda a: a[..., :7]}, "observation: expected float32 of shape (3000, 1, 39), got"),
            ({"observation": lambda a: np.where(a == a[5], np.nan, a)}, "observation: expected finite values, got nan"),
            ({"reward": lambda a: None}, "reward: missing; make the file with lram-export record"),
            ({"is_first": lambda a: a * 0}, "is_first: expected 0 or 1, and 1 at step 0"),
            ({name: lambda a: a[:40] for name in ("observation", "return_to_go", "reward", "is_first", "environment")},
             "--calibration: 40 steps to calibrate on, at least 128 are needed (head has 128 inputs"),
        ],
    )  # fmt: skip
    def test_they_are_named_and_nothing_is_written(
        self, recording: Path, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        wrong = spoiled(recording, tmp_path, **changes)
        output = tmp_path / "policy.lram"
        code, line = fail("export", TRAINED, "-o", output, *TASK, "--precision", "int4", "--calibration", wrong)
        assert code == 1 and words in line
        assert not output.exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--precision", "auto"], "--precision auto: needs --calibration"),
            (["--precision", "w8a8"], "--precision w8a8: needs --calibration"),
            (["--precision", "bf16", "--calibration", str(TRAINED)], "nothing to calibrate at bf16"),
            (["--precision", "int8", "--max-disagreement", "1%"], "--max-disagreement: only with --precision auto"),
            (["--precision", "auto", "--max-disagreement", "much"], "expected a share like 0.5% or 0.005, got 'much'"),
            (
                ["--precision", "w8a8", "--calibration", str(TRAINED), "--target", "openvino"],
                "'openvino' cannot run w8a8",
            ),
        ],
    )
    def test_options_that_do_not_go_together(self, tmp_path: Path, arguments: list[str], words: str) -> None:
        code, line = fail("export", TRAINED, "-o", tmp_path / "policy.lram", *TASK, *arguments)
        assert code == 2 and words in line


class TestStages:
    def test_stage_by_stage_gives_what_the_whole_graph_gives(
        self, policy: LoweredPolicy, calibration: Calibration
    ) -> None:
        batches = batch_episodes(calibration.at_most(200).episodes, 1)  # outputs come episode by episode
        names = policy.matrix_names()
        streams: list[Any] = [None] * len(batches)
        seen: dict[str, torch.Tensor] = {}
        for stage in stages(policy.graph, names):
            streams, inputs = run_stage(stage, policy.graph, batches, streams, stage.matrices)
            seen |= inputs
        assert tuple(seen) == names
        head = torch.from_numpy(matrix_values(policy, "head"))
        bias: Any = policy.graph.head.bias
        logits = (seen["head"] @ head.T + bias).numpy()
        whole = outputs(policy.graph, batches)["action_logits"].reshape(len(logits), -1)
        np.testing.assert_allclose(logits, whole, atol=1e-4)


class TestGptq:
    """The algorithm on inputs that are correlated, as those of a policy are."""

    @pytest.fixture
    def problem(self) -> tuple[np.ndarray, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 12, generator=generator) @ torch.randn(12, 96, generator=generator)
        x += 0.1 * torch.randn(2000, 96, generator=generator)
        return torch.randn(32, 96, generator=generator).numpy(), x

    @pytest.mark.parametrize("weight_format", ["int4", "int8", "int8g"])
    def test_outputs_are_nearer_than_with_the_nearest_codes(
        self, problem: tuple[np.ndarray, torch.Tensor], weight_format: str
    ) -> None:
        values, x = problem

        def error(matrix: Any) -> float:
            return float((x @ torch.from_numpy(matrix.dequantize() - values).T).norm())

        nearest = round_to_nearest("head", values, weight_format)
        calibrated = gptq("head", values, InputStatistics.of(x), weight_format)
        assert calibrated.codes.dtype == np.int8
        assert np.abs(calibrated.codes).max() <= FORMATS[weight_format].largest
        assert error(calibrated) < 0.5 * error(nearest)

    def test_fitting_makes_up_for_what_the_input_tells(self, problem: tuple[np.ndarray, torch.Tensor]) -> None:
        values, x0 = problem
        x = 0.8 * x0 + 0.01 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        fitted = torch.from_numpy(fit_to_inputs(values, InputStatistics.of(x, x0)))
        wanted = x0 @ torch.from_numpy(values).T
        assert (x @ fitted.T - wanted).norm() < 0.1 * (x @ torch.from_numpy(values).T - wanted).norm()

    def test_a_matrix_that_only_ever_sees_zeros_is_rounded_all_the_same(self) -> None:
        values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
        matrix = gptq("head", values, InputStatistics.of(torch.zeros(10, 64)), "int4")
        assert np.linalg.norm(matrix.dequantize() - values) < 0.2 * np.linalg.norm(values)

    def test_ranges_cover_what_was_seen_with_zero_exact(self) -> None:
        x = torch.linspace(-1.0, 3.0, 1001)
        found, error = activation_range(x)
        assert 0 <= found.zero_point <= 255 and found.scale == pytest.approx(4 / 255, rel=0.1)
        assert error < 0.01
        assert activation_range(torch.zeros(5))[1] == 0.0


@SLOW
class TestTrainedPolicy:
    def test_calibrated_int4_has_a_third_of_the_logit_error_of_rounding(
        self, policy: LoweredPolicy, calibration: Calibration, recording: Path
    ) -> None:
        fitted, _ = calibration.split()
        names = policy.matrix_names()
        nearest = {n: round_to_nearest(n, matrix_values(policy, n), "int4") for n in names}
        calibrated = quantize_blockwise(policy, dict.fromkeys(names, "int4"), fitted)

        def cost(matrices: Any) -> QuantizationCost:
            quantized = with_quantization(policy, Quantization("int4", "", matrices))
            return cost_on_episodes(policy, quantized, calibration)

        before, after = cost(nearest), cost(calibrated)
        assert 3 * after.relative_error <= before.relative_error
        assert 3 * after.mean_logit_error <= before.mean_logit_error

    @pytest.mark.slow
    def test_calibrated_int8_stays_within_a_bin(
        self, policy: LoweredPolicy, calibration: Calibration, recording: Path
    ) -> None:
        quantized = quantize(policy, QuantizationOptions("int8", calibration=[recording]), calibration)
        assert cost_on_episodes(policy, quantized, calibration).disagreement <= 0.01

    def test_the_bundle_says_how_it_was_calibrated_and_is_the_same_again(
        self, short_recording: Path, tmp_path: Path
    ) -> None:
        options = ("--precision", "int4", "--calibration", short_recording, "--keep-fp32", "head")
        manifests = []
        for name, threads in (("a.lram", 2), ("b.lram", 1)):
            torch.set_num_threads(threads)  # whatever was set before must not matter
            succeed(
                *("export", TRAINED, "-o", tmp_path / name, *TASK, *options),
                *("--target", "native", "--reference-steps", "10", "--no-report"),
            )
            manifests.append(Bundle.open(tmp_path / name).manifest)
        one, two = (m.quantization for m in manifests)
        assert one is not None and two is not None and one.cost is not None
        assert one.method == "gptq" and len(one.calibration) == 1
        assert "head" not in {m.name for m in one.matrices}
        assert one.cost["measured_on"] == "episodes" and one.cost["steps"] == 300
        assert one.file.sha256 == two.file.sha256
        assert "by gptq" in succeed("inspect", tmp_path / "a.lram").stdout


@pytest.mark.slow
class TestW8a8:
    def test_inputs_that_round_well_get_static_ranges(self, recording: Path, tmp_path: Path) -> None:
        path = tmp_path / "policy.lram"
        targets = ("--target", "onnxruntime", "--target", "native")
        succeed("export", TRAINED, "-o", path, *TASK, "--precision", "w8a8", "--calibration", recording, *targets)
        entry = Bundle.open(path).artifact("onnxruntime")
        assert entry.activations == "int8" and entry.parity is not None and entry.parity.passed
        assert entry.parity.relative_error > 1e-3  # rounding activations shows
        code, line = fail("verify", path, "--checkpoint", TRAINED)
        assert code == 2 and "static activation ranges" in line and "--recording" in line
        succeed("verify", path, "--checkpoint", TRAINED, "--recording", recording, "--steps", "60")


class TestAuto:
    @pytest.mark.slow
    def test_it_keeps_to_its_bound_with_the_smallest_candidate_it_tried(
        self, policy: LoweredPolicy, short: Calibration
    ) -> None:
        def auto(bound: float) -> tuple[LoweredPolicy, dict[str, Any]]:
            kept = ("head", "blocks.[!01]*")
            options = QuantizationOptions("auto", keep_fp32=kept, calibration=[Path("x")], max_disagreement=bound)
            quantized = quantize(policy, options, short)
            assert quantized.quantization is not None and quantized.quantization.choice is not None
            return quantized, dict(quantized.quantization.choice)

        _, strict = auto(0.02)
        mixtures = [t for t in strict["tried"] if len(set(t["formats"].values())) > 1]
        smallest = min(strict["tried"], key=lambda t: t["bytes"])
        # what a mixture of this recording reaches and the smallest candidate does not
        bound = max(t["disagreement_high"] for t in mixtures if t["disagreement_high"] < smallest["disagreement_high"])
        quantized, choice = auto(bound)
        assert quantized.precision == "mixed" and quantized.quantization is not None
        assert choice["max_disagreement"] == bound
        chosen = choice["chosen"]
        assert 0 < chosen["disagreement"] <= chosen["disagreement_high"] <= bound
        fits = [t for t in choice["tried"] if t["disagreement_high"] <= bound]
        judged = [*choice["failed"], chosen]
        assert judged[0]["formats"] == fits[0]["formats"]
        assert [t["bytes"] for t in judged] == sorted(t["bytes"] for t in judged)
        assert all(t["disagreement_high"] > bound for t in choice["failed"])
        smaller = [t for t in choice["tried"] if t["bytes"] < fits[0]["bytes"]]
        assert smaller and all(t["disagreement_high"] > bound for t in smaller)
        assert len(set(fits[0]["formats"].values())) > 1 and fits[0]["bytes"] < strict["chosen"]["bytes"]
        assert {m.name: m.format for m in quantized.quantization.matrices.values()} == {
            name: group["format"] for group in choice["groups"] for name in group["matrices"]
        }
        # judged by the very codes that come out, on episodes that nothing else has seen
        cost = cost_on_episodes(policy, quantized, short)
        assert (cost.disagreement, cost.steps) == (chosen["disagreement"], chosen["steps"]) == (cost.disagreement, 300)
        forgotten = dataclasses.replace(quantized.quantization, cost=None)
        assert cost_on_episodes(policy, dataclasses.replace(quantized, quantization=forgotten), short) == cost
        # the same again: what both searches tried
        both = [t for t in choice["tried"] if t["formats"] in [other["formats"] for other in strict["tried"]]]
        assert both and all(t in strict["tried"] for t in both)
        assert json.loads(json.dumps(choice)) == choice

    def test_no_episode_is_both_chosen_by_and_judged_by(self, short: Calibration) -> None:
        parts = short.thirds()
        assert [len(part.episodes) for part in parts] == [5, 5, 5]
        assert len({id(e) for part in parts for e in part.episodes}) == 15
        assert parts[2].episodes == short.split()[1].episodes

    def test_one_that_fails_on_the_held_out_episodes_gives_way_to_the_next_larger(
        self, policy: LoweredPolicy, short: Calibration
    ) -> None:
        def candidate(weight_format: str) -> Candidate:
            codes = {n: round_to_nearest(n, matrix_values(policy, n), weight_format) for n in policy.matrix_names()}
            unseen = Judgement(QuantizationCost(1, 0.0, 0.0, 0.0, 1, 0, 0), Estimate(0.0, 0.0, 0.0), 1)
            return Candidate({}, 0, unseen, codes)

        tried, held_out = [candidate("int4"), candidate("fp16")], short.thirds()[2]
        judged = judge_held_out(policy, held_out, 0.05, tried, SILENT)
        assert [found for found, _ in judged] == tried
        assert judged[0][1].disagreement.high > 0.05 >= judged[1][1].disagreement.high > 0
        with pytest.raises(LramError, match=r"5% cannot be kept to: .* over 300 steps \(95% bound"):
            judge_held_out(policy, held_out, 0.05, tried[:1], SILENT)

    @pytest.mark.parametrize("target", ["onnxruntime", "openvino", "native", "tvm"])
    def test_sizes_are_those_that_the_target_stores(self, target: str, tmp_path: Path) -> None:
        """Down-projections of narrow heads, and what has 16 bits, are float32 in the target `native`."""
        policy = lower(load_checkpoint(GOLDEN / "state_ms" / "model.zip"), resolve_task("metaworld/reach-v2"), name="p")
        names = policy.matrix_names()

        def written(policy: LoweredPolicy) -> int:
            if target == "native":
                return native.export(policy, tmp_path).weight_bytes
            if target == "tvm":
                return sum(array.nbytes for array in pack_weights(policy)[0].values())
            return policy.weight_bytes

        sizes = sizes_by_format(policy, names, [target])
        for weight_format in LADDER[:-1]:
            codes = {n: round_to_nearest(n, matrix_values(policy, n), weight_format) for n in names}
            quantized = with_quantization(policy, Quantization("mixed", "", codes))
            saved = sum(sizes["fp32"].values()) - sum(sizes[weight_format].values())
            assert written(policy) - written(quantized) == saved, weight_format
        down = ladder({f: sizes[f]["blocks.0.proj_down"] for f in LADDER})
        head = ladder({f: sizes[f]["head"] for f in LADDER})
        # where a row is one group, int8 is no smaller than int8g, or int8g, filled up to a group, no smaller than fp16
        of_8_bits = "int8g" if target in ("native", "tvm") else "int8"
        assert list(down) == (["int8g", "fp32"] if target == "native" else ["int4", "int8g", "fp16"])
        assert list(head) == ["int4", of_8_bits, "fp32" if target == "native" else "fp16"]

    def test_for_several_targets_it_takes_what_all_of_them_have(self, policy: LoweredPolicy) -> None:
        sizes = sizes_by_format(policy, ["head"], ["onnxruntime", "native"])
        assert list(ladder({f: sizes[f]["head"] for f in LADDER})) == ["int4", "int8g", "fp32"]

    def test_the_command_prints_the_table_and_the_bundle_keeps_it(self, short_recording: Path, tmp_path: Path) -> None:
        path = tmp_path / "policy.lram"
        arguments = ("--precision", "auto", "--max-disagreement", "20%", "--calibration", short_recording)
        arguments += ("--keep-fp32", BEYOND_THE_FIRST_BLOCK, "--reference-steps", "10", "--no-report")
        out = succeed("export", TRAINED, "-o", path, *TASK, *arguments, "--target", "native").stdout
        assert "blocks.0.proj_up" in out and "allowed 20%" in out
        manifest = Bundle.open(path).manifest
        assert manifest.precision == "mixed" and manifest.quantization is not None
        assert manifest.quantization.auto is not None
        assert manifest.quantization.auto["chosen"]["disagreement_high"] <= 0.2

    @pytest.mark.parametrize(
        ("bound", "words"),
        [
            (0.0, "0% cannot be shown by any number of steps; allow more"),
            (0.005, r"a third of the 15 recorded episodes has 300 steps; .* 0.5% it takes 765: record about 39 such"),
        ],
    )
    def test_a_bound_that_so_few_steps_cannot_show_says_how_many_are_needed(
        self, policy: LoweredPolicy, short: Calibration, bound: float, words: str
    ) -> None:
        options = QuantizationOptions("auto", calibration=[Path("x")], max_disagreement=bound)
        with pytest.raises(LramError, match=words):
            quantize(policy, options, short)

    def test_too_few_episodes_to_judge_are_refused(self, policy: LoweredPolicy, calibration: Calibration) -> None:
        few = Calibration(calibration.episodes[:6])
        with pytest.raises(LramError, match="at least 15 are needed"):
            quantize(policy, QuantizationOptions("auto", calibration=[Path("x")]), few)

    def test_deep_models_are_grouped_by_depth(self) -> None:
        names = [f"blocks.{b}.{m}" for b in range(20) for m in ("proj_up", "proj_down")] + ["head"]
        groups = group_matrices(names)
        assert len(groups) == 9 and groups["blocks.0-4.proj_up"] == tuple(f"blocks.{b}.proj_up" for b in range(5))
        assert sorted(n for members in groups.values() for n in members) == sorted(names)


class TestRollouts:
    """Nothing is rolled out twice, and nothing that is not looked at."""

    @pytest.fixture
    def rolled_out(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Steps of every batch that went through a whole graph."""
        seen: list[int] = []
        roll_out = rollouts.roll_out

        def counted(graph: Any, batch: rollouts.EpisodeBatch, *rest: Any) -> Any:
            seen.append(int(batch.active.sum()))
            return roll_out(graph, batch, *rest)

        monkeypatch.setattr(rollouts, "roll_out", counted)
        return seen

    def test_calibration_needs_none_and_its_cost_one_of_each_policy(
        self, policy: LoweredPolicy, short: Calibration, rolled_out: list[int]
    ) -> None:
        options = QuantizationOptions("int8", keep_fp32=("blocks.[!0]*",), calibration=[Path("x")])
        quantized = quantize(policy, options, short)
        assert not rolled_out
        cost_on_episodes(policy, quantized, short)
        assert rolled_out == [300, 300]

    def test_auto_runs_float32_once_on_each_part_and_its_cost_is_known(
        self, policy: LoweredPolicy, short: Calibration, rolled_out: list[int]
    ) -> None:
        options = QuantizationOptions(
            "auto", keep_fp32=(BEYOND_THE_FIRST_BLOCK,), calibration=[Path("x")], max_disagreement=0.2
        )
        quantized = quantize(policy, options, short)
        cost_on_episodes(policy, quantized, short)
        assert quantized.quantization is not None and quantized.quantization.choice is not None
        choice = quantized.quantization.choice
        judged = sum(len(g["alone"]) for g in choice["groups"]) + len(choice["tried"]) + len(choice["failed"]) + 1
        assert rolled_out == [300] * (2 + judged)

    def test_an_export_with_a_recording_records_and_measures_what_it_states_and_no_more(
        self, short_recording: Path, tmp_path: Path
    ) -> None:
        stages: list[str] = []

        class Listed:
            @contextmanager
            def stage(self, description: str, total: int | None = None) -> Iterator[Any]:
                stages.append(description)
                yield lambda amount: None

        precision = QuantizationOptions("int8", keep_fp32=(BEYOND_THE_FIRST_BLOCK,), calibration=[short_recording])
        options = ExportOptions(targets=("pytorch",), reference_steps=5, quantization=precision, report=False)
        task = resolve_task("metaworld/reach-v2")
        export_bundle(load_checkpoint(TRAINED), task, tmp_path / "policy.lram", options, Listed())
        assert stages.count("recording reference steps") == 2  # with the codes, and in float32 to state their cost
        assert stages.count("measuring the cost") == 1  # over the episodes


def test_images_are_calibrated_too(tmp_path: Path) -> None:
    """The image encoder's last layer is a matrix like the others."""
    checkpoint = GOLDEN / "image_m" / "model.zip"
    task = resolve_task(None, image=True, discrete=True, target_return=1.0, reward_scale=1.0)
    policy = lower(load_checkpoint(checkpoint), task, name="p")
    images = np.random.default_rng(0).integers(0, 256, (700, 1, 3, 64, 64), np.uint8)
    zeros = np.zeros((700, 1), np.float32)
    first = (np.arange(700) % 100 == 0).astype(np.float32)[:, None]
    save_steps(lram_steps(images, zeros, zeros, first), tmp_path / "s.npz")
    calibration = load_calibration([tmp_path / "s.npz"], policy.spec)
    name = "embed_observation.cnn.linear.0"
    with pytest.raises(LramError, match=r"embed_observation.cnn.linear.0 has 2048 inputs"):
        check_enough(calibration, policy.graph, [name])
    matrices = quantize_blockwise(policy, {name: "int8"}, calibration.at_most(100))
    assert matrices[name].shape[1] == 2048

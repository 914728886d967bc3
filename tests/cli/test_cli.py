"""The command line: errors are one line and leave nothing behind; JSON is one document; results are right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.cli import COMMANDS
from lram_export.model.encoders import StateEncoder
from lram_export.prediction.sizes import state_bytes
from lram_export.spec.tokens import PLAIN
from tests.conftest import GOLDEN, ExportFunction, cli, fail, load_golden, shell, succeed
from tests.models import lram

STATE_M = GOLDEN / "state_m" / "model.zip"
REACH = ("--task", "metaworld/reach-v2")


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_m")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.npz"
    np.savez(path, observations=load_golden("state_m").trace["observations"][:10])
    return path


class TestWrongUse:
    """Exit code 2, and no output is made."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("export", "nowhere.zip", *REACH), "nowhere.zip: no such checkpoint"),
            (("export", STATE_M), "--observation-dim: without --task it must be given"),
            (
                ("export", STATE_M, "--task", "metaworld/reach"),
                "unknown task 'metaworld/reach'. Nearest: metaworld/reach-v2",
            ),
            (("export", STATE_M, "--task", "reach-v2"), "Nearest: metaworld/reach-v2"),
            (("export", STATE_M, "--task", "zzz"), "unknown task 'zzz'. Domains: metaworld, dmcontrol"),
            (("export", STATE_M, *REACH, "--observation-dim", "205"), "the task has 205, the model takes at most 204"),
            (("export", STATE_M, *REACH, "--action-dim", "9"), "action_dim: the task has 9, the model gives 8"),
            (("export", STATE_M, *REACH, "--target", "tpu"), "unknown target 'tpu'; known: pytorch, onnxruntime"),
            (("export", STATE_M, *REACH, "--target", "pytorch", "--target", "pytorch"), "--target: expected"),
            (("export", STATE_M, *REACH, "--batch", "0"), "Invalid value for '--batch'"),
            (("export", STATE_M, *REACH, "--batch", "4097"), "Invalid value for '--batch'"),
            (("export", STATE_M, *REACH, "--reference-steps", "1048577"), "Invalid value for '--reference-steps'"),
            (("export", STATE_M, *REACH, "--target-return", "1e30"), "--target-return: expected a magnitude of at"),
            (("export", STATE_M, *REACH, "--reward-scale", "0"), "--reward-scale: expected a positive number"),
            (("export", STATE_M, *REACH, "--target-return", "nan"), "'--target-return': expected a finite number"),
            (("export", STATE_M, *REACH, "--config", "no.yaml"), "--config: no.yaml: no such file"),
            (("export", STATE_M, *REACH, "--act-dim", "8"), "only for weights without a config"),
            (("export", STATE_M, "--task", "dmcontrol/cheetah-run"), "--action-dim: the task table has none"),
            (("export", STATE_M, *REACH, "--image", "--observation-dim", "3"), "an image task has none"),
            (("convert", "nowhere"), "nowhere: no such checkpoint"),
            (("new", "--preset", "7b"), "Invalid value for '--preset'"),
            (("new", "--preset", "16m", "--seed", "-1"), "Invalid value for '--seed'"),
            (("new", "--preset", "16m", "--seed", str(2**64)), "Invalid value for '--seed'"),
            (("record", "x.lram", "--env", "gym/x", "--seed", "-1"), "Invalid value for '--seed'"),
            (("sweep", STATE_M, *REACH, "--seed", "-1"), "Invalid value for '--seed'"),
            (("new", "--preset", "16m", "--slstm-at", "1,x"), "--slstm-at: expected numbers"),
            (("new", "--preset", "16m", "--slstm-at", "8"), "--slstm-at: expected distinct blocks in 0..7"),
            (
                ("new", "--preset", "16m", "--backbone", "mamba", "--slstm-at", "1"),
                "--slstm-at: only for --backbone xlstm",
            ),
        ],
    )
    def test_wrong_arguments(self, arguments: tuple[str | Path, ...], message: str, tmp_path: Path) -> None:
        code, line = fail(*arguments, "-o", tmp_path / "out.lram")
        assert (code, message in line) == (2, True), line
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["export", "convert", "new"])
    def test_an_output_that_exists(self, command: str, tmp_path: Path) -> None:
        output = tmp_path / "out.lram"
        output.mkdir()
        arguments = {"export": (STATE_M, *REACH), "convert": (STATE_M,), "new": ("--preset", "16m")}[command]
        code, line = fail(command, *arguments, "-o", output)
        assert code == 2 and "already exists" in line and "--force" in line
        assert list(output.iterdir()) == []

    def test_a_parent_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        code, line = fail("export", STATE_M, *REACH, "-o", tmp_path / "no" / "out.lram")
        assert code == 2 and "does not exist; create it first" in line

    def test_a_bundle_name_without_the_suffix(self, tmp_path: Path) -> None:
        assert "a bundle's name ends with .lram" in fail("export", STATE_M, *REACH, "-o", tmp_path / "out")[1]

    @pytest.mark.parametrize("command", ["verify", "bench", "inspect"])
    def test_no_such_bundle(self, command: str, tmp_path: Path) -> None:
        assert fail(command, tmp_path / "nothing.lram")[0] == 2

    @pytest.mark.parametrize("command", ["verify", "bench"])
    def test_a_target_the_bundle_lacks(self, command: str, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("onnxruntime",))
        code, line = fail(command, bundle, "--target", "pytorch")
        assert code == 2 and "no artifact for target 'pytorch'; it has: onnxruntime" in line

    @pytest.mark.parametrize(
        "arguments",
        [("frobnicate",), ("export",), ("export", "--nonsense"), ("verify",), ("bench", "x", "--steps", "many")],
    )
    def test_the_parsers_own_errors_are_one_line_too(self, arguments: tuple[str, ...]) -> None:
        result = cli(*arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ") and "See: " in line and line.endswith("--help")

    @pytest.mark.parametrize("command", [("verify", "--checkpoint", STATE_M), ("evaluate", "--env", "gym/x")])
    def test_a_negative_seed(self, command: tuple[str | Path, ...], bundle: Path) -> None:
        name, *others = command
        code, line = fail(name, bundle, *others, "--seed", "-1")
        assert code == 2 and "Invalid value for '--seed'" in line

    def test_options_that_need_each_other(self, bundle: Path) -> None:
        assert "only with --checkpoint" in fail("verify", bundle, "--steps", "5")[1]
        assert "only with --checkpoint" in fail("verify", bundle, "--seed", "5")[1]
        assert "only with --checkpoint" in fail("bench", bundle, "--baseline", "--config", "x")[1]
        assert "only with --baseline" in fail("bench", bundle, "--checkpoint", STATE_M)[1]
        assert "is a bundle" in fail("inspect", bundle, "--act-dim", "8")[1]
        assert "is a bundle, which acts in the context" in fail("inspect", bundle, "--context", "cache")[1]

    def test_another_models_checkpoint(self, bundle: Path) -> None:
        code, line = fail("verify", bundle, "--checkpoint", GOLDEN / "state_ms" / "model.zip")
        assert code == 2 and "not the architecture" in line

    def test_a_target_that_is_not_installed(
        self, bundle: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import lram_export.targets.registry as registry

        monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "onnxruntime" else True)
        for arguments in (
            ("verify", bundle, "--target", "onnxruntime"),
            ("run", bundle, "--target", "onnxruntime", "--observations", recording, "-o", tmp_path / "o.npz"),
            ("export", STATE_M, *REACH, "-o", tmp_path / "o.lram"),
        ):
            code, line = fail(*arguments)
            assert code == 2
            assert "pip install 'lram-export[onnxruntime]'" in line


class TestFailedWork:
    """Exit code 1."""

    def test_a_damaged_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "model.zip").write_bytes(b"PK\x03\x04 nothing")
        for command in ("inspect", "convert", "export"):
            rest = () if command == "inspect" else ("-o", tmp_path / "out.lram")
            code, line = fail(command, tmp_path / "model.zip", *rest, *(REACH if command == "export" else ()))
            assert code == 1 and "model.zip: not a complete zip file" in line
        assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]

    def test_verify_exits_1_when_the_weights_are_others(self, bundle: Path, tmp_path: Path) -> None:
        """Weights changed together with their hash: only behaviour can tell."""
        copy = Path(shutil.copytree(bundle, tmp_path / "changed.lram"))
        weights = copy / "onnxruntime" / "model.onnx.data"
        values = np.fromfile(weights, np.float32)
        values[len(values) // 2 :] *= 1.01
        values.tofile(weights)
        from lram_export.system.files import file_sha256

        manifest = json.loads((copy / "manifest.json").read_text())
        for entry in manifest["artifacts"]:
            for file in entry["files"]:
                file["sha256"] = file_sha256(copy / file["path"])
        (copy / "manifest.json").write_text(json.dumps(manifest))

        result = cli("verify", copy)
        assert result.exit_code == 1
        assert "FAILED" in result.stdout and "largest logit error" in result.stdout
        document = json.loads(cli("verify", copy, "--json", "--target", "onnxruntime").stdout)
        assert document["passed"] is False and document["targets"]["onnxruntime"]["max_logit_error"] > 1e-4
        assert cli("verify", copy, "--target", "pytorch").exit_code == 0
        assert cli("bench", copy, "--steps", "20").exit_code == 1  # wrong outputs are not timed

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({}, "observations: missing"),
            ({"observations": np.zeros((0, 39), np.float32)}, "observations: expected at least one step"),
            ({"observations": np.zeros((5, 38), np.float32)}, r"step 0: observation: expected float32"),
            ({"observations": np.zeros((5, 39), np.complex64)}, "not a readable .npz file"),
            ({"observations": np.array([[0.0] * 39, [np.nan] * 39])}, "step 1: observation: expected finite"),
            ({"observations": np.zeros((5, 39)), "rewards": np.zeros(4)}, "rewards: expected numbers of shape (5, 1)"),
            ({"observations": np.zeros((5, 39)), "rewards": np.array(list("abcde"))}, "rewards: expected numbers"),
            ({"observations": np.array([{}], dtype=object)}, "not a readable .npz file"),
        ],
    )
    def test_recordings_that_do_not_fit(
        self, arrays: dict[str, np.ndarray], message: str, bundle: Path, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
        code, line = fail("run", bundle, "--observations", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        assert (code, message in line) == (1, True), line
        assert not (tmp_path / "out.npz").exists()

    def test_a_recording_that_is_no_npz(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "in.npz").write_text("hello")
        assert (
            "not a readable .npz file"
            in fail("run", bundle, "--observations", tmp_path / "in.npz", "-o", tmp_path / "out.npz")[1]
        )
        assert fail("run", bundle, "--observations", tmp_path / "no.npz", "-o", tmp_path / "out.npz")[0] in (1, 2)
        np.save(tmp_path / "x.npy", np.zeros((2, 39), np.float32))
        code, line = fail("run", bundle, "--observations", tmp_path / "x.npy", "-o", tmp_path / "out.npz")
        assert code == 1 and "one array, expected an .npz of named ones" in line

    def test_a_misspelt_array_is_not_ignored(self, bundle: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", observations=np.zeros((2, 39), np.float32), reward=np.zeros(2))
        line = fail("run", bundle, "--observations", tmp_path / "in.npz", "-o", tmp_path / "out.npz")[1]
        assert "reward: unknown array, did you mean 'rewards'?" in line

    def test_observations_are_not_replaced_by_what_is_made_of_them(self, bundle: Path, recording: Path) -> None:
        before = recording.read_bytes()
        for command in ("run", "record"):
            code, line = fail(command, bundle, "--observations", recording, "-o", recording, "--force")
            assert code == 2 and "is the file of --observations" in line
        assert recording.read_bytes() == before

    def test_a_step_that_leaves_float32_fails_by_name_and_writes_nothing(self, bundle: Path, tmp_path: Path) -> None:
        observations = np.zeros((3, 39), np.float32)
        observations[1, 2] = 1e38
        np.savez(tmp_path / "in.npz", observations=observations)
        for command in ("run", "record"):
            code, line = fail(command, bundle, "--observations", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
            assert code == 1 and "step 1: observation: expected finite values of magnitude up to" in line
        assert not (tmp_path / "out.npz").exists()


class TestResults:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command: str) -> None:
        assert len(succeed(command, "--help").stdout.splitlines()) > 5

    def test_json_is_one_document(self, bundle: Path, tmp_path: Path, recording: Path) -> None:
        output = tmp_path / "out.npz"
        for arguments in (
            ("inspect", STATE_M),
            ("inspect", bundle),
            ("verify", bundle),
            ("verify", bundle, "--checkpoint", STATE_M, "--steps", "20"),
            ("bench", bundle, "--steps", "20", "--target", "onnxruntime"),
            ("run", bundle, "--observations", recording, "-o", output),
            ("doctor",),
            ("new", "--preset", "16m", "-o", tmp_path / "new"),
            ("convert", STATE_M, "-o", tmp_path / "own"),
            ("export", STATE_M, "-o", tmp_path / "own.lram", *REACH, "--target", "pytorch", "--no-report"),
        ):
            assert isinstance(json.loads(succeed(*arguments, "--json").stdout), dict), arguments

    def test_quiet_prints_nothing_but_results(self, tmp_path: Path) -> None:
        result = succeed("convert", STATE_M, "-o", tmp_path / "own", "--quiet")
        assert result.output == ""
        assert "505,392" in succeed("inspect", tmp_path / "own").stdout

    def test_stages_are_plain_lines_where_nobody_watches(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("onnxruntime",))
        result = succeed("verify", bundle, "--target", "onnxruntime")
        assert result.stderr.splitlines()[0] == "verifying onnxruntime ..." and "\x1b" not in result.stderr
        assert succeed("verify", bundle, "--target", "onnxruntime", "--quiet").stderr == ""

    def test_inspect_says_which_targets_run_a_checkpoint_and_why_others_do_not(self, tmp_path: Path) -> None:
        targets = json.loads(succeed("inspect", STATE_M, "--json").stdout)["targets"]
        assert targets["native"] == {"precisions": ["fp32", "int8", "int8g", "int4", "w8a8", "mixed"], "refusal": None}
        sizes = lram(32, 1, 2, 64, state_dim=3, image_shape=None)
        plain = dataclasses.replace(sizes, encoders=(StateEncoder(3),), tokens=PLAIN)
        save_checkpoint(random_checkpoint(plain, tmp_path / "made"), tmp_path / "plain")
        found = json.loads(succeed("inspect", tmp_path / "plain", "--json").stdout)["targets"]
        assert found["native"]["precisions"] == [] and found["tvm"]["refusal"] is None
        assert "no kernels for 1 token per step" in found["native"]["refusal"]
        assert "no kernels for 1 token per step" in " ".join(succeed("inspect", tmp_path / "plain").stdout.split())

    def test_inspect_shows_and_predicts_a_transformer_in_the_context_asked_for(self) -> None:
        path = GOLDEN / "dt_state" / "model.zip"
        shown = {
            context: json.loads(succeed("inspect", path, *option, "--json").stdout)["model"]["backbone"]["context"]
            for context, option in (("window", ()), ("cache", ("--context", "cache")))
        }
        assert shown == {"window": "window", "cache": "cache"}
        states = [
            json.loads(succeed("inspect", path, "--context", context, "--device", "n100", "--json").stdout)
            for context in ("window", "cache")
        ]
        window, cache = (document["predictions"][0]["state"] for document in states)
        config = load_checkpoint(path).config
        assert (window, cache) == (state_bytes(config), state_bytes(config.in_context("cache")))
        assert window < cache

    def test_inspect_lists_what_was_skipped(self) -> None:
        document = json.loads(succeed("inspect", STATE_M, "--json").stdout)
        assert "predict_state.weight" in document["skipped"] and "embed_timestep.weight" in document["skipped"]
        assert document["parameters"] == 505392

    def test_a_converted_checkpoint_exports_to_the_same_policy(self, tmp_path: Path, bundle: Path) -> None:
        succeed("convert", STATE_M, "-o", tmp_path / "own")
        options = (*load_golden("state_m").task_options, "--target", "onnxruntime", "--no-report")
        succeed("export", tmp_path / "own", "-o", tmp_path / "own.lram", *options)
        assert (tmp_path / "own.lram" / "onnxruntime" / "model.onnx.data").read_bytes() == (
            bundle / "onnxruntime" / "model.onnx.data"
        ).read_bytes()
        assert succeed(
            "verify", tmp_path / "own.lram", "--checkpoint", STATE_M, "--other-checkpoint", "--steps", "50", "--json"
        )

    def test_a_new_checkpoint_exports(self, tmp_path: Path) -> None:
        succeed("new", "--preset", "16m", "--slstm-at", "1,3", "--image", "-o", tmp_path / "new")
        short = ("--target", "native", "--reference-steps", "10", "--force", "--no-report")
        for options in (REACH, ("--task", "atari/breakout")):
            succeed("export", tmp_path / "new", "-o", tmp_path / "new.lram", *options, *short)
        document = json.loads(succeed("inspect", tmp_path / "new.lram", "--json").stdout)
        assert document["model"]["backbone"]["slstm_at"] == [1, 3]
        assert document["task"]["observation"] == "image" and document["task"]["reward_scale"] == 20

    def test_the_task_table_fills_in_what_is_not_given(self, tmp_path: Path) -> None:
        succeed(
            *("export", STATE_M, "-o", tmp_path / "reach.lram", *REACH, "--target-return", "100"),
            *("--target", "pytorch", "--no-report"),
        )
        task = json.loads((tmp_path / "reach.lram" / "manifest.json").read_text())["task"]
        assert (task["observation_dim"], task["action_dim"], task["reward_scale"]) == (39, 4, 200)
        assert task["target_return"] == 100

    def test_run_resets_where_the_recording_says(self, bundle: Path, tmp_path: Path) -> None:
        observations = load_golden("state_m").trace["observations"][:6]
        np.savez(
            tmp_path / "in.npz",
            observations=np.concatenate([observations, observations]),
            is_first=np.arange(12) % 6 == 0,
        )
        succeed("run", bundle, "--observations", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        with np.load(tmp_path / "out.npz") as result:
            np.testing.assert_array_equal(result["action_logits"][:6], result["action_logits"][6:])

    def test_verify_reports_where_the_worst_error_is(self, bundle: Path) -> None:
        document = json.loads(succeed("verify", bundle, "--checkpoint", STATE_M, "--steps", "100", "--json").stdout)
        result = document["targets"]["onnxruntime"]
        assert 0 < result["max_logit_error"] <= 1e-4 and 0 <= result["worst"]["step"] < 100
        assert result["actions"] == 400 and 0 < result["state_error"] <= 1e-4
        assert len(document["drift"]["onnxruntime"]["all steps"]) == 10


class TestAsAUser:
    """In a process of its own, since that is where tracebacks and exit codes show."""

    def test_an_error_is_one_line_without_a_traceback(self, tmp_path: Path) -> None:
        done = shell("inspect", tmp_path / "nothing")
        assert done.returncode == 2 and done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")

    def test_a_permission_error_is_one_line(self, tmp_path: Path, bundle: Path, recording: Path) -> None:
        done = shell("run", bundle, "--observations", recording, "-o", "/proc/out.npz")
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")

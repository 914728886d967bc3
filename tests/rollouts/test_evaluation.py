"""Closed loop: the same seeds for every policy, and a difference is found, counted and explained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3
import numpy as np
import pytest
from card import title
from collect import TASKS
from measure import ways
from policies import POLICIES

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.policy import load_policy
from lram_export.report.collect import in_words
from lram_export.rollouts.environments import open_environment
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.evaluation import (
    REFERENCE,
    Agreement,
    EvaluationOptions,
    evaluate,
    first_difference,
    reference_policy,
    rollout,
)
from tests.conftest import SLOW, ExportFunction, cli, fail, shell, succeed
from tests.rollouts.line import LINE, OPTIONS, LineEnv

TRAINED = Path(__file__).parent.parent.parent / "examples" / "metaworld" / "checkpoints" / "xlstm"


@pytest.fixture(autouse=True, scope="module")
def line_environments() -> Iterator[None]:
    """Registered under three names: as it is, one that breaks, one that shows NaN."""
    named: dict[str, dict[str, int]] = {"Line": {}, "Breaks": {"breaks_at": 5}, "Nan": {"nan_at": 5}}
    for name, arguments in named.items():
        gymnasium.register(f"LramTest{name}-v0", entry_point=LineEnv, kwargs=arguments)
    yield
    for name in named:
        gymnasium.registry.pop(f"LramTest{name}-v0")


@pytest.fixture(scope="module")
def line(exported: ExportFunction) -> Path:
    """A bundle that fits the line."""
    return exported("state_m", targets=("onnxruntime", "pytorch"), options=OPTIONS)


@pytest.fixture(scope="module")
def metaworld(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained policy, exported."""
    bundle = tmp_path_factory.mktemp("metaworld") / "metaworld.lram"
    targets = ["--target", "onnxruntime", "--target", "pytorch"]
    succeed(
        "export", TRAINED / "model.zip", "-o", bundle, "--task", "metaworld/reach-v2", "-q", "--no-report", *targets
    )
    return bundle


def play(bundle: Path, **settings: Any) -> Any:
    opened = Bundle.open(bundle)
    options = EvaluationOptions(environments=(f"gym/{LINE}",), targets=("onnxruntime",), episodes=3, **settings)
    return evaluate(opened, options, reference_policy(opened, None))


def fitted(bundle: Path, name: str = f"gym/{LINE}") -> FittedEnvironment:
    manifest = Bundle.open(bundle).manifest
    return FittedEnvironment(name, open_environment(name), manifest.spec, manifest.task)


class TestComparison:
    def test_the_exported_policy_plays_as_the_reference_does(self, line: Path) -> None:
        result = play(line)
        target, reference = result.result(f"gym/{LINE}", "onnxruntime"), result.result(f"gym/{LINE}", REFERENCE)
        assert target.agreement.steps == target.steps == reference.steps == 36
        assert target.agreement.steps_different == 0
        assert 0 < target.agreement.max_logit_error < 1e-4
        assert [e.parted_at for e in target.episodes] == [None, None, None]
        assert [e.episode_return for e in target.episodes] == [e.episode_return for e in reference.episodes]
        assert [e.seed for e in target.episodes] == [0, 1, 2]
        assert result.same_outcome(target) == 3
        assert 0 < target.policy_share < 1
        assert target.success.value == sum(e.success for e in target.episodes) / 3

    def test_another_policy_is_found_out(self, line: Path, exported: ExportFunction) -> None:
        """The reference of another checkpoint stands in for a target that computes something else."""
        other = reference_policy(Bundle.open(exported("state_ms", targets=("pytorch",), options=OPTIONS)), None)
        opened = Bundle.open(line)
        options = EvaluationOptions(environments=(f"gym/{LINE}",), targets=("onnxruntime",), episodes=3)
        result = evaluate(opened, options, other).result(f"gym/{LINE}", "onnxruntime")
        assert result.agreement is not None
        assert result.agreement.steps == 36
        assert result.agreement.steps_different > 18
        assert result.agreement.largest_tie > 1e-2
        assert all(e.parted_at == 0 for e in result.episodes)

    def test_a_difference_is_told_by_the_same_history(self, line: Path) -> None:
        """After one wrong action the trajectories have parted, but every later action is right again."""
        policy, reference = load_policy(line, "onnxruntime"), reference_policy(Bundle.open(line), None)
        act, calls = policy.act, []

        def wrong_once(observation: np.ndarray, reward: float | None = None) -> np.ndarray:
            calls.append(None)
            action = act(observation, reward)
            return action + np.float32(1 / 128) if len(calls) == 4 else action

        policy.act = wrong_once  # type: ignore[method-assign]
        from lram_export.rollouts.evaluation import answers_to

        environment = fitted(line)
        own = rollout(environment, reference, 0, 10.0)
        played = rollout(environment, policy, 0, 10.0)
        parted = first_difference(own, played)
        answers = answers_to(reference, own, played, parted, 10.0, rewards=True)
        agreement = Agreement()
        for answer, action, logits in zip(answers, played.actions, played.logits, strict=True):
            agreement.add(answer, (action, logits))
        assert parted == 3
        assert not np.array_equal(own.observations[-1], played.observations[-1])
        assert (agreement.steps, agreement.steps_different) == (12, 1)
        assert agreement.max_logit_error < 1e-4

    def test_a_tie_is_measured_between_the_references_logits_of_both_choices(self) -> None:
        agreement = Agreement()
        expected = np.array([[0.0, 5.0, 4.75], [1.0, 0.0, 0.0]])
        actual = np.array([[0.0, 4.0, 4.5], [1.0, 0.0, 0.0]])
        agreement.add((np.array([1, 0]), expected), (np.array([2, 0]), actual))
        assert (agreement.steps, agreement.steps_different, agreement.largest_tie) == (1, 1, 0.25)
        assert agreement.max_logit_error == 1.0

    def test_rewards_lower_the_return_to_go_unless_they_are_withheld(self, line: Path) -> None:
        policy, environment = load_policy(line, "onnxruntime"), fitted(line)
        for rewards in (True, False):
            played = rollout(environment, policy, 0, 10.0, rewards=rewards)
            expected = 10.0 / 5 - (sum(played.rewards[:-1]) / 5 if rewards else 0.0)
            assert policy.return_to_go[0] == pytest.approx(expected, rel=1e-5)

    def test_the_return_aimed_at_is_the_tables_the_bundles_or_the_given_one(self, line: Path) -> None:
        assert play(line).results[0].target_return == 10.0
        assert play(line, target_return=-3.0).results[0].target_return == -3.0
        from lram_export.rollouts.evaluation import target_return

        options = EvaluationOptions(environments=(), targets=())
        assert target_return("metaworld/push-v3", Bundle.open(line), options) == pytest.approx(1791.2247)

    def test_observed_rewards_reach_the_reward_token(self, line: Path, exported: ExportFunction) -> None:
        bundle = exported("state_m", feedback="observed", targets=("onnxruntime", "pytorch"), options=OPTIONS)
        result = play(bundle).result(f"gym/{LINE}", "onnxruntime")
        assert result.agreement.steps_different == 0
        without = play(line).result(f"gym/{LINE}", "onnxruntime")
        assert [e.episode_return for e in result.episodes] != [e.episode_return for e in without.episodes]


class TestFailures:
    def test_a_crash_ends_one_environment_and_no_other(self, line: Path) -> None:
        opened = Bundle.open(line)
        options = EvaluationOptions(
            ("gym/LramTestBreaks-v0", f"gym/{LINE}", "gym/LramTestNan-v0"), ("onnxruntime",), episodes=2
        )
        result = evaluate(opened, options, reference_policy(opened, None))
        assert list(result.failures) == ["gym/LramTestBreaks-v0", "gym/LramTestNan-v0"]
        assert result.failure == "gym/LramTestBreaks-v0: failed in step: RuntimeError: the simulator"
        assert len(result.result(f"gym/{LINE}", "onnxruntime").episodes) == 2
        assert result.result("gym/LramTestBreaks-v0", REFERENCE).episodes == []

    def test_the_command_line_prints_them_and_exits_with_1(self, line: Path) -> None:
        wanted = ["--env", "gym/LramTestBreaks-v0", "--env", f"gym/{LINE}", "--episodes", "2"]
        done = cli("evaluate", line, *wanted, "-q", "--json")
        assert done.exit_code == 1
        assert done.stderr.startswith("error: gym/LramTestBreaks-v0: failed in step: RuntimeError")
        document = json.loads(done.stdout)
        assert list(document["failures"]) == ["gym/LramTestBreaks-v0"]
        played = {(r["environment"], r["policy"]): len(r["episodes"]) for r in document["results"]}
        assert played["gym/LramTestBreaks-v0", REFERENCE] == 0
        assert played[f"gym/{LINE}", REFERENCE] == played[f"gym/{LINE}", "onnxruntime"] == 2

    def test_an_observation_that_is_not_finite_names_the_environment(self, line: Path) -> None:
        code, text = fail("evaluate", line, "--env", "gym/LramTestNan-v0", "--no-reference")
        assert code == 1
        assert "gym/LramTestNan-v0: failed in what it showed" in text
        assert "observation: expected finite values, got nan" in text

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--env", "metaworld/reach-v3"], "39 values"),
            (["--env", "robot/reach"], "unknown environment"),
            (["--env", f"gym/{LINE}", "--target", "abacus"], "unknown target 'abacus'"),
            (["--env", f"gym/{LINE}", "--checkpoint", "nowhere.zip"], "nowhere.zip: no such checkpoint"),
            (["--env", f"gym/{LINE}", "--no-reference", "--checkpoint", "x"], "contradicts --checkpoint"),
            (["--env", f"gym/{LINE}", "--config", "x.yaml"], "only with --checkpoint"),
            (["--env", f"gym/{LINE}", "--video", "film.avi"], "expected a name that ends with .gif or .mp4"),
            (["--env", f"gym/{LINE}", "--video", "nowhere/film.gif"], "does not exist"),
        ],
    )
    def test_wrong_requests_are_refused_before_anything_is_played(
        self, line: Path, arguments: list[str], words: str
    ) -> None:
        code, text = fail("evaluate", line, *arguments)
        assert code == 2
        assert words in text

    def test_a_bundle_without_reference_says_how_to_go_on(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("onnxruntime",), options=OPTIONS)
        code, text = fail("evaluate", bundle, "--env", f"gym/{LINE}")
        assert code == 2
        assert "--checkpoint" in text
        assert "--no-reference" in text

    def test_a_bundle_of_several_rows_plays_as_one_of_a_single_row(self, exported: ExportFunction) -> None:
        found = []
        for batch in (1, 3):
            bundle = exported("state_m", batch=batch, targets=("native", "pytorch"), options=OPTIONS)
            played = succeed("evaluate", bundle, "--env", f"gym/{LINE}", "--episodes", "2", "--json", "-q")
            found.append(json.loads(played.stdout)["results"])
        one, three = ([(row["policy"], row["episodes"]) for row in results] for results in found)
        assert one == three

    def test_a_quantized_bundle_holds_no_float32_reference(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("pytorch",), options=(*OPTIONS, "--precision", "int8"))
        code, text = fail("evaluate", bundle, "--env", f"gym/{LINE}")
        assert code == 2
        assert "its weights are int8, so nothing in it is the float32 reference; add --checkpoint CHECKPOINT" in text


class TestCommandLine:
    def test_json_holds_every_episode(self, line: Path) -> None:
        played = ("--env", f"gym/{LINE}", "--episodes", "2", "--seed", "7", "--target", "onnxruntime")
        result = succeed("evaluate", line, *played, "--json", "-q")
        document = json.loads(result.stdout)
        reference, target = document["results"]
        assert (reference["policy"], target["policy"]) == (REFERENCE, "onnxruntime")
        assert [e["seed"] for e in target["episodes"]] == [7, 8]
        assert target["agreement"]["steps"] == 24
        assert target["same_outcome"] == 2
        assert set(target["success"]) == set(target["return"]) == {"value", "low", "high"}
        assert document["failure"] is None
        assert reference["artifact"] is None
        assert target["artifact"] == Bundle.open(line).artifact_digest("onnxruntime")

    def test_one_episode_shows_no_interval_of_the_return(self, line: Path) -> None:
        played = ("--env", f"gym/{LINE}", "--episodes", "1", "--no-reference", "--target", "onnxruntime")
        (result,) = json.loads(succeed("evaluate", line, *played, "--json", "-q").stdout)["results"]
        assert result["return"]["low"] is None and result["return"]["high"] is None
        assert f"{result['return']['value']:.0f} (n/a)" in succeed("evaluate", line, *played).stdout

    def test_a_report_reads_it(self, line: Path, tmp_path: Path) -> None:
        played = ("--env", f"gym/{LINE}", "--episodes", "2", "--target", "onnxruntime")
        path = tmp_path / "evaluation.json"
        path.write_text(succeed("evaluate", line, *played, "--json", "-q").stdout)
        digest = Bundle.open(line).artifact_digest("onnxruntime")
        assert in_words([path], {digest})[digest].startswith(f"gym/{LINE}: ")

    def test_the_table_shows_reference_and_target(self, line: Path) -> None:
        out = succeed("evaluate", line, "--env", f"gym/{LINE}", "--episodes", "2").stdout
        for word in (REFERENCE, "onnxruntime", "2 of 2", "0 of 24", "return aimed at: gym/LramTestLine-v0 10"):
            assert word in out

    def test_a_checkpoint_takes_the_place_of_the_pytorch_artifact(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("onnxruntime",), options=OPTIONS)
        checkpoint = Path(__file__).parent.parent / "golden" / "state_m" / "model.zip"
        out = succeed(
            "evaluate", bundle, "--env", f"gym/{LINE}", "--episodes", "1", "--checkpoint", checkpoint, "--json", "-q"
        ).stdout
        assert [r["policy"] for r in json.loads(out)["results"]] == [REFERENCE, "onnxruntime"]

    def test_without_reference_no_torch_is_needed(self, exported: ExportFunction) -> None:
        options = ["--observation-dim", "3", "--action-dim", "1", "--target-return", "0", "--reward-scale", "1"]
        bundle = exported("state_m", targets=("onnxruntime",), options=options)
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from lram_export.cli import main\n"
            f"main(['evaluate', {str(bundle)!r}, '--env', 'gym/Pendulum-v1', '--episodes', '1', '--no-reference'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "onnxruntime" in done.stdout


class TestTrainedPolicy:
    """The checkpoint in the repository really acts, and still does after export."""

    @pytest.mark.parametrize(
        "task", ["drawer-close", *(pytest.param(t, marks=SLOW) for t in ("faucet-open", "hammer"))]
    )
    def test_it_succeeds_on_seeds_it_was_not_trained_on_exactly_as_the_reference_does(
        self, task: str, metaworld: Path
    ) -> None:
        opened, task = Bundle.open(metaworld), f"metaworld/{task}-v3"
        result = evaluate(
            opened, EvaluationOptions((task,), ("onnxruntime",), episodes=1), reference_policy(opened, None)
        )
        target, reference = result.result(task, "onnxruntime"), result.result(task, REFERENCE)
        assert target.success is not None and target.success.value == 1
        assert target.agreement is not None and target.agreement.largest_tie <= 1e-4
        assert result.same_outcome(target) == 1
        assert reference.steps == target.steps == 200

    @pytest.mark.slow
    def test_a_film_of_it_is_written(self, metaworld: Path, tmp_path: Path) -> None:
        film = tmp_path / "film.gif"
        result = shell(
            "evaluate", metaworld, "--env", "metaworld/reach-v3", "--episodes", "1", "--no-reference",
            "--target", "onnxruntime", "--video", film,
        )  # fmt: skip
        if "apt-get install" in result.stderr:  # a machine that cannot draw says so before it plays
            assert result.returncode == 2
            assert not film.exists()
            return
        assert result.returncode == 0, result.stderr
        frames = imageio.v3.imread(film)
        assert frames.shape == (50, 240, 240, 3)
        assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50

    @pytest.mark.parametrize("backbone", POLICIES)
    def test_every_example_policy_is_small_and_what_the_recipe_trains(self, backbone: str) -> None:
        folder = TRAINED.parent / backbone
        assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
        assert load_checkpoint(folder / "model.zip").config == POLICIES[backbone].config

    def test_their_card_is_complete(self) -> None:
        card = (TRAINED.parent / "README.md").read_text(encoding="utf-8")
        for task in TASKS:
            assert f"| `{task}` |" in card
        for way in ways():
            assert f"| {title(way)} | `int8` |" in card
        assert "make metaworld" in card

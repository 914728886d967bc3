"""Suites: the task table's domains by name, files of one's own, and what of them can be played here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.policy import load_policy
from lram_export.rollouts.domains import domain_of, domains, scale_of
from lram_export.rollouts.environments import FAMILIES
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate, rollout
from lram_export.rollouts.playing import scaled
from lram_export.rollouts.suites import Wanted, find_suite, named_suites
from lram_export.spec.tasks import task_names, task_table
from tests.conftest import ExportFunction, cli, fail, succeed
from tests.rollouts.line import LINE, OPTIONS, LineEnv

NAMES = {"Line": {}, "Breaks": {"breaks_at": 5, "only_seed": 2}}


@pytest.fixture(autouse=True, scope="module")
def line_environments() -> Iterator[None]:
    for name, arguments in NAMES.items():
        gymnasium.register(f"LramTest{name}-v0", entry_point=LineEnv, kwargs=arguments)
    yield
    for name in NAMES:
        gymnasium.registry.pop(f"LramTest{name}-v0")


@pytest.fixture(scope="module")
def line(exported: ExportFunction) -> Path:
    return exported("state_m", targets=("onnxruntime",), options=OPTIONS)


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


class TestNames:
    def test_they_are_the_tables_domains_with_their_counts(self) -> None:
        assert {name: len(suite.wanted) for name, suite in named_suites().items()} == {
            "metaworld-45": 45, "metaworld-50": 50, "dmcontrol-11": 11, "dmcontrol-16": 16, "procgen-12": 12,
            "procgen-16": 16, "atari-41": 41, "atari-46": 46, "composuite-240": 240, "composuite-256": 256,
            "mimicgen-83": 83, "mimicgen-85": 85, "lram-432": 432,
        }  # fmt: skip
        assert [w.environment for w in find_suite("lram-432").wanted] == task_names()
        assert find_suite("dmcontrol-11").wanted[0] == Wanted("dmcontrol/ball_in_cup-catch", reward_scale=100.0)

    def test_every_domain_has_a_family_and_no_task_is_both_trained_and_held_out(self) -> None:
        for name, domain in domains().items():
            assert FAMILIES[name].domain == name
            assert not set(domain.trained) & set(domain.held_out)
            assert set(domain.scales) <= {*domain.trained, *domain.held_out}
            assert all(scale.expert > scale.random for scale in domain.scales.values())

    def test_published_scores_agree_with_the_tables_target_returns(self) -> None:
        """The mean returns of Meta-World's data are its target returns: two sources, one number."""
        for task, target in task_table()["metaworld"]["target_returns"].items():
            assert domains()["metaworld"].scales[task].expert == pytest.approx(target, abs=1e-3)
        assert scale_of("metaworld/reach-v3") == scale_of("metaworld/reach-v2") == (147.103, 1905.1068)
        assert scale_of("atari/carnival") is None and domain_of("atari/carnival") is not None
        assert domain_of("gym/Pendulum-v1") is None and domain_of("metaworld/nothing-v3") is None

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("metaworld45", "unknown suite 'metaworld45'. Nearest: metaworld-45, metaworld-50"),
            ("zzz", "There are: metaworld-45"),
            ("nowhere.yaml", "--suite: nowhere.yaml: No such file"),
        ],
    )
    def test_unknown_ones_are_refused(self, name: str, words: str) -> None:
        with pytest.raises(UsageError, match=words.replace("(", r"\(")):
            find_suite(name)


class TestFiles:
    def test_what_differs_for_single_environments(self, tmp_path: Path) -> None:
        text = (
            "name: mine\nepisodes: 7\nenvironments:\n- metaworld/reach-v3\n"
            "- {name: command/a, target_return: 5, reward_scale: 2.5, episodes: 3, command: python x.py}\n"
        )
        suite = find_suite(str(written(tmp_path, text)))
        assert suite.name == "mine"
        assert suite.wanted == (
            Wanted("metaworld/reach-v3", reward_scale=200.0, episodes=7),
            Wanted("command/a", 5.0, 2.5, 3, "python x.py"),
        )

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("environments: []", "environments: expected at least one"),
            ("a: 1", "a: unknown field; known: environments, name, episodes"),
            ("environmnts: []", "environmnts: unknown field; did you mean environments?"),
            ("name: x", "environments: missing"),
            ("environments: [gym/a, gym/a]", "environments[1]: gym/a is there twice"),
            ("environments: [metaworldd/reach-v3]", "Nearest: metaworld/reach-v3"),
            ("environments: [reach-v3]", "unknown environment 'reach-v3'; expected metaworld/TASK"),
            ("environments: [{name: gym/a, episods: 3}]", "[0].episods: unknown field; did you mean episodes?"),
            ("environments: [{name: gym/a, episodes: 0}]", "environments[0].episodes: expected 1 to 1000000, got 0"),
            ("environments: [{name: gym/a, reward_scale: 0}]", "environments[0].reward_scale: expected a number from"),
            ("environments: [{name: gym/a, target_return: big}]", "environments[0].target_return: expected a number"),
            ("environments: [{target_return: 3}]", "environments[0].name: missing"),
            ("environments: [3]", "environments[0]: expected FAMILY/TASK"),
            ("environments: {a: 1}", "environments: expected a list"),
            ("[1]", "document: expected an object"),
            ("{{{", "not YAML of plain values"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_in_one_line(self, text: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as error:
            find_suite(str(written(tmp_path, text)))
        assert str(error.value).startswith("--suite: ") and words in str(error.value)
        assert "\n" not in str(error.value)


class TestPlaying:
    @pytest.mark.parametrize("parallel", [1, 2])
    def test_what_cannot_be_played_is_part_of_the_result(self, parallel: int, line: Path, tmp_path: Path) -> None:
        text = (
            f"environments:\n- gym/Pendulum-v1\n- gym/LramTestBreaks-v0\n- {{name: gym/{LINE}, episodes: 2, "
            "target_return: 3}\n- mimicgen/coffee_d0\n- atari/breakout\n"
        )
        command = ["evaluate", line, "--suite", written(tmp_path, text), "--no-reference", "--episodes", "4", "--json"]
        done = cli(*command, "-q", "--parallel", str(parallel))
        assert done.exit_code == 1 and "gym/LramTestBreaks-v0: failed in step" in done.stderr
        document = json.loads(done.stdout)
        assert {r["environment"]: len(r["episodes"]) for r in document["results"]} == {
            "gym/LramTestBreaks-v0": 2, f"gym/{LINE}": 2,
        }  # fmt: skip
        assert [r["target_return"] for r in document["results"]] == [10.0, 3.0]
        assert list(document["unplayable"]) == ["gym/Pendulum-v1", "mimicgen/coffee_d0", "atari/breakout"]
        assert document["unplayable"]["gym/Pendulum-v1"].startswith("its actions are Box(-2.0, 2.0")
        assert "--env-command mimicgen=COMMAND" in document["unplayable"]["mimicgen/coffee_d0"]
        assert document["unplayable"]["atari/breakout"].startswith("it has image observations")

    def test_the_table_says_it_by_family(self, line: Path, tmp_path: Path) -> None:
        text = f"environments: [gym/{LINE}, {', '.join(f'atari/{g}' for g in ('pong', 'qbert', 'krull', 'hero'))}]"
        out = succeed("evaluate", line, "--suite", written(tmp_path, text), "--no-reference", "--episodes", "1").stdout
        assert "not played: 4 of atari: it has image observations and discrete actions" in out

    def test_what_is_asked_for_by_name_must_be_playable(self, line: Path, tmp_path: Path) -> None:
        suite = written(tmp_path, f"environments: [gym/{LINE}, gym/Pendulum-v1]")
        code, text = fail("evaluate", line, "--suite", suite, "--env", "gym/Pendulum-v1", "--no-reference")
        assert code == 2 and text.startswith("error: --env gym/Pendulum-v1: its actions are")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("environments: [gym/Pendulum-v1]", "none of its 1 environments can be played here; gym/Pendulum-v1: its"),
            ("environments: [gym/Pendulumm-v1]", "--suite: unknown environment 'gym/Pendulumm-v1'. Nearest: gym/Pend"),
        ],
    )
    def test_nothing_to_play_and_unknown_tasks_are_errors(
        self, text: str, words: str, line: Path, tmp_path: Path
    ) -> None:
        code, said = fail("evaluate", line, "--suite", written(tmp_path, text), "--no-reference")
        assert code == 2 and words in said

    def test_something_has_to_be_asked_for(self, line: Path) -> None:
        assert "--env, --suite: give one of them" in fail("evaluate", line, "--no-reference")[1]

    def test_a_reward_scale_of_the_suite_is_that_of_a_bundle_exported_for_it(
        self, line: Path, exported: ExportFunction
    ) -> None:
        other = exported("state_m", targets=("onnxruntime",), options=[*OPTIONS[:-1], "2"])
        options = EvaluationOptions((f"gym/{LINE}",), ("onnxruntime",), 2, wanted=(Wanted(f"gym/{LINE}", None, 2.0),))
        manifest = Bundle.open(line).manifest
        with (
            load_policy(line, "onnxruntime") as policy,
            load_policy(other, "onnxruntime") as expected,
            FittedEnvironment.open(f"gym/{LINE}", manifest.spec, manifest.task) as environment,
        ):
            one = rollout(environment, scaled(policy, 2.0), 0, 10.0)
            two = rollout(environment, expected, 0, 10.0)
        assert all((a == b).all() for a, b in zip(one.logits, two.logits, strict=True))
        found = evaluate(Bundle.open(line), options, None).results[0].episodes
        plain = evaluate(Bundle.open(line), EvaluationOptions((f"gym/{LINE}",), ("onnxruntime",), 2), None)
        assert found[0].episode_return == sum(one.rewards) and found != plain.results[0].episodes

    def test_a_policy_of_many_tasks_plays_those_with_fewer_action_values(self, exported: ExportFunction) -> None:
        wide = ["--observation-dim", "204", "--action-dim", "6", "--target-return", "10", "--reward-scale", "5"]
        try:
            bundle = Bundle.open(exported("state_m", targets=("onnxruntime",), options=wide))
        except AssertionError:
            pytest.skip("the golden model has fewer actions")
        task = bundle.manifest.task
        with FittedEnvironment.open("dmcontrol/cartpole-swingup", bundle.manifest.spec, task) as environment:
            environment.reset(0)
            with load_policy(bundle.path, "onnxruntime") as policy:
                environment.step(policy.act(environment.reset(0)))
        with pytest.raises(UsageError, match="gives 6 values"):
            FittedEnvironment.open("dm_control/cartpole-swingup", bundle.manifest.spec, task)

"""Normalized scores of an evaluation, and their page."""

from __future__ import annotations

from pathlib import Path

import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.cli.evaluate import print_scores, to_json
from lram_export.report.evaluation_page import render
from lram_export.rollouts.domains import scale_of
from lram_export.rollouts.results import (
    REFERENCE,
    Agreement,
    EpisodeResult,
    Evaluation,
    EvaluationOptions,
    PolicyResult,
)
from lram_export.rollouts.scores import OVERALL, scores
from tests.conftest import ExportFunction
from tests.rollouts.line import OPTIONS

TASKS = ("reach-v3", "push-v3", "hammer-v3", "drawer-open-v3", "window-open-v3")


def played(environment: str, policy: str, returns: list[float], success: bool | None = True) -> PolicyResult:
    episodes = [EpisodeResult(seed, 10, value, success) for seed, value in enumerate(returns)]
    agreement = None if policy == REFERENCE else Agreement(20, 1)
    return PolicyResult(environment, policy, "fp32", 1.0, episodes, agreement)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Five tasks of Meta-World, one of DeepMind Control, some without a score."""
    results = []
    for policy in (REFERENCE, "native"):
        for number, task in enumerate(TASKS):
            scale = scale_of(f"metaworld/{task}")
            assert scale is not None
            returns = [scale.random + share * (scale.expert - scale.random) for share in (number / 4, number / 2)]
            results.append(played(f"metaworld/{task}", policy, returns, success=number > 2))
        results.append(played("dmcontrol/reacher-easy", policy, [33.0, 849.241], None))
        results.append(played("atari/breakout", policy, [9.0, 12.0], None))
        results.append(played("mimicgen/coffee_D0_robot_UR5e_gripper_Robotiq85Gripper", policy, [1.0, 0.0]))
        results.append(played("gym/Pendulum-v1", policy, [-100.0]))
        results.append(played("metaworld/door-open-v3", policy, []))
    names = tuple(dict.fromkeys(r.environment for r in results))
    found = Evaluation(EvaluationOptions((*names, "atari/<b>", "composuite/x"), ("native",)), results)
    found.failures = {"metaworld/door-open-v3": "metaworld/door-open-v3: failed in step: <script>"}
    found.unplayable = {"atari/<b>": "needs the package", "composuite/x": "another process has to make it"}
    return found


def test_a_score_is_the_share_of_the_way_from_random_to_expert(evaluation: Evaluation) -> None:
    metaworld = scores(evaluation).domains[0]
    assert (metaworld.domain, metaworld.policy, metaworld.kind) == ("metaworld", REFERENCE, "data")
    assert [task.value for task in metaworld.tasks] == pytest.approx([0, 0.375, 0.75, 1.125, 1.5])
    assert metaworld.iqm is not None and metaworld.iqm.value == pytest.approx((0.375 + 0.75 + 1.125) / 3)
    assert metaworld.mean is not None and metaworld.mean.value == pytest.approx(0.75)
    assert metaworld.success == pytest.approx(2 / 5)


def test_domains_come_in_the_tables_order_and_all_of_them_last(evaluation: Evaluation) -> None:
    found = scores(evaluation)
    assert [s.domain for s in found.domains if s.policy == "native"] == [
        "metaworld", "dmcontrol", "atari", "mimicgen", OVERALL,
    ]  # fmt: skip
    overall = found.domains[-1]
    assert (len(overall.tasks), overall.played) == (6, 8)
    assert list(found.sources) == ["metaworld", "dmcontrol", "atari", "mimicgen"]
    assert "dn_scores.py" in found.sources["metaworld"] and "dqn_zoo" in found.sources["atari"]


def test_what_has_no_score_is_told_with_the_reason(evaluation: Evaluation) -> None:
    found = scores(evaluation)
    assert "one life" in found.unscored["atari/breakout"]
    assert found.unscored["mimicgen/coffee_D0_robot_UR5e_gripper_Robotiq85Gripper"].startswith("no random and expert")
    atari = next(s for s in found.domains if s.domain == "atari")
    assert atari.tasks == () and atari.iqm is None and atari.played == 1


def test_environments_of_no_domain_have_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = EvaluationOptions(("gym/Pendulum-v1",), ("native",))
    print_scores(Evaluation(options, [played("gym/Pendulum-v1", "native", [1.0])]))
    assert capsys.readouterr().out == ""


def test_the_table_and_the_json_say_the_same(
    evaluation: Evaluation, exported: ExportFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    print_scores(evaluation)
    out = capsys.readouterr().out
    assert "0.75 (" in out and "5 of 5" in out and "no score: atari/breakout: its return is that of one life" in out
    bundle = Bundle.open(exported("state_m", targets=("onnxruntime",), options=OPTIONS))
    document = to_json(evaluation, bundle)["scores"]
    assert document["domains"][0]["iqm"]["value"] == pytest.approx(0.75)
    assert document["domains"][0]["tasks"]["metaworld/hammer-v3"] == pytest.approx(0.75)


def test_the_page_is_one_file_that_says_all_of_it(
    evaluation: Evaluation, exported: ExportFunction, tmp_path: Path
) -> None:
    text = render(evaluation, Bundle.open(exported("state_m", targets=("onnxruntime",), options=OPTIONS)))
    assert text.count("<svg") == 3 and 'id="domains"' in text and 'id="tasks-dmcontrol"' in text
    for words in ("0.75 (", "failed in step: &lt;script&gt;", "another process has to make it", "dn_scores.py"):
        assert words in text
    assert "<script" not in text and "2 of 12 environments could not be played here" in text
    assert " src=" not in text and "@import" not in text


def test_the_page_of_environments_of_no_domain_has_no_scores(exported: ExportFunction) -> None:
    options = EvaluationOptions(("gym/Pendulum-v1",), ("native",))
    bundle = Bundle.open(exported("state_m", targets=("onnxruntime",), options=OPTIONS))
    text = render(Evaluation(options, [played("gym/Pendulum-v1", "native", [1.0, 2.0])]), bundle)
    assert "<svg" not in text and "Normalized scores" not in text and "gym/Pendulum-v1" in text

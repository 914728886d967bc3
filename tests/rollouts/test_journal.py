"""A file of results: nothing is played twice, nothing of another policy is taken, a killed writer harms nobody."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.rollouts.evaluation import EvaluationOptions, ReferenceSource, evaluate, reference_policy
from lram_export.rollouts.journal import identity, open_journal
from tests.conftest import SLOW, ExportFunction, fail, succeed
from tests.rollouts.line import LINE, OPTIONS, LineEnv
from tests.rollouts.test_parallel import outcome

ENVIRONMENT = f"gym/{LINE}"


@pytest.fixture(autouse=True, scope="module")
def line_environment() -> Iterator[None]:
    gymnasium.register(LINE, entry_point=LineEnv)
    yield
    gymnasium.registry.pop(LINE)


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Bundle:
    return Bundle.open(exported("state_m", targets=("onnxruntime", "pytorch"), options=OPTIONS))


def options(episodes: int, **others: Any) -> EvaluationOptions:
    return EvaluationOptions((ENVIRONMENT,), ("onnxruntime",), episodes, **others)


@pytest.mark.parametrize("parallel", [1, pytest.param(2, marks=SLOW)])
def test_what_was_played_is_not_played_again_and_the_results_are_the_same(
    parallel: int, bundle: Bundle, tmp_path: Path
) -> None:
    path, asked = tmp_path / "results.jsonl", options(4, parallel=parallel)
    alone = evaluate(bundle, options(4), reference_policy(bundle, None))
    made_with = identity(bundle, asked, ReferenceSource())
    with open_journal(path, made_with) as journal:
        evaluate(bundle, options(2, parallel=parallel), ReferenceSource(), journal=journal)
    assert len(path.read_text().splitlines()) == 3
    with path.open("a") as file:
        file.write('{"environment": "gym/Lram')
    with open_journal(path, made_with) as journal:
        assert journal.kept == 2
        found = evaluate(bundle, asked, ReferenceSource(), journal=journal)
    assert outcome(found) == outcome(alone)
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines[1:]) == [0, 1, 2, 3]  # as they came
    assert made_with == identity(bundle, options(9, seed=7, parallel=3), ReferenceSource())


@pytest.mark.parametrize(
    ("asked", "reference", "words"),
    [
        (options(1, rewards=False), ReferenceSource(), r"other options \(rewards: True, now False\)"),
        (options(1, target_return=3.0), ReferenceSource(), r"other options \(target_return: None, now 3.0\)"),
        (options(1), None, "other reference"),
    ],
)
def test_results_of_something_else_are_refused(
    asked: EvaluationOptions, reference: ReferenceSource | None, words: str, bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    with open_journal(path, identity(bundle, options(1), ReferenceSource())):
        pass
    before, made_with = path.read_bytes(), identity(bundle, asked, reference)
    with pytest.raises(UsageError, match=f"holds results with {words}"), open_journal(path, made_with):
        pass
    assert path.read_bytes() == before
    with open_journal(path, made_with, force=True) as journal:
        assert journal.kept == 0
    assert json.loads(path.read_text().splitlines()[0]) == made_with


def test_a_file_of_another_kind_stays_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    made_with = identity(bundle, options(1), None)
    for content in ("what I wrote\n", "{}\n", "[1]\n", "7\n"):
        path = tmp_path / "notes.jsonl"
        path.write_text(content)
        with pytest.raises(UsageError, match="no results of an evaluation"), open_journal(path, made_with):
            pass
        assert path.read_text() == content


def test_a_line_that_is_no_result_is_named(bundle: Bundle, tmp_path: Path) -> None:
    made_with, path = identity(bundle, options(1), None), tmp_path / "results.jsonl"
    path.write_text(json.dumps(made_with) + '\n{"environment": "x"}\n')
    with pytest.raises(LramError, match=r"results\.jsonl: line 2: not as an evaluation writes it"):
        open_journal(path, made_with).__enter__()


def test_two_writers_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(UsageError, match="another evaluation writes it"),
            open_journal(path, identity(bundle, options(1), None)),
        ):
            pass


def test_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    command = ["evaluate", bundle.path, "--env", ENVIRONMENT, "--target", "onnxruntime", "--no-reference", "--json"]
    first = json.loads(succeed(*command, "--episodes", "2", "--results", path).stdout)
    again = succeed(*command, "--episodes", "2", "--results", path)
    assert "2 seeds played before" in again.stderr and json.loads(again.stdout) == first
    code, text = fail(*command, "--results", tmp_path / "nowhere" / "results.jsonl")
    assert code == 2 and "does not exist; create it first" in text

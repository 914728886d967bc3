"""The page of results: what the script that writes it makes of measurements."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest

from lram_export.checkpoints.random import preset_config
from lram_export.cli import main
from lram_export.prediction.predict import MachineSpeed, TargetSpeed
from lram_export.prediction.sizes import state_bytes, weight_bytes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
page = importlib.import_module("results_page")
results = importlib.import_module("results")


LIMITS = results.MOST_PRODUCTS, results.MOST_STATE


def timed(target: str, milliseconds: float) -> dict[str, Any]:
    return {
        "target": target,
        "precision": "fp32",
        "p50_ms": milliseconds,
        "p99_ms": 2 * milliseconds,
        "floor_ratio": 1.25,
        "peak_memory": 10**8,
        "size": 10**6,
    }


def test_speed_is_shown_against_the_original_and_openvino() -> None:
    found = {
        "bench": {"results": [timed("openvino", 3), timed("native", 1), timed("original", 20)], "warnings": []},
        "artifacts": [],
    }
    lines = page.speed_table({("16m", "int8"): found})
    assert lines[2] == "| 16m | `int8` | openvino | 3 | 6 | 6.7 | 1.00 | 1.25 | 100 MB |"
    assert lines[3] == "| 16m | `int8` | native | 1 | 2 | 20.0 | 3.00 | 1.25 | 100 MB |"
    assert lines[4] == "| 16m | `fp32`, beside `int8` | original | 20 | 40 | 1.0 | 0.15 | 1.25 | 100 MB |"


def test_backbones_stand_beside_one_another_with_what_they_carry() -> None:
    xlstm, _, window, cache = page.WAYS
    some = {
        "bench": {
            "results": [timed("native", 1), timed("tvm", 2), timed("original", 20)],
            "products": 1e12,
            "warnings": [],
        }
    }
    fewer = {"bench": {"results": [timed("native", 30), timed("original", 400)], "products": 1e12, "warnings": ["w"]}}
    lines = page.backbone_table(
        {
            page.Case("16m", xlstm, "int8", 1): some,
            page.Case("16m", window, "fp32", 16): fewer,
            page.Case("16m", cache, "fp32", 1): some,
        }
    )
    assert lines[0].endswith("| rows | native | tvm | original | native: x floor | of products | memory | state |")
    state = state_bytes(preset_config("16m")) / 1e6
    assert lines[2] == f"| 16m | xLSTM (LRAM) | `int8` | 1 | 1 | 2 | 20 | 1.25 | - | 100 MB | {state:.3g} MB |"
    # 146 tokens of 512 numbers in each of 16 rows, and keys and values of 147 tokens in each of four blocks; of 149
    # tokens 1,521 million multiplications, of which 16 rows make 811 thousand million per second
    assert lines[3] == "| 16m* | Transformer, window | `fp32` | 16 | 30 | - | 400 | 1.25 | 81% | 100 MB | 4.78 MB |"
    assert lines[4].endswith("| - | 100 MB | 2.41 MB |") and lines[4].startswith("| 16m | ")
    assert lines[6].startswith("\\* `bench` doubted this run")


def test_cases_that_multiply_too_often_or_carry_too_much_are_left_out() -> None:
    xlstm, mamba, window, cache = page.WAYS
    assert [case.batch for case in page.cases("206m", xlstm, [1, 16], *LIMITS)] == [1, 1]
    assert [case.batch for case in page.cases("110m", xlstm, [1, 16], *LIMITS)] == [1, 16, 1, 16]
    assert [(case.precision, case.batch) for case in page.cases("206m", window, [1, 16], *LIMITS)] == [
        ("fp32", 1),
        ("int8", 1),
    ]
    for way in (mamba, cache):
        assert len(page.cases("206m", way, [1, 16], *LIMITS)) == 4
    assert len(page.cases("16m", window, [1, 16], *LIMITS)) == 4


def test_fewer_steps_where_one_takes_long() -> None:
    cache, window = (next(w for w in page.WAYS if w.context == context) for context in ("cache", "window"))
    found = [
        results.fewer(page.Case(size, way, "fp32", batch))
        for size, way, batch in (("206m", cache, 1), ("16m", cache, 16), ("110m", cache, 16), ("16m", window, 1))
    ]
    assert found == [1, 1, 4, 10]


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = "before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n"
    assert page.replace_section(text, "speed", ["new", "lines"]) == (
        "before\n<!-- speed -->\nnew\nlines\n<!-- end of speed -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="no marks"):
        page.replace_section("nothing", "speed", [])


def speed(bandwidth: float) -> dict[str, Any]:
    """A machine on which 16m at int8 takes 12 * 10 us and the stream of its bytes."""
    targets = tuple(TargetSpeed(name, "int8", 1e-5, 1.0, 0, 1.0) for name in ("openvino", "native", "tvm"))
    return {"measured": MachineSpeed("", 2, "2026-01-01", {2**22: bandwidth, 2**28: bandwidth}, targets).to_json()}


def test_predictions_stand_beside_what_was_measured_and_the_near_ones_are_counted() -> None:
    config = preset_config("16m")
    moved = weight_bytes(config, "int8") + 2 * state_bytes(config)
    predicted = 1e3 * (config.backbone.num_blocks * 1e-5 + moved / 50e9)
    during = 1e3 * (config.backbone.num_blocks * 1e-5 + moved / 100e9)
    times = [timed("openvino", predicted), timed("native", during), timed("original", 9)]
    measured = {("16m", "int8"): {"bench": {"results": times, "bandwidth": 100e9}}}
    lines = page.prediction_table(measured, {("16m", "int8"): speed(50e9)})
    assert lines[0].startswith("1 of 2 predictions are within 30% of the measurement; with the bandwidth that the")
    assert lines[0].endswith("found, 1.")
    first, second = lines[4:]
    assert first.startswith(f"| 16m | `int8` | openvino | {predicted:.3g} | {predicted:.3g} | 1.00 | 2.00 |")
    assert second.endswith("| 2.00 | 1.00 |")


def played(policy: str, successes: int, agreement: dict[str, Any] | None) -> dict[str, Any]:
    episodes = [{"success": n < successes, "episode_return": 100.0} for n in range(4)]
    same = None if agreement is None else successes
    return {"policy": policy, "agreement": agreement, "same_outcome": same, "episodes": episodes}


def test_closed_loop_counts_all_environments_together_and_the_reference_once() -> None:
    agreement = {"steps": 800, "steps_different": 3, "max_logit_error": 0.25}
    own = [played("native", 4, agreement), played("native", 2, {**agreement, "max_logit_error": 0.5})]
    one = {"evaluation": {"results": [played("reference", 4, None), *own]}}
    lines = page.loop_table({"fp32": one, "int8": one})
    assert lines[2:] == [
        "| reference | `fp32` | 4 | 100% (51 to 100) | 100 (100 to 100) | - | - | - |",
        "| native | `fp32` | 8 | 75% (41 to 93) | 100 (100 to 100) | 6 of 8 | 6 of 1,600 | 0.5 |",
        "| native | `int8` | 8 | 75% (41 to 93) | 100 (100 to 100) | 6 of 8 | 6 of 1,600 | 0.5 |",
    ]


def test_the_page_has_the_marks_of_every_section() -> None:
    text = page.PAGE.read_text()
    for name in ("speed", "prediction", "parity", "context", "loop"):
        assert page.replace_section(text, name, ["x"]) != text


def test_numbers_are_kept_and_never_those_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = results.kept(path, lambda: {"number": 1})
    assert first["number"] == 1
    assert results.kept(path, lambda: {"number": 2}) == first
    path.write_text(json.dumps({**first, "where": {**first["where"], "machine": "another"}}))
    with pytest.raises(SystemExit, match="measured with other machine"):
        results.kept(path, lambda: {"number": 2})
    path.write_text(json.dumps(first))
    with pytest.raises(SystemExit, match="measured with other options"):
        results.kept(path, lambda: {"number": 2}, episodes=50)


def test_a_run_measures_anew_unless_it_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    doubts: list[list[str]] = []

    def program(*arguments: object) -> str:
        """Answers as the program would, without measuring."""
        calls.append(str(arguments[0]))
        if arguments[0] == "bench":
            answer = {"results": [timed("native", 1), timed("original", 2)], "bandwidth": 50e9}
            return json.dumps({**answer, "warnings": doubts.pop() if doubts else []})
        if arguments[0] == "inspect" and "--device" in arguments:
            return json.dumps(speed(50e9))
        parity = {"max_logit_error": 1e-6, "relative_error": 1e-6, "actions_different": 0, "actions": 4}
        return json.dumps({"artifacts": [{"target": "native", "parity": parity}]})

    copied = tmp_path / "results.md"
    copied.write_text(page.PAGE.read_text())
    monkeypatch.setattr(page, "PAGE", copied)
    monkeypatch.setattr(results, "lram_export", program)
    arguments = ["results.py", "--sections", "speed", "--sizes", "16m", "--precisions", "int8", "--folder"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "measured")])
    results.main()
    assert calls == ["new", "export", "inspect", "bench", "inspect"]
    text = copied.read_text()
    assert "| 16m | `int8` | native | 1 | 2 | 2.0 |" in text
    assert " of 1 predictions are within 30% of the measurement" in text
    calls.clear()
    results.main()
    assert calls.count("bench") == 1
    calls.clear()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    results.main()
    assert calls == ["new"]  # the checkpoint, which the stand-in did not write
    calls.clear()
    sys.argv.remove("--resume")
    doubts[:] = [["others"]]
    results.main()
    assert calls.count("bench") == 2 and "| 16m | `int8` | native |" in copied.read_text()
    calls.clear()
    doubts[:] = [["others"], ["others", "host"], ["host"]]
    results.main()
    assert calls.count("bench") == results.MOST_RUNS and "| 16m* | `int8` | native |" in copied.read_text()


@pytest.mark.parametrize("script", ["benchmarks/results.py", "examples/metaworld/measure.py"])
def test_scripts_pass_no_option_that_the_program_does_not_have(script: str) -> None:
    tree = ast.parse((Path(__file__).parent.parent / script).read_text(encoding="utf-8"))
    said = Counter(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch("--[a-z0-9-]+", str(node.value))
    )
    own = Counter(
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("add_argument", "option")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    )
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    known = {name for command in commands if command is not None for option in command.params for name in option.opts}
    passed = set(said - own) - {"--short", "--chart"}  # of git, and of the benchmark of the context length
    assert len(passed) > 5
    assert passed <= known, passed - known


def test_a_wrong_section_is_refused_before_anything_is_measured() -> None:
    done = subprocess.run([sys.executable, results.__file__, "--sections", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'x'" in done.stderr


def test_a_context_length_without_memory_is_said() -> None:
    point = {
        "contender": "transformer, dynamic cache",
        "batch": 1,
        "length": 50,
        "ms": 5.0,
        "weight_bytes": 10**8,
        "context_bytes": 0,
        "history": None,
        "bound": None,
    }
    lram = {**point, "contender": "LRAM, native", "ms": 4.5, "history": 300}
    cache = {**lram, "contender": "transformer, cache of 50 steps, native", "ms": 9.0, "bound": 50}
    document = {
        "cpu": "a processor",
        "physical_cores": 2,
        "total_memory": 8e9,
        "date": "2026-11-25T00:00:00",
        "versions": {"torch": "2"},
        "options": {"preset": "16m", "threads": 2, "batches": [1], "lengths": [50, 100]},
        "parameters": {"lram": 10, "transformer": 11},
        "crossings": [
            {
                "batch": 1,
                "transformer": "transformer, dynamic cache",
                "lram": "LRAM, native",
                "steps": steps,
                "first": 50,
                "last": 80,
                "last_ratio": 0.5,
            }
            for steps in (None, 50, 70)
        ],
        "points": [
            lram,
            cache,
            {**lram, "length": 100, "ms": 4.0},
            point,
            {**point, "length": 100, "ms": None, "skipped": "not enough memory: the cache needs 9 GB"},
        ],
    }
    lines = page.context_lines(document)
    assert "| 50 | 4.5 (100) | 9 (100) | 5 (100) |" in lines
    assert "| 100 | 4 (100) | - | no memory (100) |" in lines
    assert "- transformer, dynamic cache: stops at 100 steps; not enough memory: the cache needs 9 GB" in lines
    slower = "- batch 1: the transformer with the dynamic cache is slower than LRAM, native"
    assert f"{slower} at no length up to 80 steps; at 80 steps it takes 0.5 times as long" in lines
    assert f"{slower} at every length, from 50 steps on; at 80 steps it takes 0.5 times as long" in lines
    assert f"{slower} **from 70 steps on**; at 80 steps it takes 0.5 times as long" in lines
    assert "- batch 1: LRAM, native takes 4 to 4.5 ms, whether after 50 to 100 steps" in lines
    assert (
        "- batch 1: transformer, cache of 50 steps, native takes 9 ms at any length, as it acts by the last 50 steps"
        in lines
    )

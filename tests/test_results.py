"""The page of results: what the script that writes it makes of measurements."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    """A script of the folder `benchmarks` as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


results = load("results")


def timed(target: str, milliseconds: float) -> dict[str, object]:
    return {
        "target": target,
        "precision": "fp32",
        "p50_ms": milliseconds,
        "p99_ms": 2 * milliseconds,
        "floor_ratio": 1.25,
        "peak_memory": 10**8,
    }


def test_speed_is_shown_against_the_original_and_openvino() -> None:
    found = {"bench": {"results": [timed("openvino", 3), timed("native", 1), timed("original", 20)]}, "artifacts": []}
    lines = results.speed_table({("16m", "int8"): found})
    assert lines[2] == "| 16m | `int8` | openvino | 3 | 6 | 6.7 | 1.00 | 1.25 | 100 MB |"
    assert lines[3] == "| 16m | `int8` | native | 1 | 2 | 20.0 | 3.00 | 1.25 | 100 MB |"
    assert lines[4] == "| 16m | `fp32` | original | 20 | 40 | 1.0 | 0.15 | 1.25 | 100 MB |"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = "before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n"
    assert results.replace_section(text, "speed", ["new", "lines"]) == (
        "before\n<!-- speed -->\nnew\nlines\n<!-- end of speed -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="no marks"):
        results.replace_section("nothing", "speed", [])


def test_the_page_has_the_marks_of_every_section() -> None:
    page = results.PAGE.read_text()
    for name in ("speed", "parity", "context"):
        assert results.replace_section(page, name, ["x"]) != page


def test_a_context_length_without_memory_is_said() -> None:
    point = {"contender": "transformer", "batch": 1, "length": 50, "ms": 5.0, "weight_bytes": 10**8, "context_bytes": 0}
    document = {
        "cpu": "a processor",
        "physical_cores": 2,
        "date": "2026-11-25T00:00:00",
        "versions": {"torch": "2"},
        "options": {"preset": "16m", "threads": 2, "batches": [1], "lengths": [50, 100]},
        "parameters": {"lram": 10, "transformer": 11},
        "crossings": [
            {"batch": 1, "transformer": "transformer", "lram": "native", "steps": None, "last": 50, "last_ratio": 0.5}
        ],
        "points": [point, {**point, "length": 100, "ms": None}],
    }
    lines = results.context_lines(document)
    assert "| 50 | 5 (100) |" in lines
    assert "| 100 | no memory |" in lines
    assert any("up to no length measured; at 50 steps it takes 0.50 times as long" in line for line in lines)

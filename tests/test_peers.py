"""The benchmark of other runtimes: who takes turns with whom, what is made of their times, and what a peer is."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lram_export.checkpoints.random import random_checkpoint
from lram_export.episodes.reference import record_reference
from lram_export.episodes.steps import random_steps
from lram_export.errors import LramError
from lram_export.lowering.model import lower_model
from lram_export.spec.parity import ParityMeter
from lram_export.spec.tasks import resolve_task
from lram_export.verification.verify import replay
from tests.models import lram

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
package, ours = importlib.import_module("peers"), importlib.import_module("peers.ours")
protocol, stepping, processes = (importlib.import_module(f"peers.{n}") for n in ("protocol", "stepping", "processes"))
shown = importlib.import_module("peers_results")
page = importlib.import_module("results_page")


@pytest.fixture(scope="module")
def script() -> Any:
    """The script, whose name is the package's, too."""
    spec = importlib.util.spec_from_file_location("peers_script", BENCHMARKS / "peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look there
    spec.loader.exec_module(module)
    return module


def contender(name: str) -> Any:
    return stepping.Contender(name, "16m", "fp32", Path(name))


def test_native_is_in_every_shift_and_nobody_is_left_out(script: Any) -> None:
    everybody = [contender(name) for name in ("tvm", "native", "iree", "mnn", "compile", "openvino")]
    found = [[c.name for c in shift] for shift in script.shifts(everybody, 3)]
    assert found == [["native", "tvm", "iree"], ["native", "mnn", "compile"], ["native", "openvino"]]
    assert [[c.name for c in shift] for shift in script.shifts(everybody[:1], 3)] == [["tvm"]]
    assert list(script.shifts([], 3)) == []


def test_shifts_are_as_large_as_memory_allows(script: Any) -> None:
    everybody = [contender(name) for name in ("native", "tvm", "iree", "mnn", "compile", "openvino")]
    options = argparse.Namespace(memory=12)
    sizes = []
    for size in ("16m", "206m"):
        case = script.Case(size, "fp32", Path(), options, everybody)
        sizes.append([len(shift) for shift in case.shifts()])
    assert sizes == [[6], [4, 3]]


def test_ratios_are_those_of_windows_beside_one_another(script: Any) -> None:
    slowing_down = [[0.001] * 3, [0.002] * 3, [0.004] * 3]
    assert script.ratio([[2 * s for s in window] for window in slowing_down], slowing_down) == pytest.approx(2)
    disturbed = [[0.002], [0.004], [0.1]]
    assert script.ratio(disturbed, slowing_down) == pytest.approx(2)


def test_steps_are_spread_over_windows_and_none_is_empty(script: Any) -> None:
    assert script.split(25, 10) == [3] * 5 + [2] * 5
    assert script.split(3, 10) == [1, 1, 1]


def turns(script: Any, name: str, windows: Sequence[Sequence[float]]) -> Any:
    report = stepping.Report(0.1, 0.01, 8, 1, 2.0, 10**8)
    return script.Turns(contender(name), [list(window) for window in windows], report)


def test_a_contender_is_compared_with_native_of_its_own_shift(script: Any) -> None:
    case = script.Case("206m", "fp32", Path(), argparse.Namespace(), built={"ours": 5.0, "iree": 7.0, "mnn": 3.0})
    found = script.results(
        case,
        [
            [turns(script, "native", [[0.001], [0.001]]), turns(script, "iree", [[0.004], [0.004]])],
            [turns(script, "native", [[0.002], [0.002]]), turns(script, "mnn", [[0.004], [0.004]])],
        ],
    )
    rows = {row["contender"]: row for row in found}
    assert {name: row["against_native"] for name, row in rows.items()} == {"native": 1, "iree": 4, "mnn": 2}
    assert rows["native"]["steps"] == 4 and rows["native"]["p50_ms"] == pytest.approx(1.5)
    assert [rows[name]["build_seconds"] for name in ("native", "iree")] == [5.0, 7.0]


def row(name: str, milliseconds: float, against: float) -> dict[str, Any]:
    return {
        "contender": name,
        "title": stepping.title(name),
        "p50_ms": milliseconds,
        "p99_ms": 2 * milliseconds,
        "against_native": against,
        "relative_error": 0.0123,
        "peak_memory": 10**8,
    }


def document(*warnings: str) -> dict[str, Any]:
    where = {
        "machine": "a processor",
        "date": "2026-11-28",
        "versions": {"mnn": "3"},
        "options": {"peers": ["iree", "mnn"], "steps": 10, "threads": 2},
    }
    small = {
        "size": "16m",
        "precision": "fp32",
        "floor_ms": 0.8,
        "results": [row("mnn", 5, 5), row("native", 1, 1), row("iree", 3, 3.25)],
        "left_out": {},
        "warnings": list(warnings),
    }
    large = {**small, "size": "206m", "floor_ms": 9, "results": [row("native", 10, 1), row("mnn", 60, 6)]}
    rounded = {**small, "precision": "int8", "left_out": {"IREE": "no int8"}, "results": [row("native", 0.5, 1)]}
    return {"where": where, "measured": [small, large, rounded, {**rounded, "size": "206m"}]}


def test_the_table_has_the_fastest_first_and_says_who_is_left_out() -> None:
    lines = shown.lines(document())
    rows = [line for line in lines if line.startswith("| 16m | `fp32`")]
    assert rows == [
        "| 16m | `fp32` | native | 1 | 2 | 1.00 | 1.25 | 0.012 | 100 MB |",
        "| 16m | `fp32` | IREE | 3 | 6 | 3.25 | 3.75 | 0.012 | 100 MB |",
        "| 16m | `fp32` | MNN | 5 | 10 | 5.00 | 6.25 | 0.012 | 100 MB |",
    ]
    assert "- 16m `fp32`: the fastest other runtime, IREE, takes 3.25 times as long as `native`" in lines
    assert "- IREE, 16m `int8`, 206m `int8`: left out, no int8" in lines
    assert not any("Not to be relied on" in line for line in lines)
    command = (
        "python benchmarks/peers.py --sizes 16m 206m --precisions fp32 int8 --peers iree mnn --steps 10 --threads 2"
    )
    assert f"Command: `{command}`." in lines


def test_numbers_of_a_busy_machine_are_marked() -> None:
    lines = shown.lines(document("others used 1.7 of 2 CPUs"))
    assert any(line.startswith("| 16m* |") for line in lines)
    assert any(line.startswith("\\* Not to be relied on. 16m `fp32`: others used 1.7 of 2 CPUs") for line in lines)


def test_the_chart_has_everybody_and_the_floor_and_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    shown.draw(document(), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for said in ("IREE", "MNN", "native", "fp32: milliseconds per step", "206m", "60"):
        assert f"<!-- {said} -->" in text
    assert "memory floor" in text and "prefers-color-scheme: dark" in text
    assert shown.order(document()["measured"]) == ["native", "iree", "mnn"]
    shown.draw(document(), tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text
    assert shown.title(document()["measured"]) == (
        "One step of an LRAM: the fastest other runtime takes at least 3.2 (fp32) times as long as native"
    )


def test_the_page_has_a_place_for_peers() -> None:
    text = page.PAGE.read_text()
    assert page.replace_section(text, "peers", ["x"]) != text


@pytest.mark.parametrize("name", package.NAMES)
def test_a_peer_says_how_it_computes_or_why_not_and_pins_its_packages(name: str, script: Any) -> None:
    peer = package.peer(name)
    assert set(peer.how) | set(peer.left_out) == set(script.PRECISIONS)
    assert not set(peer.how) & set(peer.left_out)
    pinned = (BENCHMARKS / "peers" / f"{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", line) for line in pinned)
    assert {*peer.packages} - {"torch"} <= {line.split("==")[0] for line in pinned}


def test_what_is_not_installed_is_said_in_one_line() -> None:
    peer = protocol.Peer("Nobody's", ("torch", "no-such-package"), {}, print, print)
    with pytest.raises(LramError, match=r"^Nobody's: the package 'no-such-package' is not installed: make peers"):
        protocol.versions(peer)


def test_a_session_carries_the_state_from_step_to_step_and_through_episodes() -> None:
    policy = lower_model(
        random_checkpoint(lram(64, 2, 4, 128, image_shape=None), "m"), resolve_task("metaworld/reach-v2"), name="m"
    )
    spec = policy.spec

    class Eager(protocol.TorchSession):
        def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
            with torch.no_grad():
                found: Sequence[Any] = policy.graph(*tensors)
            return found

    reference = record_reference(policy.reference(), random_steps(spec, policy.task, 8))
    session = Eager(spec)
    for _ in range(2):  # replay begins anew
        meter = ParityMeter(spec)
        replay(session, reference, meter)
        assert meter.result().passed
    assert all(tensor.is_contiguous() for tensor in session._state)
    stepping.check(meter.result(), "fp32")
    forgetful = Eager(spec)
    forgetful._kept = lambda tensor: torch.zeros_like(tensor)  # type: ignore[method-assign]
    meter = ParityMeter(spec)
    replay(forgetful, reference, meter)
    for precision in ("fp32", "int8"):
        with pytest.raises(LramError, match="computes something else"):
            stepping.check(meter.result(), precision)


def test_a_process_answers_fails_in_one_line_and_may_die(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes.Child(log, math.gcd, 4, 6, seconds=600) as child:  # the number 2
        assert child.ask("bit_length") == 2
        with pytest.raises(LramError, match=r"^AttributeError: 'int' object has no attribute 'x'$"):
            child.ask("x")
    with pytest.raises(LramError, match=r"^ValueError: "):
        processes.Child(log, math.sqrt, -1, seconds=600)
    with pytest.raises(LramError, match="the process died"):
        processes.Child(log, os._exit, 3, seconds=600)
    with pytest.raises(LramError, match="no answer within 1 s"):
        processes.Child(log, __import__("time").sleep, 60, seconds=1)

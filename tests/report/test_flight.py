"""A page's flight: one with faults, swaps and clamps; what was cut off; where the policy and the reference part."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, Field, StepPolicy, export_bundle, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.flight.header import FlightHeader
from lram_export.flight.reader import Flight, read_flight
from lram_export.flight.recorder import FlightRecorder
from lram_export.flight.steps import FlightStep
from lram_export.interpolation import Between
from lram_export.loop.account import Account
from lram_export.loop.control import Loop, LoopOptions, SafeStopError
from lram_export.report import flight_actions
from lram_export.report.bins import BINS, Bins
from lram_export.report.collect import ReportOptions, collect
from lram_export.report.flight import FlightView, view
from lram_export.report.flight_again import take_again
from lram_export.report.flight_charts import flight_charts
from lram_export.report.flight_page import facts, section, verdict
from lram_export.runtimes.protocol import StepOutput
from lram_export.spec.counts import Counts
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety
from tests.conftest import fail, succeed
from tests.loop.robots import FakeTime
from tests.report.test_report import Cells

CHARTS = ("latency", "policy", "missed", "faults", "parting", "events", "actions")
STEPS, SWAPPED_AT, EPISODE_AT = 120, 40, 60
BRIDGE = 3


class Leaky(torch.nn.Module):
    """Two joints move by a memory of what was observed; a gripper opens, closes or rests."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, observation: Any, memory: Any) -> Any:
        memory = 0.5 * memory + self.gain * observation
        logits = torch.cat([memory, observation[:, :1]], 1)
        return 2 * torch.sin(memory), logits.argmax(1), logits, memory


def arm() -> StepPolicy:
    """A policy whose joints have names, limits, and a bound on how fast they move."""
    limits, safety = Limits(-1.5, 1.5), Safety(most_change=1.0)
    joints = FieldInterface(elements=("hip", "knee"), units=("rad",), limits=limits, safety=safety)
    return StepPolicy(
        Leaky(),
        observation=2,
        action={"action": 2, "grip": Field((), "int64"), "grip_logits": 3},
        state={"memory": 2},
        interface=Interface(200.0, {}, {"action": joints}),
    )


class Shaken:
    """A robot whose sensors fail, which asks for another bundle and for another episode, and is lost in the end."""

    def __init__(self, another: Path) -> None:
        self.reads, self._another, self._noise = 0, another, np.random.default_rng(0)
        self.loop: Loop | None = None

    def reset(self) -> Any:
        return self.observe()

    def observe(self) -> Any:
        self.reads += 1
        seen = self._noise.normal(size=2).astype(np.float32)
        if self.reads in (10, 11, 90):
            seen[0] = np.nan
        if self.reads == 20:
            raise OSError("bus is busy")
        if self.reads == SWAPPED_AT and self.loop is not None:
            self.loop.swap(self._another).join()
        return None if self.reads > STEPS else seen

    def act(self, action: Any) -> None:
        if self.reads == 30:
            raise OSError("no answer")

    def event(self) -> str | None:
        return "new episode" if self.reads == EPISODE_AT else None

    def close(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Night:
    """A flight, and what the loop and the policy counted of it themselves."""

    bundle: Bundle
    flight: Flight
    account: Account
    counts: Counts

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.flight.path


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A flight of a bundle, and then of its twin, which ends in a safe stop."""
    folder = tmp_path_factory.mktemp("night")
    bundle = folder / "arm.lram"
    export_bundle(arm(), None, bundle, ExportOptions(("native", "pytorch"), report=False, reference_steps=20))
    twin = Path(shutil.copytree(bundle, folder / "twin.lram"))
    robot, recorder = Shaken(twin), FlightRecorder(folder / "night.mcap")
    with pytest.MonkeyPatch.context() as patch, load_policy(bundle, target="native", threads=1) as policy:
        patch.setattr("lram_export.loop.clock.time", FakeTime())  # every tick comes, however busy the machine is
        loop = robot.loop = Loop(policy, robot, LoopOptions(1000.0, Between(), bridge=BRIDGE), recorder=recorder)
        with pytest.raises(SafeStopError, match="4 steps in a row with a fault"):
            loop.run()
        recorder.close()
        return Night(Bundle.open(bundle), read_flight(recorder.path), loop.account, policy.counts()["action"])


@pytest.fixture(scope="module")
def seen(night: Night) -> FlightView:
    return view(night.bundle, night.flight)


@pytest.fixture(scope="module")
def page(night: Night, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page that the command writes."""
    output = tmp_path_factory.mktemp("page") / "page.html"
    succeed("report", night.bundle.path, "-o", output, "--no-timing", "--flight", night.path)
    return html.unescape(output.read_text())


def said(bundle: Bundle, flight: Flight, steps: int = 1000) -> tuple[dict[str, str], str]:
    """What a page says of a flight: its facts, and its verdict."""
    both = view(bundle, flight), take_again(bundle, flight, steps)
    return dict(facts(*both)), " ".join(line["text"] for line in verdict(*both))


def table(text: str, title: str) -> list[dict[str, str]]:
    found = re.search(rf"<h3>{title}</h3>\s*<div class=\"scroll\">(<table>.*?</table>)", text, re.DOTALL)
    assert found is not None
    header, *rows = Cells(found[1]).rows
    return [dict(zip(header, row, strict=True)) for row in rows]


def written(flight: Flight, path: Path, steps: Iterable[FlightStep], *headers: FlightHeader) -> Flight:
    """Steps as a flight of the same kind."""
    recorder = FlightRecorder(path)
    for header in headers or flight.headers:
        recorder.begin(header)
    for step in steps:
        recorder.step(step)
    recorder.close()
    return read_flight(path)


class TestWhatHappened:
    def test_faults_are_those_the_loop_counted(self, seen: FlightView, night: Night, page: str) -> None:
        assert {count.kind: count.steps for count in seen.faults} == dict(night.account.faults)
        broken = next(count for count in seen.faults if count.kind == "not finite")
        assert (broken.steps, broken.coasted, broken.longest, broken.first, broken.last) == (3, 3, 2, 9, 89)
        assert (broken.so_far[0], broken.so_far[-1]) == (0, 3)
        (row,) = [row for row in table(page, "Faults") if row["fault"] == "not finite"]
        assert (row["policy stepped on"], row["held"], row["longest in a row"]) == ("3", "0", "2")

    def test_clamps_and_safety_are_those_the_policy_counted(self, seen: FlightView, night: Night, page: str) -> None:
        hip, knee, grip = seen.elements
        assert [element.name for element in seen.elements] == ["action hip", "action knee", "grip"]
        assert [e.clamped.sum() for e in (hip, knee)] == night.counts.clamped[0].tolist()
        assert [e.changed.sum() for e in (hip, knee)] == night.counts.slowed[0].tolist()
        assert all(e.clamped.sum() > 0 and e.changed.sum() > 0 for e in (hip, knee)) and not grip.held_back
        assert hip.counts.sum() == seen.stepped == seen.steps == STEPS + BRIDGE + 1
        assert np.nanmax(hip.chosen.most) == 1.5 and hip.sent is not None and grip.sent is None
        row = table(page, "Actions")[0]
        assert (row["element"], row["unit"]) == ("action hip", "rad")
        assert row["clamped by a limit"].startswith(f"{hip.clamped.sum()} (")
        assert row["changed by safety"].startswith(f"{hip.changed.sum()} (")

    def test_groups_of_many_steps_come_to_the_same(
        self, night: Night, seen: FlightView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(flight_actions, "GROUPS", 9)
        for coarse, fine in zip(view(night.bundle, night.flight).elements, seen.elements, strict=True):
            assert coarse.held_back == fine.held_back and coarse.counts.sum() == fine.counts.sum()
            for one, other in ((coarse.chosen, fine.chosen), (coarse.sent, fine.sent)):
                if one is not None and other is not None:
                    assert np.nanmin(one.least) == np.nanmin(other.least)
                    assert np.nanmax(one.most) == np.nanmax(other.most)

    def test_a_swap_a_stop_and_episodes_are_told(self, seen: FlightView, page: str) -> None:
        assert "The robot had to be stopped in flight: 4 steps in a row with a fault, the last: missing." in page
        events = table(page, "Events")
        assert ("swapped", f"{SWAPPED_AT - 1}") in {(row["event"], row["step"]) for row in events}
        assert events[-1]["event"] == "ended" and {"stopped", "episode"} <= {row["event"] for row in events}
        assert "<dt>episodes</dt><dd>2</dd>" in page
        assert [flown.same for flown in seen.bundles] == [True, True]
        assert seen.reached is not None and 0 < seen.reached <= 1000

    def test_every_chart_is_there(self, page: str) -> None:
        for name in CHARTS:
            figure = re.search(rf'<figure id="flight-{name}">.*?</figure>', page, re.DOTALL)
            assert figure is not None and "<svg" in figure[0] and f'id="flight-{name}-data-0"' in figure[0]
        names = re.findall(r'\bid="([^"]+)"', page)
        assert len(names) == len(set(names))
        assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page) and "<script" not in page

    def test_a_flight_that_was_cut_off_is_shown_as_far_as_it_goes(self, night: Night, tmp_path: Path) -> None:
        header = dataclasses.replace(night.flight.header, rate=1.0)  # so slow that what is kept in hand is little
        whole = written(night.flight, tmp_path / "whole.mcap", night.flight.steps(), header).path.read_bytes()
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(whole[: len(whole) // 2])
        found, lines = said(night.bundle, read_flight(cut))
        assert "The flight's end is missing" in lines and found["file"].startswith("cut off")
        steps = read_flight(cut).count
        assert 0 < steps < STEPS and found["steps"].startswith(f"{steps} in the file")
        assert "every action is the recorded one, to the bit" in found["taken again"]

    def test_steps_that_are_not_in_the_file_are_said_to_be_missing(self, night: Night, tmp_path: Path) -> None:
        kept = [step for step in night.flight.steps() if step.step % 10]
        thinned = written(night.flight, tmp_path / "thin.mcap", kept)
        missing = STEPS + BRIDGE + 1 - len(kept)
        assert view(night.bundle, thinned).missing_so_far[-1] == missing > 0
        assert f"{missing} steps of the loop are not in the flight's file." in said(night.bundle, thinned)[1]

    def test_a_flight_without_a_step_has_charts_that_say_so(self, night: Night, tmp_path: Path) -> None:
        empty = written(night.flight, tmp_path / "empty.mcap", ())
        section_of = section(view(night.bundle, empty), take_again(night.bundle, empty, 10))
        assert dict(section_of.facts)["steps"].startswith("0 in the file")
        assert [c.missing for c in section_of.charts].count("No step is in the file.") == len(CHARTS) - 1

    def test_five_million_steps_are_as_many_bins_as_a_chart_has_room_for(self) -> None:
        time = np.arange(5_000_000) / 50
        values = np.full(len(time), 0.002)
        values[3_000_100] = 0.5
        bins = Bins(time)
        spread = bins.spread(values)
        assert len(bins) == BINS == len(spread.most)
        assert spread.most.max() == 0.5 and np.argmax(spread.most) == BINS * 3 // 5
        assert spread.p99.max() == 0.002


class TestTakenAgain:
    def test_every_action_is_the_recorded_one_and_the_references(self, night: Night, page: str) -> None:
        again = take_again(night.bundle, night.flight, 1000)
        assert again.replay is not None and again.replay.same and again.replay.different == 0
        assert again.whole and again.parting is not None and again.parting.result.passed
        assert again.parting.first is None and len(again.parting.errors) == again.replay.steps
        assert "every action is the recorded one, to the bit" in page
        assert "the bundle's own target pytorch: native has its largest error" in page
        assert "In flight native does what the reference does" in page

    def test_where_they_part_is_named(self, night: Night, seen: FlightView, monkeypatch: pytest.MonkeyPatch) -> None:
        from lram_export.runtimes.native import NativeRuntime

        step, calls = NativeRuntime.step, [0]

        def strays(self: NativeRuntime, *arguments: Any) -> StepOutput:
            output = step(self, *arguments)
            values = {tensor.name: np.array(v) for tensor, v in zip(output.spec.outputs, output, strict=True)}
            calls[0] += 1
            if calls[0] in (15, 25):
                values["action"] += 0.01 * calls[0]
            if calls[0] == 20:
                values["grip"] += 1
            return StepOutput(output.spec, tuple(values.values()))

        monkeypatch.setattr(NativeRuntime, "step", strays)
        again = take_again(night.bundle, night.flight, 30)
        parting = again.parting
        assert again.replay is not None and parting is not None and parting.first is not None
        assert (again.replay.passed, again.replay.different, again.replay.first) == (False, 3, 14)
        assert (parting.numbers[parting.first], parting.numbers[parting.worst]) == (14, 24)
        assert parting.numbers[parting.different].tolist() == [19]
        lines = " ".join(line["text"] for line in verdict(seen, again) if line["kind"] == "bad")
        assert "native does not do again what it did in flight: 3 of 30 steps have another action" in lines
        assert "they part first at step 14" in lines
        chart = next(chart for chart in flight_charts(seen, again) if chart.name == "flight-parting")
        assert chart.svg is not None and ">step 24<" in chart.svg and ">another action<" in chart.svg

    def test_only_so_many_steps_as_were_asked_for(self, night: Night) -> None:
        again = take_again(night.bundle, night.flight, 25)
        assert again.replay is not None and (again.replay.steps, again.whole) == (25, False)
        assert "on native, the first 25 steps that can be: " in said(night.bundle, night.flight, 25)[0]["taken again"]
        assert take_again(night.bundle, night.flight, 0).replay is None

    def test_what_another_artifact_flew_is_not_held_against_this_one(self, night: Night, tmp_path: Path) -> None:
        first, second = night.flight.headers
        headers = (first, dataclasses.replace(second, digest="ab" * 32))
        mixed = written(night.flight, tmp_path / "mixed.mcap", night.flight.steps(), *headers)
        again = take_again(night.bundle, mixed, 1000)
        assert again.replay is not None and again.replay.same and again.replay.steps == SWAPPED_AT - 1
        assert "The flight is not all of this page's bundle: twin.lram" in said(night.bundle, mixed)[1]

    def test_a_target_that_is_not_here_is_said_to_have_flown(self, night: Night, tmp_path: Path) -> None:
        header = dataclasses.replace(night.flight.header, target="tensorrt", digest="ab" * 32)
        abroad = written(night.flight, tmp_path / "abroad.mcap", list(night.flight.steps())[:20], header)
        found, lines = said(night.bundle, abroad)
        assert found["taken again"].startswith("on native, not on tensorrt, which flew and is not here, all 20 steps")
        assert "the weights of this page's bundle, but not an artifact of it" in lines

    def test_a_flight_from_the_middle_of_an_episode_is_not_taken_again(self, night: Night, tmp_path: Path) -> None:
        late = [step for step in night.flight.steps() if 5 < step.step < SWAPPED_AT - 2]
        resumed = written(night.flight, tmp_path / "late.mcap", late, night.flight.header)
        found, lines = said(night.bundle, resumed)
        assert "The flight was not taken again: no episode begins in it" in lines
        assert found["steps"].startswith(f"{len(late)} in the file")

    def test_what_a_toolkit_raises_costs_the_comparison_only(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: Any) -> Any:
            raise RuntimeError("no luck")

        monkeypatch.setattr("lram_export.runtimes.native.NativeRuntime.step", crash)
        assert "The flight was not taken again: RuntimeError: no luck." in said(night.bundle, night.flight)[1]

    def test_a_checkpoint_is_the_reference_and_a_flight_that_is_compared_on_is_shown(self, night: Night) -> None:
        options = ReportOptions(steps=10, time=False, threads=1, recording=night.path, flight_steps=20)
        report = collect(night.bundle, options=options, checkpoint=arm())
        assert report.compared == "10 steps beside the PyTorch model"
        assert report.flight is not None and report.flight[1].parting is not None
        assert report.flight[1].parting.result.passed
        assert "the PyTorch model of the checkpoint" in dict(facts(*report.flight))["beside the reference"]


class TestRefused:
    def test_other_weights_and_nothing_is_written(self, night: Night, tmp_path: Path) -> None:
        header = dataclasses.replace(night.flight.header, weights="ab" * 32)
        other = written(night.flight, tmp_path / "other.mcap", night.flight.steps(), header).path
        code, line = fail("report", night.bundle.path, "-o", tmp_path / "page.html", "--flight", other)
        assert code == 1 and "other.mcap: flown with other weights, abababababab, than " in line
        assert list(tmp_path.iterdir()) == [other]

    def test_another_step(self, night: Night, tmp_path: Path) -> None:
        spec = night.flight.header.spec
        narrow = dataclasses.replace(spec.inputs[0], shape=(1, 1))
        header = dataclasses.replace(
            night.flight.header, spec=dataclasses.replace(spec, inputs=(narrow, *spec.inputs[1:]))
        )
        other = written(night.flight, tmp_path / "other.mcap", (), header).path
        line = fail("report", night.bundle.path, "-o", tmp_path / "page.html", "--flight", other)[1]
        assert "inputs: expected observation of float32 (1, 2), as the bundle has, got" in line

    def test_what_is_no_flight(self, night: Night, tmp_path: Path) -> None:
        steps = tmp_path / "steps.npz"
        steps.write_bytes(b"PK\x03\x04 not a flight")
        code, line = fail("report", night.bundle.path, "-o", tmp_path / "page.html", "--flight", steps)
        assert code == 1 and "not a flight of this program" in line

    def test_a_flight_where_the_package_that_reads_it_is_missing(
        self, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mcap", None)
        code, line = fail("report", night.bundle.path, "-o", tmp_path / "page.html", "--flight", night.path)
        assert code == 2 and "pip install 'lram-export[flight]'" in line

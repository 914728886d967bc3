"""The report: what it says, what it says where nothing was measured, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.errors import BundleError, UsageError
from lram_export.policy import load_policy
from lram_export.report import charts
from lram_export.report.charts import all_charts
from lram_export.report.collect import Report, ReportOptions, collect
from lram_export.report.page import render
from lram_export.runtimes.protocol import StepOutput
from lram_export.spec.parity import TOLERANCES
from tests.browser import CHROMIUM, opened
from tests.conftest import GOLDEN, SLOW, ExportFunction, fail, load_golden, succeed

CHARTS = ("drift", "errors", "ties", "state", "latency", "deadline", "flat", "choice")
TARGETS = ("onnxruntime", "native")
WINDOW = "--window-size=1400,3100"


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=TARGETS)


@pytest.fixture(scope="module")
def int8(exported: ExportFunction) -> Path:
    """The same policy with 8-bit weights."""
    return exported("state_ms", targets=TARGETS, options=(*load_golden("state_ms").task_options, "--precision", "int8"))


@pytest.fixture(scope="module")
def page(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, written by the command."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    succeed("report", bundle, "-o", output, "--steps", "40", "--rate", "50", "--threads", "1")
    return output


def tables(text: str) -> list[dict[str, str]]:
    """What the tables of a page say of every target, by column."""
    found: list[dict[str, str]] = []
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        header, *rows = Cells(table).rows
        found = found or [{} for _ in rows]
        for known, row in zip(found, rows, strict=True):
            known.update(zip(header, row, strict=True))
    return found


class Cells(HTMLParser):
    """A table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self._inside = tag in ("td", "th")
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


class TestContent:
    def test_a_row_per_target_with_what_was_measured(self, page: Path, bundle: Path) -> None:
        rows = tables(page.read_text())
        assert [row["target"] for row in rows] == list(TARGETS)
        for found in rows:
            assert found["precision"] == "fp32"
            assert float(found["p50 ms"]) > 0
            assert float(found["p50 ms"]) <= float(found["p99 ms"]) <= float(found["p99.9 ms"])
            assert float(found["error"]) < 1e-4
            assert found["same action"] == "100.00%"
            assert found["verified at export"] == "passed"
            assert found["closed loop"] == "not measured"

    def test_every_chart_is_there_with_a_sentence_on_how_to_read_it(self, page: Path) -> None:
        text = page.read_text()
        for name in CHARTS:
            figure = re.search(rf'<figure id="{name}">.*?</figure>', text, re.DOTALL)
            assert figure is not None
            assert "<svg" in figure[0]
            assert len(re.search(r"<figcaption>(.*?)</figcaption>", figure[0], re.DOTALL)[1]) > 80  # type: ignore[index]

    def test_the_file_needs_nothing_but_itself(self, page: Path) -> None:
        text = page.read_text()
        assert "<script" not in text
        assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', re.sub(r'xlink:href="#', 'href="#', text))
        assert "url(http" not in text

    def test_names_inside_the_charts_do_not_meet(self, page: Path) -> None:
        names = re.findall(r'\bid="([^"]+)"', page.read_text())
        assert len(names) == len(set(names))
        targets = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', page.read_text())
        assert targets
        assert set(targets) <= set(names)

    def test_names_of_bundles_are_text_not_markup(self, bundle: Path, tmp_path: Path) -> None:
        odd = tmp_path / "<b>&.lram"
        shutil.copytree(bundle, odd)
        manifest = json.loads((odd / "manifest.json").read_text())
        manifest["name"] = "<script>alert(1)</script>"
        (odd / "manifest.json").write_text(json.dumps(manifest))
        text = render(collect(Bundle.open(odd), options=ReportOptions(measure=False)))
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)" in text

    def test_an_export_writes_one_from_what_its_verification_saw(self, bundle: Path, tmp_path: Path) -> None:
        output = tmp_path / "policy.lram"
        golden = load_golden("state_m")
        options = (*golden.task_options, "--target", "native", "--reference-steps", "8")
        succeed("export", golden.checkpoint, "-o", output, *options)
        text = (output / "report.html").read_text()
        assert text.count("<svg") == 4  # no times
        assert "Never timed for this report" in text
        assert str(output) in text
        assert ".tmp" not in text
        succeed("verify", output)
        succeed("export", golden.checkpoint, "-o", output, *options, "--force", "--no-report")
        assert not (output / "report.html").exists()

    def test_a_checkpoint_gives_fresh_steps_and_the_norm_of_the_oracles_state(self, bundle: Path) -> None:
        from lram_export.checkpoints.loading import load_checkpoint

        checkpoint = load_checkpoint(GOLDEN / "state_ms" / "model.zip")
        report = collect(
            Bundle.open(bundle), options=ReportOptions(steps=20, time=False, threads=1), checkpoint=checkpoint
        )
        assert report.compared == "20 steps beside the PyTorch model"
        for row in report.rows:
            assert row.errors is not None
            assert len(row.errors.largest) == 20
            assert row.errors.largest.max() < 1e-4
            np.testing.assert_allclose(row.errors.state_norm, row.errors.oracle_norm, rtol=1e-4)

    @SLOW
    def test_other_precisions_stand_beside_it(self, bundle: Path, int8: Path) -> None:
        report = collect(Bundle.open(bundle), [Bundle.open(int8)], ReportOptions(steps=20, threads=1))
        assert [row.label for row in report.rows] == [
            "onnxruntime fp32",
            "native fp32",
            "onnxruntime int8",
            "native int8",
        ]
        choice = next(chart for chart in all_charts(report) if chart.name == "choice")
        assert choice.svg is not None
        assert "native int8" in choice.svg
        precise, quantized = report.rows[1].against_float32, report.rows[3].against_float32
        assert precise is not None
        assert quantized is not None
        assert 0 < precise < 1e-4 < quantized < 0.1  # not each beside its own oracle

    def test_a_quantized_bundle_is_not_said_to_do_what_float32_does(self, int8: Path) -> None:
        opened = Bundle.open(int8)
        report = collect(opened, options=ReportOptions(time=False, threads=1))
        text = render(report)
        assert "Does what the reference model does" not in text
        assert "Computes what the weights at its precision say, within the tolerance: onnxruntime int8, native" in text
        assert "What the precision itself costs: over 64 random steps" in text
        codes = (int8 / "onnxruntime" / "quantized.safetensors").stat().st_size
        assert report.rows[0].size == opened.artifact("onnxruntime").size + codes  # it reads the shared codes
        assert report.rows[1].size == opened.artifact("native").size
        first, _ = tables(text)
        cost = opened.manifest.quantization.cost  # type: ignore[union-attr]
        assert cost is not None
        assert first["cost of the precision"].startswith(f"{cost['relative_error']:.2g};")

    def test_two_bundles_of_one_precision_can_be_told_apart(self, bundle: Path, tmp_path: Path) -> None:
        shutil.copytree(bundle, tmp_path / "twin.lram")
        report = collect(Bundle.open(bundle), [Bundle.open(tmp_path / "twin.lram")], ReportOptions(measure=False))
        assert [row.label for row in report.rows][2:] == ["onnxruntime fp32 (twin.lram)", "native fp32 (twin.lram)"]
        assert len({row.label for row in report.rows}) == 4
        (tmp_path / "elsewhere").mkdir()
        namesake = tmp_path / "elsewhere" / bundle.name
        shutil.copytree(bundle, namesake)
        report = collect(Bundle.open(bundle), [Bundle.open(namesake)], ReportOptions(measure=False))
        assert len({row.label for row in report.rows}) == 4

    def test_rows_of_a_batch_are_compared_and_drawn(self, exported: ExportFunction) -> None:
        batch = Bundle.open(exported("state_m", batch=3, targets=("native",)))
        text = render(collect(batch, options=ReportOptions(time=False, threads=1)))
        assert text.count("<svg") == 4
        assert "within the tolerance of its precision: native fp32." in text

    def test_closed_loop_success_comes_from_evaluations_of_these_very_artifacts(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        opened = Bundle.open(bundle)
        success = {"value": 0.98, "low": 0.9, "high": 1.0}
        result = {"environment": "metaworld/reach-v3", "success": success, "episodes": [{}] * 50}
        own = {**result, "artifact": opened.artifact_digest("native")}
        other = {**result, "artifact": None, "success": None}

        def written(name: str, document: dict[str, Any]) -> Path:
            path = tmp_path / name
            path.write_text(json.dumps(document))
            return path

        first = written("a.json", {"failure": None, "results": [other, own]})
        second = written(
            "b.json", {"failure": "crashed", "results": [{**own, "environment": "gym/Ant-v5", "success": None}]}
        )
        failures = {"gym/Pong-v5": "crashed"}
        third = written(
            "d.json",
            {"failure": "crashed", "failures": failures, "results": [own, {**own, "environment": "gym/Pong-v5"}]},
        )
        rows = collect(opened, options=ReportOptions(measure=False), evaluations=[first, second, third]).rows
        assert [row.closed_loop for row in rows] == [
            None,
            "metaworld/reach-v3: 98% (90 to 100, 50 episodes), "
            "gym/Ant-v5: no measure of success (50 episodes), ended early by a failure, "
            "metaworld/reach-v3: 98% (90 to 100, 50 episodes), "
            "gym/Pong-v5: 98% (90 to 100, 50 episodes), ended early by a failure",
        ]
        foreign = written("c.json", {"failure": None, "results": [{**own, "artifact": "0" * 64}]})
        with pytest.raises(UsageError, match="of no artifact of this report"):
            collect(opened, options=ReportOptions(measure=False), evaluations=[first, foreign])

    def test_a_target_that_is_wrong_here_is_not_called_right(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lram_export.runtimes.native import NativeRuntime

        step = NativeRuntime.step

        def wrong(self: NativeRuntime, *arguments: Any) -> Any:
            output = step(self, *arguments)
            return StepOutput(output.spec, (output.action, output.action_logits + 1))

        monkeypatch.setattr(NativeRuntime, "step", wrong)
        text = render(collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1)))
        assert "Wrong on this machine: native fp32: largest logit error 1 exceeds 0.0001: step" in text
        assert "within the tolerance of its precision: onnxruntime fp32." in text

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_target_without_numbers_still_gives_a_page_that_says_so(
        self, value: float, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lram_export.runtimes.native import NativeRuntime

        step = NativeRuntime.step

        def broken(self: NativeRuntime, *arguments: Any) -> Any:
            output = step(self, *arguments)
            return StepOutput(output.spec, (output.action, np.full_like(output.action_logits, value)))

        monkeypatch.setattr(NativeRuntime, "step", broken)
        text = render(collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1)))
        assert "Wrong on this machine: native fp32: largest logit error inf exceeds 0.0001" in text
        assert text.count("<svg") == 4

    def test_a_wrong_state_counts_even_if_the_actions_are_right(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lram_export.runtimes.native import NativeRuntime

        state = NativeRuntime.state
        monkeypatch.setattr(NativeRuntime, "state", lambda self: {n: v + 1 for n, v in state(self).items()})
        text = render(collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1)))
        assert "Wrong on this machine: native fp32: relative state error" in text

    def test_what_a_toolkit_raises_costs_its_own_row_only(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from lram_export.runtimes.native import NativeRuntime

        def crash(self: NativeRuntime, *arguments: Any) -> Any:
            raise RuntimeError("no luck")

        monkeypatch.setattr(NativeRuntime, "step", crash)
        text = render(collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1)))
        assert "native fp32 was not run: RuntimeError: no luck." in text
        assert "within the tolerance of its precision: onnxruntime fp32" in text

    def test_what_ran_here_is_not_called_verified_elsewhere(self, bundle: Path) -> None:
        def elsewhere(report: Report) -> Report:
            """The same, verified on a stand-in at export."""
            moved = [replace(row, entry=replace(row.entry, verified_by="tvm-host")) for row in report.rows]
            return replace(report, rows=tuple(moved))

        unseen = render(elsewhere(collect(Bundle.open(bundle), options=ReportOptions(measure=False))))
        assert "Verified at export, but not where it will run: onnxruntime fp32 (on tvm-host), native" in unseen
        seen = render(elsewhere(collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1))))
        assert "not where it will run" not in seen
        assert "within the tolerance of its precision: onnxruntime fp32, native fp32." in seen

    def test_the_tolerance_is_that_of_the_state_format(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LRAM_NATIVE_STATE_FORMAT", "lazy-fp16")
        report = collect(Bundle.open(bundle), options=ReportOptions(time=False, threads=1))
        exact, lazy = report.rows
        assert (exact.state_format, exact.tolerance) == ("float32", TOLERANCES["fp32"])
        assert lazy.state_format != "float32" and lazy.tolerance == TOLERANCES["quantized"]
        first, second = tables(render(report))
        assert (first["tolerance"], second["tolerance"]) == ("0.0001", "0.002 relative")
        drift = next(chart for chart in all_charts(report) if chart.name == "drift")
        assert drift.svg is not None and "error of the outputs, in tolerances" in drift.svg

    def test_codes_that_were_altered_are_no_oracle(self, int8: Path, tmp_path: Path) -> None:
        from lram_export.checkpoints.loading import load_checkpoint

        golden, output = load_golden("state_ms"), Path(shutil.copytree(int8, tmp_path / "int8.lram"))
        opened = Bundle.open(output)
        codes = output / "onnxruntime" / "quantized.safetensors"
        content = bytearray(codes.read_bytes())
        content[-1] ^= 1
        codes.write_bytes(content)
        with pytest.raises(BundleError, match=r"quantized\.safetensors: content differs"):
            collect(opened, options=ReportOptions(time=False), checkpoint=load_checkpoint(golden.checkpoint))

    def test_other_bundles_are_of_the_same_policy(self, bundle: Path, exported: ExportFunction) -> None:
        opened, other = Bundle.open(bundle), Bundle.open(exported("state_m", targets=TARGETS))
        with pytest.raises(UsageError, match="of another checkpoint"):
            collect(opened, [other], ReportOptions(measure=False))
        with pytest.raises(UsageError, match="given twice"):
            collect(opened, [opened], ReportOptions(measure=False))


@pytest.fixture(scope="module")
def timed(bundle: Path) -> Report:
    """Rows with times, of which more can be made."""
    return collect(Bundle.open(bundle), options=ReportOptions(steps=20, rate=50, threads=1))


def with_rows(report: Report, factors: Sequence[float], missed: Sequence[int] = ()) -> Report:
    """As many rows as there are factors, each with times that many times as long."""
    row = report.rows[0]
    assert row.timing is not None and row.seconds is not None
    rows = []
    for number, factor in enumerate(factors):
        late = missed[number] if missed else 0
        timing = replace(row.timing, p50_ms=factor * row.timing.p50_ms, missed=late)
        rows.append(replace(row, label=f"row {number}", timing=timing, seconds=factor * row.seconds, failures=()))
    return replace(report, rows=tuple(rows))


class TestCharts:
    def test_no_two_of_many_rows_look_alike(self) -> None:
        assert len({(charts.colour(i), charts.marker(i)) for i in range(64)}) == 64
        assert len({(charts.colour(i), str(charts.line(i))) for i in range(64)}) == 64

    @pytest.mark.parametrize("rows", [1, 8, 18])
    def test_a_chart_has_every_row_and_names_it(self, rows: int, timed: Report) -> None:
        for chart in all_charts(with_rows(timed, [1 + 0.1 * i for i in range(rows)])):
            assert chart.svg is not None
            assert len(set(re.findall(rf'id="{chart.name}-data-(\d+)"', chart.svg))) >= rows
            if rows > 1 or chart.name == "choice":
                assert all(f">row {i}<" in chart.svg for i in range(rows))

    def test_a_target_that_takes_a_thousand_times_as_long_hides_no_other(self, timed: Report) -> None:
        assert timed.rows[0].seconds is not None
        fast = 1e3 * np.linspace(1e-4, 2e-4, 100)
        low, high, logarithmic = charts._span([fast, 1000 * fast])
        assert logarithmic and low == fast.min() and high > 1000 * fast.max()
        low, high, logarithmic = charts._span([fast, 1.5 * fast])
        assert not logarithmic and high < 2 * fast.max()

    def test_one_hiccup_squeezes_nothing(self) -> None:
        steps = np.full(1000, 0.4)
        steps[7] = 90
        assert charts._span([steps])[1:] == (pytest.approx(0.44), False)


class TestVerdict:
    def test_where_every_step_is_late_nothing_is_green(self, timed: Report) -> None:
        steps = timed.rows[0].timing.steps  # type: ignore[union-attr]
        text = render(with_rows(timed, [1, 1], [steps, steps]))
        assert f"Too slow for 50 Hz: row 0 missed {steps} of {steps} deadlines, row 1 missed" in text
        assert 'class="verdict good"' not in text and 'class="verdict bad"' in text
        assert "within the tolerance of its precision: row 0, row 1." in text  # and that is said, too
        assert {row["missed at 50 Hz"] for row in tables(text)} == {f"{steps} of {steps}"}
        assert all(float(row["cpu s/s"]) > 0 for row in tables(text))

    def test_where_all_are_in_time_it_is(self, timed: Report) -> None:
        text = render(with_rows(timed, [1, 1], [0, 0]))
        assert 'class="verdict good"' in text and 'class="verdict bad"' not in text

    def test_seldom_late_is_told_but_no_verdict(self, timed: Report) -> None:
        row = timed.rows[0]
        assert row.timing is not None
        often = replace(row, timing=replace(row.timing, steps=1000, missed=3))
        text = render(replace(timed, rows=(often,)))
        assert "Now and then late at 50 Hz" in text and 'class="verdict bad"' not in text

    def test_long_times_read_as_numbers(self, timed: Report) -> None:
        row = timed.rows[0]
        assert row.timing is not None
        slow = replace(row, timing=replace(row.timing, p50_ms=1660.4))
        assert tables(render(replace(timed, rows=(slow,))))[0]["p50 ms"] == "1,660"


class TestSigned:
    """The report is what gets signed, so the manifest lists it."""

    @pytest.fixture
    def signed(self, tmp_path: Path) -> Path:
        golden, output = load_golden("state_m"), tmp_path / "signed.lram"
        options = (*golden.task_options, "--target", "native", "--reference-steps", "8")
        succeed("export", golden.checkpoint, "-o", output, *options)
        return output

    def test_its_hash_is_in_the_manifest_and_an_altered_or_foreign_one_is_refused(self, signed: Path) -> None:
        page = signed / "report.html"
        opened, text = Bundle.open(signed), page.read_text()
        listed = opened.manifest.report
        assert listed is not None and listed.size == page.stat().st_size
        assert opened.manifest.created in text and opened.artifact("native").digest in text
        opened.check_files()
        succeed("verify", signed)

        page.write_text(text.replace("within the tolerance", "beyond all tolerance"))
        for command in (("verify", signed), ("inspect", signed)):
            assert "report.html" in fail(*command)[1]
        load_policy(signed, "native").close()  # a page moves no robot

        page.unlink()
        Bundle.open(signed).check_files()
        succeed("verify", signed)

        manifest = json.loads((signed / "manifest.json").read_text())
        manifest["report"] = None
        (signed / "manifest.json").write_text(json.dumps(manifest))
        page.write_text(text)
        assert "report.html: not listed in the manifest" in fail("verify", signed)[1]

    def test_a_page_of_the_command_goes_elsewhere(self, signed: Path) -> None:
        before = (signed / "report.html").read_bytes()
        line = fail("report", signed, "-o", signed / "report.html", "--force")[1]
        assert "is in the bundle, whose manifest lists every file" in line
        assert (signed / "report.html").read_bytes() == before


class TestMissing:
    def test_times_that_are_not_to_be_relied_on_are_said_to_be_so(self, bundle: Path) -> None:
        report = collect(Bundle.open(bundle), options=ReportOptions(measure=False))
        busy = dataclasses.replace(report, doubts=("others used 2.0 of 2 CPUs", "windows differ"))
        assert "not to be relied on" not in render(report)
        assert "Times here are not to be relied on: others used 2.0 of 2 CPUs; windows differ." in render(busy)

    def test_a_bundle_that_was_never_verified_or_timed_says_so(self, bundle: Path, tmp_path: Path) -> None:
        unverified = tmp_path / "unverified.lram"
        shutil.copytree(bundle, unverified)
        manifest = json.loads((unverified / "manifest.json").read_text())
        for artifact in manifest["artifacts"]:
            artifact["parity"] = artifact["verified_by"] = None
        (unverified / "manifest.json").write_text(json.dumps(manifest))
        text = render(collect(Bundle.open(unverified), options=ReportOptions(measure=False)))
        assert "Never verified: onnxruntime fp32, native fp32." in text
        assert "Never timed for this report" in text
        assert "No target was run for this report" in text
        assert "<svg" not in text

    def test_a_target_that_cannot_run_here_is_told_and_the_others_go_on(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unavailable(target: str, artifact: object = None) -> str | None:
            return "no such driver" if target == "native" else None

        monkeypatch.setattr("lram_export.report.collect.unavailable", unavailable)
        text = render(collect(Bundle.open(bundle), options=ReportOptions(steps=20, time=False, threads=1)))
        assert "native fp32 was not run: no such driver." in text
        assert text.count("<svg") == 4

    @pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
    def test_a_missing_package_is_named_with_its_extra(
        self, package: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lram_export.report.find_spec", lambda name: None if name == package else object())
        code, line = fail("report", bundle, "-o", tmp_path / "r.html")
        assert code == 2
        assert line == (
            f"error: a report needs the package '{package}', which is not installed. "
            "Install it with: pip install 'lram-export[report]'"
        )

    def test_an_existing_output_is_kept(self, bundle: Path, tmp_path: Path) -> None:
        output = tmp_path / "report.html"
        output.write_text("mine")
        assert "already exists" in fail("report", bundle, "-o", output)[1]
        assert output.read_text() == "mine"

    def test_an_evaluation_that_is_none_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "evaluation.json"
        path.write_text('{"success": 1}')
        line = fail("report", bundle, "-o", tmp_path / "r.html", "--evaluation", path)[1]
        assert "expected the JSON of lram-export evaluate --json" in line
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_is_no_output(self, bundle: Path, tmp_path: Path) -> None:
        folder = tmp_path / "page.html"
        folder.mkdir()
        assert fail("report", bundle, "-o", folder, "--force")[1].endswith("is a folder; a file cannot replace it")

    def test_a_checkpoint_of_another_model_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        line = fail(
            "report", bundle, "-o", tmp_path / "r.html", "--no-timing", "--checkpoint", GOLDEN / "state_m" / "model.zip"
        )[1]
        assert "not the architecture this bundle was exported from" in line
        assert list(tmp_path.iterdir()) == []


PROBE = """<script>
const found = {
  width: document.documentElement.scrollWidth,
  tables: [...document.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth),
  charts: [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height);
    return {
      width: box.width, height: box.height,
      data: [...svg.querySelectorAll('g[id*="-data-"]')].map(g => g.getBoundingClientRect())
        .filter(b => b.width + b.height > 5 && b.left >= box.left && b.right <= box.right).length,
      texts: texts.length, smallest: Math.min(...texts)
    };
  }),
};
parent.document.body.innerHTML = "<pre id=found>" + JSON.stringify(found) + "</pre>";
</script></body>"""
"""Looks at the page from inside, in a frame: Chromium's own window is never narrower than 500 pixels."""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
class TestBrowser:
    @pytest.mark.parametrize("width", [1280, 400])
    def test_a_browser_draws_all_charts_readably_and_complains_of_nothing(
        self, page: Path, width: int, tmp_path: Path
    ) -> None:
        probed = tmp_path / "probed.html"
        inside = html.escape(page.read_text().replace("</body>", PROBE))
        probed.write_text(
            f'<body><iframe style="width:{width}px;height:3000px;border:0" srcdoc="{inside}"></iframe></body>'
        )
        done = opened(probed.as_uri(), tmp_path, WINDOW, "--dump-dom")
        assert "CONSOLE" not in done.stderr
        found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1])  # type: ignore[index]
        assert found["width"] <= width  # nothing but the tables scrolls sideways, and those inside their own boxes
        if width == 1280:
            assert found["tables"] and not any(found["tables"])  # and there not even they do
        assert len(found["charts"]) == len(CHARTS)
        for chart in found["charts"]:
            assert chart["width"] >= min(width - 40, 440)
            assert chart["height"] > 0.5 * chart["width"]
            assert chart["data"] == len(TARGETS)  # each a line, a histogram or dots, inside its chart
            assert chart["texts"] > 8
            assert chart["smallest"] >= 8  # pixels

    def test_the_file_itself_opens_and_prints(self, page: Path, tmp_path: Path) -> None:
        printed = tmp_path / "page.pdf"
        assert "CONSOLE" not in opened(page.as_uri(), tmp_path, WINDOW, f"--print-to-pdf={printed}").stderr
        assert printed.read_bytes().startswith(b"%PDF")


def test_the_reference_is_run_only_when_asked_for(exported: ExportFunction) -> None:
    bundle = Bundle.open(exported("state_m", targets=("onnxruntime", "pytorch")))
    not_run = {r.entry.target: r.why_not_run for r in collect(bundle, options=ReportOptions(time=False)).rows}
    assert not_run["onnxruntime"] is None and "--target pytorch" in str(not_run["pytorch"])
    asked = ReportOptions(time=False, targets=("pytorch",))
    not_run = {r.entry.target: r.why_not_run for r in collect(bundle, options=asked).rows}
    assert not_run == {"onnxruntime": "not asked for", "pytorch": None}

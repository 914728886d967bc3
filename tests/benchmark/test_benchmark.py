"""The benchmark's numbers hang together. Nothing here asserts a speed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import Bundle, LramError
from lram_export.benchmark.baseline import better_threads
from lram_export.benchmark.bench import BenchOptions, BenchReport, bench, reasons_to_doubt, timed_targets
from lram_export.benchmark.probes import SIDE, ProductRate, ReadBandwidth
from lram_export.benchmark.worker import BASELINE, StepJob, _StepWorker
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.system.load import LoadWatch, MachineLoad
from tests.conftest import GOLDEN, ExportFunction, fail, succeed
from tests.rated import RATE, rated

WINDOWS = 10
"""As many as without tests."""


@pytest.fixture(scope="module")
def report(exported: ExportFunction) -> BenchReport:
    bundle = Bundle.open(exported("state_ms"))
    options = BenchOptions(
        targets=("onnxruntime",),
        threads=1,
        steps=60,
        baseline=True,
        baseline_source=CheckpointSource(GOLDEN / "state_ms" / "model.zip"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lram_export.benchmark.bench.WINDOWS", WINDOWS)
        return bench(bundle, options)


def test_percentiles_are_ordered_and_positive(report: BenchReport) -> None:
    for result in report.results:
        times = [result.p50_ms, result.p90_ms, result.p99_ms, result.p999_ms, result.max_ms]
        assert times[0] > 0 and times == sorted(times)
        assert result.jitter == pytest.approx(result.p999_ms / result.p50_ms)
        assert not result.leaves_work and result.p50_ms <= result.free_ms < 1.1 * result.p50_ms
        assert result.load_ms > 0 and result.first_step_ms > 0


def test_bytes_are_weights_once_and_state_in_and_out(report: BenchReport, exported: ExportFunction) -> None:
    manifest = Bundle.open(exported("state_ms")).manifest
    assert {result.target for result in report.results} >= {BASELINE, "onnxruntime"}
    for result in report.results:
        # the original has all of its weights in float32, an artifact those that its task needs
        original = result.target == BASELINE
        weights = 4 * manifest.parameters if original else manifest.artifacts[0].weight_bytes
        moved = weights + 2 * manifest.spec.state_bytes
        assert result.bytes_per_step == moved
        assert result.floor_ms == pytest.approx(1e3 * moved / report.bandwidth, rel=1e-6)


def test_weight_bytes_are_those_of_the_written_graph(exported: ExportFunction) -> None:
    import onnx

    path = exported("state_ms")
    entry = Bundle.open(path).artifact("onnxruntime")
    graph = onnx.load(path / "onnxruntime" / "model.onnx").graph
    in_graph = sum(4 * int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert entry.weight_bytes == pytest.approx(in_graph, rel=0.01)  # the graph also has small constants


def test_only_right_outputs_are_timed(report: BenchReport) -> None:
    for result in report.results:
        assert result.parity is not None and result.parity.passed
    assert {r.target: r.weights for r in report.results} == {"onnxruntime": "bundle", BASELINE: "checkpoint"}


def test_every_timed_step_is_counted(report: BenchReport) -> None:
    assert report.results[0].steps == 60 and len(report.results[0].window_p50_ms) == WINDOWS


def test_processes_measure_their_own_memory(report: BenchReport) -> None:
    memory = {r.target: r.peak_memory for r in report.results}
    assert memory["onnxruntime"] is not None and memory[BASELINE] is not None
    assert memory["onnxruntime"] < memory[BASELINE]  # the baseline has torch in it


def test_a_paced_loop_counts_missed_deadlines(exported: ExportFunction) -> None:
    worker = _StepWorker(StepJob("onnxruntime", str(exported("state_m")), 1, rate=50.0))
    step = worker._timed_act
    calls = iter(range(1000))

    def slow_every_fifth() -> tuple[float, float]:
        import time

        if next(calls) % 5 == 4:
            time.sleep(0.03)  # longer than the 20 ms period
        return step()

    worker._timed_act = slow_every_fifth  # type: ignore[method-assign]
    window = worker._paced_window(20, 1 / 50)
    assert window.missed >= 4 and (np.sort(window.seconds)[-4:] > 0.02).all()


def test_processor_time_per_second_counts_the_pauses(exported: ExportFunction) -> None:
    job = StepJob("onnxruntime", str(exported("state_m", targets=("onnxruntime",))), 1, rate=50.0)
    window = _StepWorker(job).window(10, None)
    assert window.wall_seconds >= 10 / 50  # the last period is there to its end
    assert 0 < window.cpu_seconds < window.wall_seconds


def test_a_paced_window_ends_early_where_it_may(exported: ExportFunction) -> None:
    worker = _StepWorker(StepJob("onnxruntime", str(exported("state_m", targets=("onnxruntime",))), 1, rate=100.0))
    assert len(worker._paced_window(1000, 1 / 100, 0.1).seconds) < 50
    assert len(worker._paced_window(1000, 1 / 100, 0.0).seconds) == 1


def benched(bundle: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The document and what was said beside it."""
    result = succeed("bench", bundle, "--steps", "20", "--threads", "1", "--json", *options)
    return json.loads(result.stdout), result.stderr


def test_the_rate_is_that_of_the_bundle(exported: ExportFunction, shared_folder: Path) -> None:
    document, said = benched(rated(exported, shared_folder))
    assert document["rate"] == RATE and document["results"][0]["missed"] is not None
    assert 0 < document["results"][0]["cpu_per_second"] < 2  # of one thread, and what Python has
    assert "trained at" not in said


def test_another_rate_is_warned_of_and_obeyed(exported: ExportFunction, shared_folder: Path) -> None:
    bundle = rated(exported, shared_folder)
    document, said = benched(bundle, "--rate", "200")
    assert document["rate"] == 200 and document["results"][0]["missed"] is not None
    assert f"warning: {bundle} was trained at {RATE} Hz, measured at 200 Hz" in said.splitlines()
    assert "trained at" not in benched(bundle, "--rate", "200", "--quiet")[1]


def test_a_bundle_that_says_a_rate_can_be_timed_without_one(exported: ExportFunction, shared_folder: Path) -> None:
    document, said = benched(bundle := rated(exported, shared_folder), "--unpaced")
    assert document["rate"] is None and document["results"][0]["missed"] is None and "trained at" not in said
    assert "--profile: expected the target native" in fail("bench", bundle, "--target", "onnxruntime", "--profile")[1]
    assert "--unpaced: not with --rate" in fail("bench", bundle, "--unpaced", "--rate", "50")[1]


def test_without_a_rate_nothing_is_paced(exported: ExportFunction) -> None:
    document, said = benched(exported("state_m", targets=("onnxruntime",)))
    assert document["rate"] is None and document["results"][0]["missed"] is None and "trained at" not in said
    assert document["results"][0]["cpu_per_second"] is None


def test_a_state_that_stands_still_voids_the_times(exported: ExportFunction) -> None:
    worker = _StepWorker(StepJob("onnxruntime", str(exported("state_m")), 1, rate=None))
    with pytest.raises(LramError, match="the state did not advance"):
        worker.finish()


def test_errors_of_a_worker_arrive(tmp_path: Path, exported: ExportFunction) -> None:
    import shutil

    copy = Path(shutil.copytree(exported("state_m"), tmp_path / "copy.lram"))
    (copy / "onnxruntime" / "model.onnx").unlink()
    with pytest.raises(LramError, match=r"model\.onnx: missing"):
        bench(Bundle.open(copy), BenchOptions(targets=("onnxruntime",), threads=1, steps=10))


def test_the_bandwidth_probe_reads_all_it_says() -> None:
    with ReadBandwidth(threads=1) as probe:
        assert probe.bytes >= 256 * 2**20 - 8
        assert 1e8 < probe.measure(passes=2) < 1e13


def test_the_probe_of_products_counts_the_multiplications_it_makes() -> None:
    probe = ProductRate(threads=2)
    start = time.perf_counter()
    rate = probe.measure(passes=1)
    taken = time.perf_counter() - start
    # the one pass took no longer than the call, and at least half of it
    assert 2 * SIDE**3 / taken <= rate <= 2 * 2 * SIDE**3 / taken
    assert all((result != 0).all() for result in probe._results)


def test_the_machine_is_probed_among_the_targets(report: BenchReport) -> None:
    for value, (low, high) in ((report.bandwidth, report.bandwidth_range), (report.products, report.products_range)):
        assert 1e8 < low <= value <= high


def test_the_reference_is_timed_only_when_asked_for(exported: ExportFunction) -> None:
    bundle = Bundle.open(exported("state_m", targets=("onnxruntime", "pytorch")))
    assert timed_targets(bundle, ()) == ["onnxruntime"]
    assert timed_targets(bundle, ("pytorch",)) == ["pytorch"]


def test_the_baseline_takes_the_better_number_of_threads() -> None:
    before = torch.get_num_threads()
    seconds = {1: 0.02, 2: 0.001, 3: 0.05}
    try:

        def step() -> float:
            time.sleep(0.001)
            return seconds[torch.get_num_threads()]

        assert better_threads(step, seconds) == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_processor_time_is_measured(report: BenchReport) -> None:
    assert all(result.cpu_ms > 0 for result in report.results)


def test_work_of_others_is_seen_and_own_work_is_not() -> None:
    watch, start, own = LoadWatch(), time.monotonic(), time.process_time()
    while time.monotonic() < start + 1:
        pass
    load = watch.stop()
    share = time.process_time() - own
    assert load.others is not None and load.others <= load.cpus - 0.8 * share
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            watch, knowing = LoadWatch(), LoadWatch([other.pid])
            time.sleep(1)
            load, without = watch.stop(), knowing.stop()
        finally:
            other.kill()
    assert load.others is not None and load.others > 0.1
    assert without.others is not None and without.others < load.others - 0.1


def test_what_makes_ratios_worthless_is_said(report: BenchReport) -> None:
    calm = dataclasses.replace(report.results[0], threads=1, window_p50_ms=(1.0, 1.1), p50_ms=1.0, p90_ms=1.2)
    idle = MachineLoad(2, 0.1, 0.0, 0.1)
    assert reasons_to_doubt(idle, [calm]) == []
    assert reasons_to_doubt(MachineLoad(2, None, None, None), [calm]) == []
    assert "others used 1.9 of 2 CPUs" in reasons_to_doubt(dataclasses.replace(idle, others=1.9), [calm])[0]
    assert "to other machines" in reasons_to_doubt(dataclasses.replace(idle, steal=0.5), [calm])[0]
    unsteady = dataclasses.replace(calm, window_p50_ms=(1.0, 1.0, 9.0, 9.0))
    assert "windows differ" in reasons_to_doubt(idle, [calm, unsteady])[0]
    assert "interrupts" in reasons_to_doubt(idle, [dataclasses.replace(calm, p90_ms=50.0)])[0]

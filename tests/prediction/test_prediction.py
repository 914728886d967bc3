"""What a model will need on a device: sizes, the model of a step's time, the choice, and what the command says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lram_export.backbones.registry import BACKBONES
from lram_export.benchmark.bench import BenchResult
from lram_export.benchmark.probes import ReadBandwidth
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.lowering import lower
from lram_export.prediction import machine_speed as measuring
from lram_export.prediction.machine_speed import (
    TASK,
    fit,
    measure_machine,
    measured_speed,
    small_model,
    this_device,
    with_bandwidth_now,
)
from lram_export.prediction.predict import (
    MachineSpeed,
    Prediction,
    TargetSpeed,
    choose,
    predict,
    process_memory,
    shipped_speed,
)
from lram_export.prediction.sizes import computes, family, moved_bytes, state_bytes, weight_bytes
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.spec.precision import MIXED, PRECISIONS
from lram_export.spec.tasks import resolve_task
from lram_export.system.cache import FOLDER_VARIABLE
from lram_export.system.devices import DEVICES, SYSTEM_BYTES, DeviceProfile, find_device
from tests.conftest import GOLDEN, fail, succeed

STATE_MS = GOLDEN / "state_ms" / "model.zip"


class TestSizes:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8g", "int4"])
    def test_weights_are_as_large_as_those_of_a_step_graph_that_uses_all(self, precision: str, tmp_path: Path) -> None:
        published = small_model("16m")
        config = dataclasses.replace(published, backbone=dataclasses.replace(published.backbone, num_blocks=1))
        task = dataclasses.replace(resolve_task("metaworld/reach-v2"), observation_dim=204, action_dim=8)
        policy = lower(random_checkpoint(config, tmp_path), task, name="x")
        if precision != "fp32":
            policy = quantize(policy, QuantizationOptions(precision=precision), None)
        packed = 3 * config.backbone.inner_size * (16 - 4) * 4  # the graph packs blocks of 4 to blocks of 16
        assert policy.weight_bytes - packed == pytest.approx(weight_bytes(config, precision, task), rel=1e-3)

    @pytest.mark.parametrize("name", ["state_m", "image_m"])
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_only_what_the_task_reads_counts(self, name: str, precision: str) -> None:
        checkpoint = load_checkpoint(GOLDEN / name / "model.zip")
        config = checkpoint.config
        image = name == "image_m"
        task = resolve_task(
            None if image else "metaworld/reach-v2", image=image, discrete=image,
            **({"target_return": 5.0, "reward_scale": 1.0} if image else {}),
        )  # fmt: skip
        policy = lower(checkpoint, task, name="x")
        if precision != "fp32":
            policy = quantize(policy, QuantizationOptions(precision=precision), None)
        mlstm = config.backbone.num_blocks - len(config.backbone.slstm_at)
        packed = (
            3 * mlstm * config.backbone.inner_size * (16 - config.backbone.qkv_block_size) * 4
        )  # the graph packs blocks of 4 to 16
        assert policy.weight_bytes - packed == pytest.approx(weight_bytes(config, precision, task), rel=1e-3)
        if not image:  # without a task it is the state encoder that counts, and the whole head
            assert weight_bytes(config, precision, task) < weight_bytes(config, precision)

    def test_without_a_task_one_encoder_counts(self) -> None:
        both, state = (preset_config("16m", image=image) for image in (True, False))
        assert weight_bytes(both, "fp32") == weight_bytes(state, "fp32")

    def test_published_sizes_have_their_published_weights(self) -> None:
        assert weight_bytes(preset_config("206m"), "fp32") / 4 == pytest.approx(202e6, rel=0.02)
        assert weight_bytes(preset_config("206m"), "int8") < 0.28 * weight_bytes(preset_config("206m"), "fp32")
        assert weight_bytes(preset_config("206m"), "int4") < 0.17 * weight_bytes(preset_config("206m"), "fp32")
        assert state_bytes(preset_config("206m")) / 4 == pytest.approx(33e6, rel=0.02)


def result(seconds: float, memory: int, moved: int) -> BenchResult:
    """A benchmark's result of which only time and memory matter here."""
    fields = {f.name: 0 for f in dataclasses.fields(BenchResult)}
    ratio = seconds * BANDWIDTH[max(BANDWIDTH)] / moved
    return BenchResult(
        **{**fields, "p50_ms": 1e3 * seconds, "peak_memory": memory, "floor_ratio": ratio}  # type: ignore[arg-type]
    )


BANDWIDTH = {2**22: 200e9, 2**25: 150e9, 2**28: 40e9}


class TestModel:
    @given(
        per_block=st.floats(2e-6, 2e-4),
        efficiency=st.one_of(st.floats(0.05, 0.4), st.floats(0.8, 1.2)),
        base=st.integers(10**7, 10**9),
        factor=st.floats(1.0, 4.0),
        precision=st.sampled_from(["fp32", "int8"]),
        family=st.sampled_from(["xlstm", "mamba", "decision_transformer window", "decision_transformer cache"]),
    )
    @settings(max_examples=50, deadline=None)
    def test_what_made_two_measurements_is_found_again(
        self, per_block: float, efficiency: float, base: int, factor: float, precision: str, family: str
    ) -> None:
        streams = efficiency > 0.6 and not family.endswith("window")
        truth = TargetSpeed("native", precision, per_block, efficiency, base, factor, streams)
        speed = MachineSpeed("a processor", 2, "2026-01-01", BANDWIDTH, (truth,), family=family)
        pair = []
        for width in ("16m", "206m"):
            config = small_model(width, family)
            (predicted,) = predict(config, this_device(speed), speed, None, here=True, task=TASK)
            assert predicted.seconds is not None
            pair.append(result(predicted.seconds, predicted.memory, moved_bytes(config, precision, TASK)))
        found = fit("native", precision, pair[0], pair[1], BANDWIDTH, family)
        assert found.per_block == pytest.approx(per_block, rel=1e-6)
        assert found.efficiency == pytest.approx(efficiency, rel=1e-6)
        assert found.streams == truth.streams
        assert found.memory_factor == pytest.approx(factor, rel=1e-3)

    @pytest.mark.parametrize("kind", BACKBONES)
    def test_the_package_knows_every_family(self, kind: str) -> None:
        for context in preset_config("16m", kind).contexts or (None,):
            config = preset_config("206m", kind).in_context(context)
            speed = shipped_speed(family(config))
            assert speed.family == family(config)
            assert {t.target for t in speed.targets} == {"onnxruntime", "openvino", "native", "tvm"}
            assert all(t.precision in PRECISIONS for t in speed.targets)
            most = 6 if computes(config) else 3  # of a window, multiplications for every byte that memory delivers
            assert all(0.05 < t.efficiency < most and 0 < t.per_block < 0.01 for t in speed.targets)
            assert all(p.seconds for p in predict(config, this_device(speed), speed, None, here=True))

    def test_of_a_family_that_was_not_measured_only_memory_is_known(self) -> None:
        config = preset_config("16m", "decision_transformer").in_context("cache")
        found = predict(config, find_device("n100"), shipped_speed("xlstm"), 50.0)
        assert all(p.seconds is None and p.margin is None and p.memory > p.weights > 0 for p in found)
        chosen, reason = choose(found)
        assert chosen is None and reason.startswith("how long a step takes there is not known")

    def test_what_its_arithmetic_limits_is_not_known_of_another_device(self) -> None:
        config = preset_config("206m", "decision_transformer").in_context("window")
        speed = shipped_speed(family(config))
        found = predict(config, find_device("raspberry-pi-5"), speed, 50.0)
        assert found and all(p.seconds is None and p.memory > p.weights > 0 for p in found)

    @given(small=st.floats(1e-5, 1e-2), large=st.floats(1e-4, 1e-2))
    @settings(max_examples=50, deadline=None)
    def test_two_noisy_measurements_never_make_a_step_of_no_time(self, small: float, large: float) -> None:
        pair = [
            result(seconds, 10**9, moved_bytes(small_model(width), "fp32", TASK))
            for width, seconds in (("16m", small), ("206m", large))
        ]
        found = fit("native", "fp32", pair[0], pair[1], BANDWIDTH)
        assert 0 < found.per_block < 1e-2
        assert 0 < found.efficiency < 1e3
        speed = MachineSpeed("a processor", 2, "2026-01-01", BANDWIDTH, (found,))
        (predicted,) = predict(small_model("206m"), this_device(speed), speed, None, here=True, task=TASK)
        assert predicted.seconds == pytest.approx(large, rel=1e-6)

    def test_only_a_target_that_streams_gets_faster_with_the_memory(self) -> None:
        streaming = TargetSpeed("native", "fp32", 1e-5, 0.9, 10**8, 1.0)
        computing = TargetSpeed("onnxruntime", "fp32", 1e-5, 0.5, 10**8, 1.0, streams=False)
        speed, config = MachineSpeed("", 2, "", BANDWIDTH, (streaming, computing)), preset_config("206m")
        faster = speed.with_bandwidth({size: 2 * value for size, value in BANDWIDTH.items()})
        before, after = (predict(config, this_device(s), s, None, here=True) for s in (speed, faster))
        assert before[0].seconds is not None
        assert after[0].seconds == pytest.approx(before[0].seconds / 2, rel=0.01)
        assert after[1].seconds == pytest.approx(before[1].seconds)
        thor = predict(config, find_device("thor"), speed, None)
        assert thor[0].seconds is not None
        assert thor[0].seconds < before[0].seconds
        assert thor[1].seconds == pytest.approx(before[1].seconds)  # it computes as fast as here
        slow = predict(config, find_device("raspberry-pi-5"), speed, None)
        assert slow[1].seconds is not None
        assert before[1].seconds is not None
        assert slow[1].seconds > before[1].seconds

    def test_a_jetson_must_be_able_to_build_what_it_runs(self) -> None:
        from lram_export.targets.tensorrt.memory import Memory

        config, device = preset_config("408m"), find_device("jetson-orin-nano")
        found = [p for p in predict(config, device, shipped_speed(), rate=50) if p.target == "tensorrt"]
        for p in found:
            assert p.fits == Memory.of_sizes(p.weights, p.state).fits(device)
        assert not next(p for p in found if p.precision == "fp32").fits
        assert next(p for p in found if p.precision == "int8").fits

    def test_bandwidth_is_interpolated_between_and_kept_beyond_what_was_measured(self) -> None:
        speed = MachineSpeed("", 2, "", BANDWIDTH, ())
        assert speed.bandwidth_of(1) == 200e9
        assert speed.bandwidth_of(2**40) == 40e9
        assert 40e9 < speed.bandwidth_of(2**26) < 150e9
        assert speed.bandwidth_of(2**25) == 150e9

    def test_another_device_is_never_predicted_faster_than_its_floor(self) -> None:
        config = preset_config("206m")
        for device in DEVICES.values():
            predictions = predict(config, device, shipped_speed(), rate=50)
            for p in predictions:
                assert p.floor == moved_bytes(config, p.precision) / device.bandwidth
                if p.seconds is not None:
                    assert p.seconds > p.floor
                    assert p.margin == pytest.approx(1 / (50 * p.seconds))
            assert ("tensorrt" in {p.target for p in predictions}) == (device.compute_capability is not None)

    def test_every_row_of_a_batch_has_a_state_of_its_own(self) -> None:
        config, device = preset_config("206m"), find_device("n100")
        one, many = (predict(config, device, shipped_speed(), None, batch=batch)[0] for batch in (1, 16))
        assert many.state == 16 * one.state
        assert many.memory - one.memory == 2 * 15 * state_bytes(config)
        assert many.seconds is not None
        assert one.seconds is not None
        assert many.seconds > one.seconds

    @pytest.mark.parametrize("threads", [1, 3, 6, 12, 14])
    def test_bandwidth_is_measured_with_any_number_of_threads(self, threads: int) -> None:
        with ReadBandwidth(threads, 2**22) as probe:
            assert probe.measure(passes=2) > 0

    def test_measurements_survive_being_written(self) -> None:
        truth = TargetSpeed("native", "fp32", 1e-5, 0.9, 10**8, 1.0)
        speed = MachineSpeed("cpu", 2, "2026-01-01", BANDWIDTH, (truth,), {"numpy": "2"})
        assert MachineSpeed.from_json(json.loads(json.dumps(speed.to_json()))) == speed


def candidate(precision: str, weights: int, milliseconds: float, rate: float | None, fits: bool = True) -> Prediction:
    seconds = milliseconds / 1e3
    margin = None if rate is None else 1 / (rate * seconds)
    return Prediction("native", precision, weights, 0, 0, fits, 0.0, seconds, margin)


class TestMemory:
    def test_every_target_has_its_own(self) -> None:
        memory = {t: process_memory(t, "fp32", 10**6, 10**5) for t in ("native", "onnxruntime", "openvino", "tensorrt")}
        assert memory["native"] < memory["onnxruntime"] < memory["openvino"] < memory["tensorrt"]  # type: ignore[operator]
        assert process_memory("pytorch", "fp32", 10**6, 10**5) is None  # never measured

    @pytest.mark.parametrize("precision", [*PRECISIONS, MIXED])
    @pytest.mark.parametrize("target", ["onnxruntime", "openvino", "native", "tvm", "tensorrt"])
    def test_every_precision_has_an_answer(self, target: str, precision: str) -> None:
        needed = process_memory(target, precision, 10**8, 10**6)
        assert needed is not None and needed > 10**8

    @pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
    def test_the_system_keeps_the_same_for_itself_whoever_asks(self, device: DeviceProfile) -> None:
        from lram_export.targets.tensorrt.memory import Memory

        free = device.memory_for_programs
        assert free == device.memory - SYSTEM_BYTES
        assert Memory(free, free).fits(device) and not Memory(free + 1, free).fits(device)
        for p in predict(preset_config("408m"), device, shipped_speed(), None):
            assert p.fits == (p.memory <= free)


class TestChoice:
    def test_the_most_exact_with_a_comfortable_margin_is_chosen(self) -> None:
        options = [candidate("fp32", 4, 12, 50), candidate("int8", 1, 4, 50), candidate("bf16", 2, 9, 50)]
        chosen, reason = choose(options)
        assert chosen is not None
        assert chosen.precision == "bf16"
        assert "most exact" in reason

    def test_where_none_is_comfortable_the_fastest_that_keeps_the_rate(self) -> None:
        chosen, reason = choose([candidate("fp32", 4, 19, 50), candidate("int8", 1, 15, 50)])
        assert chosen is not None
        assert chosen.precision == "int8"
        assert "measure it there" in reason

    def test_where_none_keeps_the_rate_nothing(self) -> None:
        chosen, reason = choose([candidate("fp32", 4, 190, 50), candidate("int8", 1, 150, 50)])
        assert chosen is None
        assert reason == "none keeps the rate: the fastest, native at int8, is too slow"

    def test_what_does_not_fit_is_never_chosen(self) -> None:
        chosen, _ = choose([candidate("fp32", 4, 1, 50, fits=False), candidate("int8", 1, 4, 50)])
        assert chosen is not None
        assert chosen.precision == "int8"
        assert choose([candidate("fp32", 4, 1, 50, fits=False)])[0] is None


class TestProfiles:
    @pytest.mark.parametrize("name", list(DEVICES))
    def test_every_profile_is_whole(self, name: str) -> None:
        device = find_device(name)
        assert 4e9 <= device.memory <= 256e9
        assert 10e9 <= device.bandwidth <= 500e9
        assert 1 <= device.cores <= 64
        assert device.instruction_sets
        assert device.source
        assert device.machine in ("x86_64", "aarch64")


class TestCommand:
    def test_a_board_gets_a_table_and_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, "")  # nothing measured here
        document = json.loads(
            succeed("inspect", STATE_MS, "--device", "raspberry-pi-5", "--rate", "50", "--json").stdout
        )
        assert document["device"]["cores"] == 4
        assert MachineSpeed.from_json(document["measured"]) == shipped_speed()
        assert {"target", "precision", "floor", "seconds", "margin", "fits"} <= set(document["predictions"][0])
        assert document["choice"]["precision"] == "fp32"  # a tiny model
        text = succeed("inspect", STATE_MS, "--device", "raspberry-pi-5", "--rate", "50").output
        assert "Cortex-A76" in text
        assert "aarch64" in text
        assert "at 50 Hz" in text
        assert "assumed: this device computes as fast" in text

    def test_a_bundle_can_be_asked_about_too(self, tmp_path: Path) -> None:
        options = ("--task", "metaworld/reach-v2", "--target", "native", "--reference-steps", "4", "--no-report")
        succeed("export", STATE_MS, "-o", tmp_path / "a.lram", *options)
        text = succeed("inspect", tmp_path / "a.lram", "--device", "agx-orin").output
        assert "tensorrt" in text
        assert "not measured" in text

    def test_a_checkpoint_is_counted_for_a_task_of_the_table(self) -> None:
        def weights(*options: str) -> int:
            arguments = ("inspect", STATE_MS, "--device", "n100", "--json", *options)
            return int(json.loads(succeed(*arguments).stdout)["predictions"][0]["weights"])

        config = load_checkpoint(STATE_MS).config
        assert weights() == weight_bytes(config, "fp32")
        task = resolve_task("metaworld/reach-v2")
        assert weights("--task", "metaworld/reach-v2") == weight_bytes(config, "fp32", task) < weights()
        # the table does not say how many actions: as many as the model has
        assert weights("--task", "dmcontrol/cheetah-run") > weights("--task", "metaworld/reach-v2")

    @pytest.mark.parametrize("rate", [(), ("--rate", "50")])
    def test_nothing_is_broken_at_80_columns(self, rate: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lram_export.cli.console._console", lambda: Console(width=80, highlight=False))
        out = succeed("inspect", STATE_MS, "--device", "agx-orin", *rate).output
        rows = [line for line in out.splitlines() if "tensorrt" in line and "fp16" in line]
        assert len(rows) == 1  # one line per target and precision
        assert len(rows[0]) <= 80
        for name in ("onnxruntime", "openvino", "native", "tvm"):
            assert sum(line.strip(" │").startswith(name) for line in out.splitlines()) >= 2

    @pytest.mark.slow
    def test_this_machine_is_measured_once_and_remembered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
        monkeypatch.setattr(measuring, "PRECISIONS_MEASURED", ("fp32", "int8"))
        monkeypatch.setattr(measuring, "BLOCKS", 1)
        monkeypatch.setattr(measuring, "STEPS", {"16m": 10, "206m": 10})
        monkeypatch.setattr(measuring, "BANDWIDTH_SIZES", (2**22, 2**24))
        speed = measure_machine(["native"])
        assert [(t.target, t.precision) for t in speed.targets] == [("native", "fp32"), ("native", "int8")]
        assert set(speed.bandwidth) == {2**22, 2**24}
        assert measured_speed(["native"]) == speed
        assert measured_speed(["native", "tvm"]) is None  # measured with other targets
        assert this_device(speed).source.startswith("targets measured on 20")
        monkeypatch.setattr("lram_export.cli.prediction.MEASURABLE", ("native",))
        document = json.loads(succeed("inspect", STATE_MS, "--device", "here", "--rate", "50", "--json", "-q").stdout)
        assert document["device"]["name"] == "here"
        assert [(p["target"], p["precision"]) for p in document["predictions"]] == [
            ("native", "fp32"), ("native", "int8"),
        ]  # fmt: skip
        kept = {t["precision"]: t["per_block"] for t in document["measured"]["targets"]}
        assert kept == {t.precision: t.per_block for t in speed.targets}  # not measured again
        assert all(p["seconds"] > 0 for p in document["predictions"])
        monkeypatch.setattr(measuring, "measure_bandwidth", lambda threads: {2**22: 5e9})
        assert with_bandwidth_now(speed) == speed.with_bandwidth({2**22: 5e9})

    def test_wrong_questions_are_refused(self) -> None:
        line = fail("inspect", STATE_MS, "--device", "toaster")[1]
        assert line.startswith("error: --device: unknown device 'toaster'; known: jetson-orin-nano, orin-nx")
        assert line.endswith("lram_export/system/devices.py: memory, bandwidth, cores, instruction sets")
        assert fail("inspect", STATE_MS, "--rate", "50")[1] == "error: --rate, --task, --measure: only with --device"
        assert (
            fail("inspect", STATE_MS, "--device", "n100", "--measure")[1] == "error: --measure: only with --device here"
        )

    def test_an_export_for_a_board_without_a_gpu_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        line = fail(
            "export", STATE_MS, "-o", tmp_path / "a.lram", "--task", "metaworld/reach-v2",
            "--target", "tensorrt", "--device", "n100",
        )[1]  # fmt: skip
        assert "has no NVIDIA GPU" in line
        assert "inspect ... --device n100" in line

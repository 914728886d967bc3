"""What an artifact of the target `native` says of its robot is what the bundle's manifest says."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import BundleError, ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.exporters.native.exporter import pack
from lram_export.lowering import lower
from lram_export.spec.interface import FieldInterface, Interface, Limits, Normalization, Safety, Scaling
from lram_export.spec.tensors import MAX_FLOAT32
from lram_export.system.files import file_sha256
from lram_export.targets.native.format import BLOCK_BYTES, CHECKSUM_START, ENTRY_BYTES, HEADER_BYTES, TOKEN_BYTES, Role
from tests.conftest import load_golden

native = pytest.importorskip("lram_export._native")

NAME = "é" * 40
"""Longer than an artifact has room for, in bytes."""
ROBOT = Interface(
    62.5,
    {
        "observation": FieldInterface(
            ("hip", NAME), ("rad", "rad/s"), Limits((-3.0, -0.1), 9.5), Normalization(0.5, 2.0)
        )
    },
    {
        "action": FieldInterface(
            ("a", "b", "c"),
            ("N*m",),
            Limits((-10.0, -1.0, -0.1), (10.0, 1.0, 0.1)),
            scaling=Scaling(2.0),
            safety=Safety((4.0, 0.3, 1e-3), 7, 0.05),
        )
    },
)


def module_bundle(path: Path, interface: Interface) -> Bundle:
    policy = StepPolicy(torch.nn.Linear(2, 3), observation=2, action=3, interface=interface)
    return export_bundle(policy, None, path, ExportOptions(("native",), report=False))


def model_bundle(path: Path, name: str, interface: Interface) -> Bundle:
    golden = load_golden(name)
    options = ExportOptions(("native",), report=False, interface=interface)
    return export_bundle(load_checkpoint(golden.checkpoint), golden.task, path, options)


def opened(bundle: Bundle) -> Any:
    return native.Model(str(bundle.path / "native" / "model.lrn"), threads=1)


def single(number: float) -> float:
    return float(np.float32(number))


def test_a_module_tells_all_of_it(tmp_path: Path) -> None:
    bundle = module_bundle(tmp_path / "p.lram", ROBOT)
    assert bundle.artifact("native").tools["format"] == "program 2"
    rate, inputs, outputs = opened(bundle).interface
    assert rate == 62.5
    assert inputs == {
        "observation": (
            0,
            [("hip", "rad", -3.0, 9.5, None, None), ("é" * 35, "rad/s", single(-0.1), 9.5, None, None)],
        )
    }
    limits, changes = (10.0, 1.0, single(0.1)), (4.0, single(0.3), single(1e-3))
    elements = zip("abc", limits, changes, strict=True)
    expected = [(name, "N*m", -limit, limit, change, single(0.05)) for name, limit, change in elements]
    assert outputs == {"action": (7, expected)}
    load_policy(bundle.path, "native", threads=1).close()


def test_one_fact_for_all_elements_is_stored_once(tmp_path: Path) -> None:
    field = FieldInterface(units=("N*m",), limits=Limits(-1.0, 1.0))
    bundle = module_bundle(tmp_path / "p.lram", Interface(None, {}, {"action": field}))
    assert opened(bundle).interface == (0.0, {}, {"action": (0, [("", "N*m", -1.0, 1.0, None, None)])})
    load_policy(bundle.path, "native", threads=1).close()


def test_a_discrete_action_tells_its_choices(tmp_path: Path) -> None:
    golden = load_golden("image_m")
    count = lower(load_checkpoint(golden.checkpoint), golden.task, name="p").spec.outputs[1].shape[1]
    names = tuple(f"choice {i}" for i in range(count))
    fields = {"observation": FieldInterface(units=("pixel",))}, {"action": FieldInterface(names, ("1",))}
    bundle = model_bundle(tmp_path / "p.lram", "image_m", Interface(30.0, *fields))
    rate, inputs, outputs = opened(bundle).interface
    assert (rate, inputs) == (30.0, {"observation": (0, [("", "pixel", None, None, None, None)])})
    assert outputs == {"action": (0, [(name, "1", None, None, None, None) for name in names])}
    load_policy(bundle.path, "native", threads=1).close()


@pytest.mark.parametrize(
    ("field", "side", "version"),
    [
        (FieldInterface(), "action", "3"),
        (FieldInterface(normalization=Normalization(0.5)), "observation", "4"),
        (FieldInterface(scaling=Scaling(2.0)), "action", "4"),
        (FieldInterface(limits=Limits(-1.0, 1.0)), "action", "5"),
        (FieldInterface(units=("m",)), "observation", "5"),
        (FieldInterface(safety=Safety(most_change=0.5)), "action", "5"),
    ],
)
def test_it_is_written_as_the_oldest_version_that_holds_it(
    field: FieldInterface, side: str, version: str, tmp_path: Path
) -> None:
    interface = Interface(**{side: {side: field} if field != FieldInterface() else {}})
    bundle = model_bundle(tmp_path / "model.lram", "state_ms", interface)
    module = module_bundle(tmp_path / "module.lram", interface)
    told = f"program {2 if version == '5' else 1}"
    for each, said in ((bundle, version), (module, told)):
        assert each.artifact("native").tools["format"] == said
        assert (each.path / "native" / "model.lrn").read_bytes()[8] == int(said[-1])
        load_policy(each.path, "native", threads=1).close()


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_model_says_what_its_actions_were_before_they_were_clamped() -> None:
    golden = load_golden("state_ms")
    of = FieldInterface(
        limits=Limits(-1.0, (0.5, *(9.0,) * (golden.task.action_dim - 1))),
        scaling=Scaling(tuple(np.linspace(1, 3, golden.task.action_dim)), 0.25),
    )
    checkpoint = load_checkpoint(golden.checkpoint)
    policy: Any = lower(checkpoint, golden.task, name="p", interface=Interface(None, {}, {"action": of}))
    shape = (golden.task.action_dim, -1)
    values, unclamped = (
        next(t.data.reshape(shape) for t in pack(policy).tensors if t.role == role)
        for role in (Role.ACTION_VALUES, Role.ACTION_UNCLAMPED)
    )
    assert of.limits is not None and of.scaling is not None
    bins = checkpoint.config.head.values().astype(np.float64)
    np.testing.assert_allclose(unclamped, np.outer(of.scaling.scale, bins) + 0.25, atol=1e-6)
    low, high = np.float32(of.limits.low), np.float32(of.limits.high)[:, None]
    np.testing.assert_array_equal(np.clip(unclamped, low, high), values)
    assert (values != unclamped)[0].any() and not (values != unclamped)[-1][values[-1] > -1].any()
    largest = dataclasses.replace(of, scaling=Scaling(3e38, 3e38))
    policy = lower(checkpoint, golden.task, name="p", interface=Interface(None, {}, {"action": largest}))
    (table,) = (t.data for t in pack(policy).tensors if t.role == Role.ACTION_UNCLAMPED)
    assert np.isfinite(table).all() and table.max() == np.float32(MAX_FLOAT32)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rate": lambda d: d.update(rate=63.0),
    "observation.observation.name": lambda d: d["observation"]["observation"].update(elements=["hop", NAME]),
    "observation.observation.unit": lambda d: d["observation"]["observation"].update(units="rad"),
    "observation.observation.low": lambda d: d["observation"]["observation"]["limits"].update(low=-4.0),
    "action.action.high": lambda d: d["action"]["action"]["limits"].update(high=[10.0, 1.0, 0.2]),
    "action.action.most_change": lambda d: d["action"]["action"]["safety"].pop("most_change"),
    "action.action.most_clamps": lambda d: d["action"]["action"]["safety"].update(most_clamps=8),
    "action.action.safe": lambda d: d["action"]["action"]["safety"].update(safe_action=0.0),
    "observation.observation": lambda d: d.update(observation={}),
}


@pytest.mark.parametrize("place", EDITS)
def test_an_edited_manifest_does_not_load(place: str, tmp_path: Path) -> None:
    bundle = module_bundle(tmp_path / "p.lram", ROBOT)
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    EDITS[place](document["interface"])
    path.write_text(json.dumps(document))
    with pytest.raises(
        BundleError, match=rf"interface\.{place}: the file says .*, the manifest .*was altered"
    ) as caught:
        load_policy(bundle.path, "native", threads=1)
    assert len(str(caught.value).splitlines()) == 1


def test_an_artifact_that_says_nothing_any_more_does_not_load(tmp_path: Path) -> None:
    """Its tensor is there, with another role."""
    bundle = model_bundle(tmp_path / "p.lram", "state_ms", Interface(50.0))
    model, manifest = bundle.path / "native" / "model.lrn", bundle.path / "manifest.json"
    content = bytearray(model.read_bytes())
    count, tokens, blocks = struct.unpack_from("<3I", content, CHECKSUM_START)
    tables = HEADER_BYTES + tokens * TOKEN_BYTES + blocks * BLOCK_BYTES
    entries = range(tables, tables + count * ENTRY_BYTES, ENTRY_BYTES)
    (entry,) = (at for at in entries if struct.unpack_from("<I", content, at)[0] == Role.INTERFACE)
    struct.pack_into("<I", content, entry, 30)
    model.write_bytes(content)
    document = json.loads(manifest.read_text())
    document["artifacts"][0]["files"][0]["sha256"] = file_sha256(model)
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"interface\.rate: the file says 0.0, the manifest 50.0"):
        load_policy(bundle.path, "native", threads=1)


def test_an_older_artifact_has_no_room_for_it(tmp_path: Path) -> None:
    bundle = module_bundle(tmp_path / "p.lram", Interface())
    manifest = bundle.path / "manifest.json"
    document = json.loads(manifest.read_text())
    document["interface"] = {"rate": 50.0, "observation": {}, "action": {}}
    manifest.write_text(json.dumps(document))
    load_policy(bundle.path, "native", threads=1).close()


def test_python_gets_what_the_policy_says_and_not_what_the_envelope_makes_of_it(tmp_path: Path) -> None:
    """Python has an envelope of its own, around every target."""
    bundle = module_bundle(tmp_path / "p.lram", ROBOT)
    model = opened(bundle)
    state = native.State(model, 1)
    observation, action, unclamped = np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 3), "f4")
    state.bind([observation, np.zeros(1, np.float32)], [action, unclamped])
    limits: Any = ROBOT.action["action"].limits
    for step in range(20):
        observation[:] = 1e4 * (-1) ** step
        state.step()
        np.testing.assert_array_equal(action, np.clip(unclamped, np.float32(limits.low), np.float32(limits.high)))
    assert (np.abs(action) == np.float32(limits.high)).all()

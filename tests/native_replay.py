"""The golden checkpoints' recorded steps, for `kernels/native/tests/test_replay.cpp` (its comment is the format).

python -m tests.native_replay FOLDER writes FOLDER/NAME-PRECISION.lrn and .steps, the same steps and bounds that
`lram-export verify` goes by: so that what has no Python, an emulated processor or a sanitizer, can be held to them.
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.spec.parity import tolerance
from lram_export.targets.backbones import targets_of
from lram_export.verification.verify import load_bundle_reference
from tests.conftest import GOLDEN_NAMES, load_golden, succeed

TARGET = "native"
INPUTS = ("observation", "return_to_go", "reward", "is_first")
"""In the order of the file; what a policy has no use for is 0."""
PRECISIONS = ("fp32", "int8", "int4")
"""Those with kernels of their own, but for `w8a8`, which takes so small a model further off than allowed."""
IN_GROUPS = "int8g"
"""Only for policies that know their robot: it is another layout of the same blocks."""

KNOWS_ITS_ROBOT = ("state_ms",)
"""Whose observations are normalized, and whose actions are scaled and clamped."""
ROBOT = """
observation: {observation: {normalization: {mean: 0.25, deviation: 1.75, clip: 1.5}}}
action: {action: {scaling: {scale: -2.5, offset: 0.125}, limits: {low: -1, high: 1.5}}}
"""


def write(folder: Path) -> None:
    """Write all recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in (name for name in GOLDEN_NAMES if TARGET in targets_of(load_golden(name).backbone)):
            for precision in (*PRECISIONS, *([IN_GROUPS] if name in KNOWS_ITS_ROBOT else [])):
                bundle = Path(temporary) / f"{name}-{precision}.lram"
                golden = load_golden(name)
                context = golden.context_options("none" if golden.meta["observation"] == "image" else "observed")
                if context:  # one in each, a little beyond it: an emulator takes long for a window
                    context += ["--reference-steps", "20"]
                robot = Path(temporary) / "robot.yaml"
                robot.write_text(ROBOT, encoding="utf-8")
                succeed(
                    "export",
                    *(golden.checkpoint, "-o", bundle, "--target", TARGET, "--precision", precision, "--batch", "2"),
                    *(*golden.task_options, *context, *(["--interface", robot] if name in KNOWS_ITS_ROBOT else [])),
                )
                model = next((bundle / TARGET).glob("*.lrn"))
                shutil.copyfile(model, folder / f"{bundle.stem}.lrn")
                (folder / f"{bundle.stem}.steps").write_bytes(b"".join(recording(Bundle.open(bundle))))


def recording(bundle: Bundle) -> Iterator[bytes]:
    """Everything in the file, in its order."""
    entry, reference = bundle.artifact(TARGET), load_bundle_reference(bundle)
    bounds = tolerance(entry.precision, entry.activations)
    yield struct.pack("<iiff", len(reference.inputs), bounds.relative, bounds.logit, bounds.state)
    names, no_reward = [t.name for t in bundle.manifest.spec.inputs], np.zeros(bundle.manifest.spec.batch_size, "f4")
    for arguments, action, logits in zip(reference.inputs, reference.action, reference.action_logits, strict=True):
        given = {"reward": no_reward, **dict(zip(names, arguments, strict=True))}
        inputs = (given[name] for name in INPUTS)
        yield from (np.ascontiguousarray(array).tobytes() for array in (*inputs, action, logits))
    for sample in reference.state_samples.values():
        yield sample.tobytes()


if __name__ == "__main__":
    write(Path(sys.argv[1]))

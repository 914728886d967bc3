"""The bundle's recorded steps, as the program `check` of a kit in C reads them.

``examples/check/recording.h`` says what lies where.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.reference import Reference, sample_stride
from lram_export.spec.parity import tolerance, typical_value
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.targets.native.format import DIGEST_BYTES, stored_name
from lram_export.verification.verify import load_bundle_reference

MAGIC = b"LRAMREF\n"
VERSION = 1
ELEMENTS = ("float32", "uint8", "int64")
"""In the order of ``lram_element``."""
VALUES, SCORES, CHOSEN, NUMBERS = range(4)
"""What an output can be."""


def pack_recording(bundle: Bundle, target: str) -> bytes:
    """What was recorded at the export, with the bounds that hold for a target; raises BundleError for a damaged one."""
    content = b"".join(_content(bundle, target, load_bundle_reference(bundle)))
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(content)) + content


def _content(bundle: Bundle, target: str, reference: Reference) -> Iterator[bytes]:
    manifest, entry = bundle.manifest, bundle.artifact(target)
    spec, bounds = manifest.spec, tolerance(entry.precision, entry.activations)
    yield _text(stored_name(manifest.name))
    yield _text(entry.precision)
    yield bytes.fromhex(manifest.source["sha256"]).ljust(DIGEST_BYTES, b"\0")  # "": not known
    yield struct.pack("<I3d", bounds.relative, bounds.logit, bounds.state, bounds.tie)
    counts = (len(spec.inputs), len(spec.outputs), len(spec.states))
    yield struct.pack("<5I", len(reference.inputs), spec.batch_size, *counts)
    for tensor in spec.inputs:
        yield _field(tensor)
    for place, tensor in enumerate(spec.outputs):
        yield _field(tensor)
        yield struct.pack("<IId", *_kind(spec, place), typical_value(reference.outputs[tensor.name]))
    for tensor in spec.states:
        yield _text(tensor.name) + struct.pack("<QQ", _size(tensor), sample_stride(tensor.size))
    for inputs, outputs in zip(reference.inputs, reference, strict=True):
        for tensor, values in zip((*spec.inputs, *spec.outputs), (*inputs, *outputs), strict=True):
            yield _bytes(values, tensor.dtype)
    for tensor in spec.states:
        yield _bytes(reference.state_samples[tensor.name], tensor.dtype)


def _kind(spec: StepSpec, place: int) -> tuple[int, int]:
    """What an output is, and the place of the scores that it is chosen from, if any."""
    if place in spec.computed:
        return (SCORES if spec.are_scores(place) else VALUES), 0
    scores = spec.scores_of(spec.outputs[place])
    return (NUMBERS, 0) if scores is None else (CHOSEN, spec.outputs.index(scores))


def _field(tensor: TensorSpec) -> bytes:
    return _text(tensor.name) + struct.pack("<IQ", ELEMENTS.index(tensor.dtype), _size(tensor))


def _size(tensor: TensorSpec) -> int:
    """Elements of a row."""
    return tensor.size // tensor.shape[0]


def _bytes(values: NDArray[np.generic], dtype: str) -> bytes:
    return np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")).tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data

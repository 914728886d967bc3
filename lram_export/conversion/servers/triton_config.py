"""`config.pbtxt` of a model that Triton serves by sequences: who asks says of which robot a request is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lram_export.conversion.formats import Options
from lram_export.conversion.servers.pbtxt import Word
from lram_export.spec.tensors import TensorSpec

TYPES = {"float32": Word("TYPE_FP32"), "uint8": Word("TYPE_UINT8"), "int64": Word("TYPE_INT64")}
MAX_BATCH, SEQUENCES, IDLE_SECONDS = 32, 64, 60.0
"""Defaults: rows of a batch, sequences at a time, and how long one may wait for its next request. Triton's own of a
second would end the episode of a robot that pauses."""
CONFIG_FILE = "config.pbtxt"


def model_config(
    name: str, backend: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], options: Options
) -> dict[str, Any]:
    """What every configuration says."""
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": options.max_batch or MAX_BATCH,
        "input": [_port(tensor) for tensor in inputs],
        "output": [_port(tensor) for tensor in outputs],
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
    }


def sequence_batching(
    options: Options, controls: Sequence[dict[str, Any]], states: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """How sequences are served: the requests that have waited longest make a batch."""
    seconds = IDLE_SECONDS if options.idle is None else options.idle
    found = {
        "max_sequence_idle_microseconds": max(int(seconds * 1e6), 1),
        "oldest": {"max_candidate_sequences": options.sequences or SEQUENCES},
        "control_input": list(controls),
    }
    return {**found, "state": list(states)} if states else found


def flag(name: str, kind: str) -> dict[str, Any]:
    """An input that the server sets to 1 at the ``kind`` of step, ``START`` or ``END``, else to 0."""
    return {"name": name, "control": [{"kind": Word(f"CONTROL_SEQUENCE_{kind}"), "fp32_false_true": [0, 1]}]}


def sequence_id(name: str) -> dict[str, Any]:
    """An input that the server sets to the number of the sequence."""
    return {"name": name, "control": [{"kind": Word("CONTROL_SEQUENCE_CORRID"), "data_type": Word("TYPE_UINT64")}]}


def state(into: str, out: str, dims: Sequence[int]) -> dict[str, Any]:
    """A state that the server keeps. It starts at zero: without that it starts with whatever is in memory."""
    described = {"data_type": TYPES["float32"], "dims": list(dims)}
    zero = {**described, "name": "zero", "zero_data": True}
    return {"input_name": into, "output_name": out, **described, "initial_state": [zero]}


def _port(tensor: TensorSpec) -> dict[str, Any]:
    """Sizes are those behind the rows, and there is at least one."""
    return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": list(tensor.shape[1:]) or [1]}

"""The messages of ``policy.proto``, and arrays in them.

The classes are made when this module is imported, from the table below, by whatever protobuf is installed. What
`protoc` generates would run with the protobuf of its own major version and the next only, and others in the robot's
environment want one, too. A test compiles ``policy.proto`` and compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from lram_export.spec.tensors import MOST_DIMENSIONS

PROTOCOL = 1
PACKAGE = "lram.serving.v1"
SERVICE = f"{PACKAGE}.Policy"
HEALTH_SERVICE = "grpc.health.v1.Health"
_CALL = (("session", "bytes"), ("number", "uint64"))
_ANSWER = (("refusal", "Refusal"), ("number", "uint64"))
MESSAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "Tensor": (("name", "string"), ("dtype", "string"), ("shape", "uint64*"), ("data", "bytes")),
    "Refusal": (("kind", "string"), ("text", "string")),
    "OpenRequest": (
        *(("protocol", "uint32"), ("nonce", "bytes"), ("bundle", "string"), ("robot", "string")),
        ("outputs", "string*"),
    ),
    "OpenAnswer": (("session", "bytes"), ("description", "string"), ("idle_seconds", "double")),
    "StepRequest": (*_CALL, ("observations", "Tensor*"), ("reward", "double?"), ("first", "bool?")),
    "StepAnswer": (*_ANSWER, ("outputs", "Tensor*"), ("return_to_go", "Tensor")),
    "ResetRequest": (*_CALL, ("target_return", "double?")),
    "ResetAnswer": (*_ANSWER, ("return_to_go", "Tensor")),
    "HoldRequest": (*_CALL, ("actions", "Tensor*")),
    "HoldAnswer": _ANSWER,
    "SaveRequest": _CALL,
    "SaveAnswer": (*_ANSWER, ("state", "Tensor*")),
    "LoadRequest": (*_CALL, ("state", "Tensor*"), ("force", "bool")),
    "LoadAnswer": (*_ANSWER, ("return_to_go", "Tensor")),
    "CountRequest": _CALL,
    "CountAnswer": (*_ANSWER, ("counts", "Tensor*")),
    "CloseRequest": (("session", "bytes"),),
    "CloseAnswer": (),
}
"""Message -> its fields with their types, numbered from 1 on; ``*``: any number of it, ``?``: may be absent."""
METHODS = ("Open", "Step", "Reset", "Hold", "Save", "Load", "Count", "Close")
"""Calls of one message and one answer; and ``Steps``: a stream of steps."""
DTYPES = (
    "float32",
    "float64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
MOST_TENSORS = 1 << 14
"""In one message: the state of the largest model."""

_DTYPES = {name: np.dtype(name) for name in DTYPES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_WIRE = {name: dtype.newbyteorder("<") for name, dtype in _DTYPES.items()}
_SCALARS = {"double": 1, "uint64": 4, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}


def file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """``policy.proto`` without its comments, as protobuf describes files."""
    file = descriptor_pb2.FileDescriptorProto(name="policy.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, said) in enumerate(fields, 1):
            kind = said.rstrip("*?")
            field = message.field.add(name=field_name, number=number, label=3 if said.endswith("*") else 1)
            field.type = _SCALARS.get(kind, 11)
            if kind not in _SCALARS:
                field.type_name = f".{PACKAGE}.{kind}"
            if said.endswith("?"):  # as protoc says it: a choice between this and nothing
                field.oneof_index, field.proto3_optional = len(message.oneof_decl), True
                message.oneof_decl.add(name=f"_{field_name}")
    service = file.service.add(name="Policy")
    for method in METHODS:
        service.method.add(
            name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Answer"
        )
    steps = service.method.add(name="Steps", input_type=f".{PACKAGE}.StepRequest", output_type=f".{PACKAGE}.StepAnswer")
    steps.client_streaming = steps.server_streaming = True
    return file


def _health() -> descriptor_pb2.FileDescriptorProto:
    """What of gRPC's own health protocol a probe needs."""
    file = descriptor_pb2.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    file.message_type.add(name="HealthCheckRequest").field.add(name="service", number=1, label=1, type=9)
    answer = file.message_type.add(name="HealthCheckResponse")
    answer.field.add(name="status", number=1, label=1, type=13)  # an enumeration is a number on the wire
    return file


_pool = descriptor_pool.DescriptorPool()  # of our own: others may have loaded these files, too
for _file in (file_descriptor(), _health()):
    _pool.Add(_file)


@cache
def message(name: str, package: str = PACKAGE) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{package}.{name}"))


def parse(kind: Any, data: bytes) -> Any:
    """A message from its bytes; raises ValueError where they are none."""
    found = kind()
    try:
        found.ParseFromString(data)
    except DecodeError:
        raise ValueError(f"expected a message {kind.DESCRIPTOR.full_name}, got {len(data)} other bytes") from None
    return found


def put(tensors: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Append arrays to a repeated field of tensors."""
    for name, array in arrays.items():
        put_one(tensors.add(), name, array)


def put_one(tensor: Any, name: str, array: NDArray[Any]) -> None:
    """Fill one tensor."""
    dtype = _NAMES.get(array.dtype) or array.dtype.name  # which takes numpy its time
    tensor.name, tensor.dtype = name, dtype
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_WIRE.get(dtype, array.dtype), copy=False).tobytes()


def taken(tensors: Iterable[Any]) -> dict[str, NDArray[Any]]:
    """Arrays of a repeated field of tensors, by name; new ones.

    Raises:
        ValueError: a type that is not known, a shape that does not fit the bytes, or a name twice.
    """
    found: dict[str, NDArray[Any]] = {}
    for number, tensor in enumerate(tensors):
        if number >= MOST_TENSORS or tensor.name in found:
            raise ValueError(f"{tensor.name[:40]!r}: expected every tensor once, and at most {MOST_TENSORS}")
        found[tensor.name] = taken_one(tensor)
    return found


def taken_one(tensor: Any) -> NDArray[Any]:
    """The array in a tensor; raises ValueError."""
    said, shape, data = tensor.dtype, tuple(tensor.shape), tensor.data
    dtype = _WIRE.get(said)
    if dtype is None:
        raise ValueError(f"{tensor.name[:40]!r}: expected a dtype of {', '.join(DTYPES)}, got {said[:40]!r}")
    if len(shape) > MOST_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(
            f"{tensor.name[:40]!r}: expected {said} of shape {list(shape[:MOST_DIMENSIONS])}, got {len(data)} bytes"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(_DTYPES[said])

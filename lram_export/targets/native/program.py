"""The traced step of a module as it lies on disk; the other side is `kernels/native/src/program/format.h`."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from lram_export.spec.tensors import StateSpec, TensorSpec
from lram_export.targets.native.format import NAME_BYTES, Tensor, has_wide_groups, write_file

MAGIC = b"LRAMSTP\n"
PROGRAM_VERSION = 3
INTERFACE_VERSION = 2
"""The first that may say what the numbers of a robot are."""
OLDEST_VERSION = 1
"""What says nothing of its robot, and has no layout of a later version, is written so, for libraries that know no
later one."""
HEADER_BYTES = 144
FIELD_EXTENTS, FIELD_NAME = 7, 72
ELEMENTS = ("float32", "uint8", "int64")
"""Types of fields, by their number in the format."""
STRIDE = 16
"""Every buffer has room for a multiple of so many floats per row."""


class Operation(IntEnum):
    """What an instruction does, see the format."""

    POINTWISE = 0
    COPY = 1
    GATHER = 2
    DENSE = 3
    REDUCE = 4
    PRODUCT = 5


class Function(IntEnum):
    """A function of two numbers, then of one, then of three."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    MINIMUM = 4
    MAXIMUM = 5
    POWER = 6
    REMAINDER = 7
    EQUAL = 8
    NOT_EQUAL = 9
    LESS = 10
    LESS_EQUAL = 11
    GREATER = 12
    GREATER_EQUAL = 13
    BOTH = 14
    EITHER = 15
    ARCTANGENT_OF_TWO = 16
    NEGATIVE = 17
    ABSOLUTE = 18
    SIGN = 19
    FLOOR = 20
    CEILING = 21
    ROUND = 22
    TRUNCATE = 23
    SQUARE_ROOT = 24
    RECIPROCAL_SQUARE_ROOT = 25
    RECIPROCAL = 26
    EXPONENTIAL = 27
    EXPONENTIAL_LESS_ONE = 28
    LOGARITHM = 29
    LOGARITHM_OF_ONE_MORE = 30
    SINE = 31
    COSINE = 32
    ARCTANGENT = 33
    ERROR_FUNCTION = 34
    HYPERBOLIC_TANGENT = 35
    SIGMOID = 36
    RECTIFY = 37
    SILU = 38
    GELU = 39
    OPPOSITE = 40
    CHOOSE = 41
    CLAMP = 42
    MULTIPLY_ADD = 43


class Reduction(IntEnum):
    """What becomes of the last axis."""

    SUM = 0
    PRODUCT = 1
    LARGEST = 2
    SMALLEST = 3
    PLACE_OF_LARGEST = 4
    PLACE_OF_SMALLEST = 5


class BufferKind(IntEnum):
    """Where the numbers of a buffer are."""

    ARENA = 0
    STATE = 1
    CONSTANT = 2


@dataclass(frozen=True)
class Place:
    """Where numbers of a row begin: a buffer, and floats from its start."""

    buffer: int
    offset: int = 0


NOWHERE = Place(0xFFFFFFFF, 0)
"""That of an operand that is not there."""


@dataclass(frozen=True)
class BufferEntry:
    """A buffer: ``number`` is where it begins in the arena, or that of its state or tensor; ``stride`` its floats per
    row, 0 for those that all rows share."""

    kind: BufferKind
    number: int
    stride: int

    def pack(self) -> bytes:
        """As it lies in the file."""
        return struct.pack("<4I", self.kind, self.number, self.stride, 0)


@dataclass(frozen=True)
class Instruction:
    """An instruction: at most 6 sizes, and operands, the first of which is the result."""

    operation: Operation
    sizes: tuple[int, ...]
    operands: tuple[Place, ...]
    function: int = 0

    def pack(self) -> bytes:
        """As it lies in the file, filled up with zeros and with operands that are not there."""
        sizes = (*self.sizes, *(6 - len(self.sizes)) * (0,))
        places = (*self.operands, *(4 - len(self.operands)) * (NOWHERE,))
        numbers = [number for place in places for number in (place.buffer, place.offset)]
        return struct.pack("<16I", self.operation, self.function, *sizes, *numbers)


@dataclass(frozen=True)
class FieldEntry:
    """An input, an output or a state of a step, see the format."""

    tensor: TensorSpec
    place: Place
    initial_tensor: int = 0
    read: bool = False

    def pack(self) -> bytes:
        """As it lies in the file."""
        extents = self.tensor.shape[1:]
        filled = (*extents, *(FIELD_EXTENTS - len(extents)) * (0,))
        initial = self.tensor.initial if isinstance(self.tensor, StateSpec) else 0.0
        return struct.pack(
            f"<{FIELD_NAME}s2I{FIELD_EXTENTS}I3IfI",
            self.tensor.name.encode(),
            ELEMENTS.index(self.tensor.dtype),
            len(extents),
            *filled,
            self.place.buffer,
            self.place.offset,
            self.initial_tensor,
            initial or 0.0,
            self.read,
        )


@dataclass(frozen=True)
class Program:
    """A step of one row: fields in the order of the manifest, buffers, instructions in their order, tensors by number.

    ``arena`` is how many floats per row all buffers of a step need, ``planes`` that of a
    :class:`~lram_export.targets.native.format.Header`. ``interface``: what it says of its robot, see ``interface.py``.
    """

    inputs: tuple[FieldEntry, ...]
    outputs: tuple[FieldEntry, ...]
    states: tuple[FieldEntry, ...]
    buffers: tuple[BufferEntry, ...]
    instructions: tuple[Instruction, ...]
    tensors: tuple[Tensor, ...] = field(repr=False)
    arena: int
    planes: int
    interface: Tensor | None = field(default=None, repr=False)

    @property
    def version(self) -> int:
        """The oldest version of the format that has all of it."""
        if has_wide_groups(self.tensors):
            return PROGRAM_VERSION
        return OLDEST_VERSION if self.interface is None else INTERFACE_VERSION

    @property
    def all_tensors(self) -> tuple[Tensor, ...]:
        """As they lie in the file: what is said of the robot is the last one."""
        if self.interface is None:
            return self.tensors
        return (*self.tensors, dataclasses.replace(self.interface, number=len(self.tensors)))


@dataclass(frozen=True)
class ProgramHeader:
    """What the header says beside what is counted; ``name`` is what is left by
    :func:`~lram_export.targets.native.format.stored_name`."""

    batch: int
    planes: int
    name: str
    source_sha256: str

    @staticmethod
    def unpack(data: bytes) -> ProgramHeader:
        """From the first bytes of an artifact; raises ValueError."""
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise ValueError("magic: not the traced step of a module")
        *_, batch, _, planes, _, _, name, digest = struct.unpack_from(_HEADER, data, 40)
        return ProgramHeader(batch, planes, name.rstrip(b"\0").decode(), digest.hex() if any(digest) else "")


_HEADER = f"<11I{NAME_BYTES}s32s"


def write_program(path: Path, program: Program, header: ProgramHeader) -> None:
    """Write header, tables and tensors."""
    fields = (*program.inputs, *program.outputs, *program.states)
    counts = (len(program.inputs), len(program.outputs), len(program.states), len(program.buffers))
    front = struct.pack(
        _HEADER,
        *counts,
        len(program.instructions),
        len(program.all_tensors),
        header.batch,
        program.arena,
        program.planes,
        0,
        0,
        header.name.encode(),
        bytes.fromhex(header.source_sha256),
    )
    tables = b"".join(entry.pack() for entry in _entries(fields, program.buffers, program.instructions))
    write_file(path, MAGIC, program.version, HEADER_BYTES, front + tables, program.all_tensors)


def _entries(*tables: Sequence[FieldEntry | BufferEntry | Instruction]) -> list[FieldEntry | BufferEntry | Instruction]:
    return [entry for table in tables for entry in table]

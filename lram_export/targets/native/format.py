"""The artifact ``model.lrn`` as it lies on disk; the other side is `kernels/native/src/format.h`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.precision import WIDE_GROUP
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.spec.tokens import Token
from lram_export.targets.layout import (
    TILE,
    input_major,
    int4_octets,
    int8_offsets,
    int8_quads,
    int8g_quads,
    tiles,
    wide_groups,
)

MAGIC = b"LRAMNAT\n"
FORMAT_VERSION = 7
OLDEST_VERSION = 3
"""What has no tensor of :data:`SINCE`, nor a layout of a later version, is written so, for libraries that know no later
one."""
HEADER_BYTES = 192
TOKEN_BYTES = 8
BLOCK_BYTES = 64
ENTRY_BYTES = 48
CHECKSUM_START = 40
ALIGNMENT = 64
CHUNK_WORDS = 1 << 20
NAME_BYTES = 28
DIGEST_BYTES = 32


class Role(IntEnum):
    """What a tensor is, where it belongs to no block; its number is what is said here, else 0."""

    EMBED_WEIGHT = 1
    """Number: of the token."""
    EMBED_BIAS = 2
    EMBED_NORM_WEIGHT = 3
    EMBED_NORM_BIAS = 4
    IMAGE_WEIGHT = 5
    """Number: of the convolution."""
    IMAGE_BIAS = 6
    POST_NORM = 7
    HEAD = 8
    HEAD_BIAS = 9
    POST_NORM_BIAS = 10
    OBSERVATION_MEAN = 11
    OBSERVATION_DEVIATION = 12
    OBSERVATION_CLIP = 13
    ACTION_VALUES = 14
    """What a continuous action can be, one for each of its logits."""
    INTERFACE = 15
    """What the numbers of a robot are, see ``interface.py``; in files of both kinds."""
    ACTION_UNCLAMPED = 16
    """What :attr:`ACTION_VALUES` were before limits clamped them."""
    STATE_FORMAT = 17
    """How states keep large matrices unless whoever opens the file says, by its place in
    :data:`~lram_export.spec.parity.STATE_FORMATS`; float32 where it is missing."""


NO_WEIGHTS = frozenset({Role.INTERFACE, Role.STATE_FORMAT})
"""What a step does not read."""


SINCE = {
    **dict.fromkeys((Role.OBSERVATION_MEAN, Role.OBSERVATION_DEVIATION, Role.OBSERVATION_CLIP, Role.ACTION_VALUES), 4),
    **dict.fromkeys((Role.INTERFACE, Role.ACTION_UNCLAMPED), 5),
    Role.STATE_FORMAT: 7,
}
"""Role of a tensor that the oldest version does not know -> the first one that does."""

GROUPS_SINCE = 6
"""The first version that knows the layout of `int8g`."""

FIRST_BLOCK_ROLE = 32
"""From here on roles are those of a block, whose number is the tensor's; each kind of block has its own."""


class NormKind(IntEnum):
    """The norm before the head."""

    LAYER = 0
    LAYER_WITH_BIAS = 1
    RMS = 2


INPUTS = ("observation", "return_to_go", "reward")
"""What a token can embed, by its number in the format."""


TWO_PLANES = 0x100
"""Added to a layout: see :class:`Tensor`."""


class Layout(IntEnum):
    """How a tensor lies in the file."""

    PLAIN_FLOAT32 = 0
    TILED_FLOAT32 = 1
    TILED_INT8 = 2
    TILED_INT4 = 3
    TILED_INT8G = 4


class Presence(IntEnum):
    """When a token is there."""

    ALWAYS = 0
    NOT_AT_START = 1
    """Skipped in the first step of an episode."""
    ZERO = 2
    """Always that of an input of 0, which a step is not given."""

    @staticmethod
    def of(token: Token) -> Presence:
        """That of a token of a model."""
        return Presence.NOT_AT_START if token.skipped_at_start else Presence.ZERO if token.zero else Presence.ALWAYS


@dataclass(frozen=True)
class TokenEntry:
    """A token of a step: the input that it embeds, one of :data:`INPUTS`, and when it is there."""

    input: str
    presence: Presence

    def pack(self) -> bytes:
        """As it lies in the file."""
        return struct.pack("<II", INPUTS.index(self.input), self.presence)


@dataclass(frozen=True)
class BlockEntry:
    """A block: its kind, and what its kind makes of some integers (at most 11) and floats (at most 4)."""

    kind: int
    integers: tuple[int, ...]
    floats: tuple[float, ...]

    def pack(self) -> bytes:
        """As it lies in the file, filled up with zeros."""
        integers = (*self.integers, *(11 - len(self.integers)) * (0,))
        floats = (*self.floats, *(4 - len(self.floats)) * (0.0,))
        return struct.pack("<12I4f", self.kind, *integers, *floats)


@dataclass(frozen=True)
class Header:
    """The numbers of the header, in their order, but for those of its tables.

    ``name`` is what is left of the policy's by :func:`stored_name`, ``source_sha256`` the checkpoint's; both are "" in
    an artifact that does not say what it is.
    """

    read_token: int
    batch: int
    hidden: int
    observation: int
    observation_dim: int
    image_channels: int
    image_height: int
    image_width: int
    action: int
    action_dim: int
    action_tokens: int
    discrete_actions: int
    action_channels: int
    planes: int
    feedback: int
    embed_epsilon: float
    norm_epsilon: float
    target_return: float
    reward_scale: float
    norm: int
    name: str
    source_sha256: str

    def pack(self, tensors: int, tokens: int, blocks: int) -> bytes:
        """Everything after the checksum."""
        *numbers, name, digest = (getattr(self, f.name) for f in fields(self))
        return struct.pack(_HEADER, tensors, tokens, blocks, *numbers, name.encode(), bytes.fromhex(digest))

    @staticmethod
    def unpack(data: bytes) -> Header:
        """The inverse of :meth:`pack`, from the first bytes of an artifact; raises ValueError."""
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise ValueError("magic: not an artifact of the target `native`")
        _, _, _, *numbers, name, digest = struct.unpack_from(_HEADER, data, CHECKSUM_START)
        texts = name.rstrip(b"\0").decode(), digest.hex() if any(digest) else ""
        return Header(**dict(zip((f.name for f in fields(Header)), (*numbers, *texts), strict=True)))


_HEADER = f"<3I15I4fI{NAME_BYTES}s{DIGEST_BYTES}s"


def version_of(data: bytes) -> int:
    """The version of a file of either kind, from its first bytes."""
    (version,) = struct.unpack_from("<I", data, len(MAGIC))
    return int(version)


def keeps_matrices(spec: StepSpec, task: TaskSpec | None) -> bool:
    """Whether the state has matrices C, which can be kept in several formats; that of a module of one's own, which has
    no task, has none."""
    return task is not None and any(tensor.name.endswith(".C") for tensor in spec.states)


def stored_name(name: str, room: int = NAME_BYTES) -> str:
    """The beginning of a name for which there is room, as in a header: whole characters, and a zero behind them."""
    return name.encode(errors="replace")[: room - 1].decode(errors="ignore")


def step_fields(spec: StepSpec, task: TaskSpec, *, one_plane: bool) -> dict[str, Any]:
    """The fields of a header that follow from what a step takes and gives, which a manifest says, too."""
    (observation,) = (t for t in spec.inputs if t.name == "observation")
    action, logits = spec.outputs
    image, discrete = len(observation.shape) == 4, action.dtype == "int64"
    channels, height, width = observation.shape[1:] if image else (0, 0, 0)
    return {
        "batch": spec.batch_size,
        "observation": int(image),
        "observation_dim": 0 if image else observation.shape[1],
        "image_channels": channels,
        "image_height": height,
        "image_width": width,
        "action": int(discrete),
        "action_dim": action.shape[1],
        "action_tokens": logits.shape[-1],
        "planes": 1 if one_plane else 2,
        "target_return": task.target_return,
        "reward_scale": task.reward_scale,
        "feedback": int(task.reward_feedback == "observed"),
    }


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``parts`` matrices (rows, cols), as bytes in the order in which they are written.

    ``role`` and ``number`` say which it is, see :class:`Role`. ``two_planes``: its input is kept in two planes of codes
    although the header says one. ``matrix``: the large matrix of the step graph that it holds, if it is one.
    """

    role: int
    number: int
    layout: Layout
    parts: int
    rows: int
    cols: int
    data: NDArray[Any]
    two_planes: bool = False
    matrix: str | None = None

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        return self.data.nbytes


def plain(role: int, number: int, values: NDArray[np.float32]) -> Tensor:
    """Floats one after the other."""
    rows, cols = values.size // values.shape[-1], values.shape[-1]
    data = np.ascontiguousarray(values, np.float32).reshape(-1)
    return Tensor(role, number, Layout.PLAIN_FLOAT32, 1, rows, cols, data)


def room_of(width: int) -> int:
    """What kernels compute for features of some width: the next multiple of 16."""
    return -(-width // 16) * 16


def spread(values: NDArray[Any], width: int | None = None) -> NDArray[np.float32]:
    """The last axis filled up with zeros to its room; with ``width`` each `width` of its elements by themselves."""
    parts = values.reshape(*values.shape[:-1], -1, width or values.shape[-1])
    padded = np.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, room_of(parts.shape[-1]) - parts.shape[-1])])
    filled: NDArray[np.float32] = padded.reshape(*values.shape[:-1], -1)
    return filled


def filled_tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A number per output of a matrix, filled up with zeros to whole tiles."""
    return np.pad(values, (0, -len(values) % TILE))


def tiled_float32(role: int, number: int, parts: Sequence[NDArray[np.float32]]) -> Tensor:
    """Per tile of 32 rows: (cols, 32)."""
    rows, cols = parts[0].shape
    data = np.ascontiguousarray(np.concatenate([input_major(part) for part in parts]))
    return Tensor(role, number, Layout.TILED_FLOAT32, len(parts), rows, cols, data)


def tiled_int8(role: int, number: int, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]) -> Tensor:
    """Per tile: 32 scales, 32 times -128 * sum of the row's codes, codes (cols / 4, 32, 4)."""
    rows, cols = parts[0][0].shape
    packed = [
        _bytes(tiles(scales[:, :1]).astype(np.float32), int8_offsets(codes), int8_quads(codes))
        for codes, scales in parts
    ]
    return Tensor(role, number, Layout.TILED_INT8, len(parts), rows, cols, np.concatenate(packed))


def tiled_int4(role: int, number: int, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]) -> Tensor:
    """Per tile and group of 64 inputs: 32 scales, then (8, 32, 4) bytes of two codes + 8."""
    rows, cols = parts[0][0].shape
    packed = []
    for codes, scales in parts:
        octets = int4_octets(codes)
        per_group = octets.reshape(octets.shape[0] * octets.shape[1], -1)
        scale = tiles(scales).astype(np.float32).transpose(0, 2, 1).reshape(len(per_group), -1)
        packed.append(_bytes(scale, per_group))
    return Tensor(role, number, Layout.TILED_INT4, len(parts), rows, cols, np.concatenate(packed))


def tiled_int8g(role: int, number: int, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]) -> Tensor:
    """Per tile and group of 128 inputs, of which the last may have fewer: 32 scales, then codes + 128 (inputs / 4, 32,
    4)."""
    rows, cols = parts[0][0].shape
    packed = []
    for codes, scales in parts:
        quads, of_group = int8g_quads(codes), tiles(scales).astype(np.float32)
        for group in range(wide_groups(cols)):
            inputs = slice(group * WIDE_GROUP // 4, (group + 1) * WIDE_GROUP // 4)
            packed.append(_bytes(of_group[..., group], quads[:, inputs]))
    per_part = len(packed) // len(parts)
    whole = [np.concatenate(packed[i * per_part : (i + 1) * per_part], axis=1) for i in range(len(parts))]
    return Tensor(role, number, Layout.TILED_INT8G, len(parts), rows, cols, np.concatenate(whole))


_TILED = {"int8": tiled_int8, "int8g": tiled_int8g, "int4": tiled_int4}
CODE_FORMATS = tuple(_TILED)
"""Formats of codes that kernels multiply with."""


def tiled_codes(
    role: int, number: int, weight_format: str, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]
) -> Tensor:
    """Codes and scales of matrices in one of :data:`CODE_FORMATS`."""
    return _TILED[weight_format](role, number, parts)


def write_artifact(
    path: Path, header: Header, tokens: Sequence[TokenEntry], blocks: Sequence[BlockEntry], tensors: Sequence[Tensor]
) -> None:
    """Write header, tables and tensors."""
    front = header.pack(len(tensors), len(tokens), len(blocks))
    tables = b"".join([*(token.pack() for token in tokens), *(block.pack() for block in blocks)])
    write_file(path, MAGIC, format_version(tensors), HEADER_BYTES, front + tables, tensors)


def format_version(tensors: Sequence[Tensor]) -> int:
    """The oldest version of the format that has all of these."""
    of_roles = max((SINCE[Role(t.role)] for t in tensors if t.role in SINCE), default=OLDEST_VERSION)
    return max(of_roles, GROUPS_SINCE if has_wide_groups(tensors) else OLDEST_VERSION)


def has_wide_groups(tensors: Sequence[Tensor]) -> bool:
    """Whether one has the layout of `int8g`, which older versions of either kind of file do not know."""
    return any(t.layout is Layout.TILED_INT8G for t in tensors)


def write_file(
    path: Path, magic: bytes, version: int, header_bytes: int, front: bytes, tensors: Sequence[Tensor]
) -> None:
    """Write what every kind of file begins with, the rest of the header and tables (``front``), then the directory of
    tensors and the tensors."""
    start = _aligned(CHECKSUM_START + len(front) + ENTRY_BYTES * len(tensors))
    offset = start
    for t in tensors:
        layout = t.layout | (TWO_PLANES if t.two_planes else 0)
        front += struct.pack("<4I4Q", t.role, t.number, layout, t.parts, t.rows, t.cols, offset, t.bytes)
        offset = _aligned(offset + t.bytes)
    with path.open("wb") as file:
        file.write(bytes(CHECKSUM_START))
        covered = _Checksummed(file)
        covered.write(np.frombuffer(front, np.uint8), start)
        for t in tensors:
            covered.write(t.data.reshape(-1).view(np.uint8), covered.position + _aligned(t.bytes))
        file.seek(0)
        file.write(magic + struct.pack("<IIQQQ", version, header_bytes, offset, *covered.checksum))


class _Checksummed:
    """Writes to a file from CHECKSUM_START on, and sums up: 32-bit words w_i and i * w_i, modulo 2^64."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._words = self._sum = self._weighted = 0
        self.position = CHECKSUM_START

    @property
    def checksum(self) -> tuple[int, int]:
        return self._sum % 2**64, self._weighted % 2**64

    def write(self, data: NDArray[np.uint8], until: int) -> None:
        """Write ``data`` and zeros up to the file position ``until``, a multiple of 8 away."""
        size = until - self.position
        for at in range(0, size, 4 * CHUNK_WORDS):
            chunk = data[at : at + 4 * CHUNK_WORDS]
            missing = min(size - at, 4 * CHUNK_WORDS) - chunk.size
            words = np.concatenate([chunk, np.zeros(missing, np.uint8)]).view("<u4")
            total = int(words.sum(dtype=np.uint64))
            weights = np.arange(1, words.size + 1, dtype=np.uint64)
            self._sum += total
            self._weighted += self._words * total + int((words * weights).sum(dtype=np.uint64))
            self._words += words.size
            self._file.write(words.tobytes())
        self.position = until


def _bytes(*arrays: NDArray[Any]) -> NDArray[np.uint8]:
    """Rows of several arrays with the same first axis, side by side as bytes."""
    return np.concatenate([np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in arrays], axis=1)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT

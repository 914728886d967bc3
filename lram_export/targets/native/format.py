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

from lram_export.model.config import FFN_ACTIVATIONS, ModelConfig
from lram_export.spec.precision import GROUP
from lram_export.spec.tasks import TaskSpec
from lram_export.targets.layout import input_major, int4_octets, int8_offsets, int8_quads, tiles

MAGIC = b"LRAMNAT\n"
FORMAT_VERSION = 1
HEADER_BYTES = 256
ENTRY_BYTES = 48
CHECKSUM_START = 40
ALIGNMENT = 64
CHUNK_WORDS = 1 << 20
NAME_BYTES = 28
DIGEST_BYTES = 32


class Id(IntEnum):
    """What a tensor is."""

    EMBED_REWARD_WEIGHT = 1
    EMBED_REWARD_BIAS = 2
    EMBED_RETURN_WEIGHT = 3
    EMBED_RETURN_BIAS = 4
    EMBED_OBSERVATION = 5
    EMBED_OBSERVATION_BIAS = 6
    EMBED_NORM_WEIGHT = 7
    EMBED_NORM_BIAS = 8
    IMAGE_WEIGHT = 9
    IMAGE_BIAS = 10
    POST_NORM = 11
    HEAD = 12
    HEAD_BIAS = 13
    NORM = 20
    CONV_WEIGHT = 21
    CONV_BIAS = 22
    HEAD_NORM = 23
    UP = 30
    QUERY_KEY_VALUE = 31
    GATE_WEIGHT = 32
    GATE_BIAS = 33
    SKIP = 34
    DOWN = 35
    FROM_CONV = 40
    FROM_INPUT = 41
    RECURRENT = 42
    GATE_BIASES = 43
    FFN_NORM = 44
    FFN_UP = 45
    FFN_DOWN = 46


TWO_PLANES = 0x100
"""Added to a layout: see :class:`Tensor`."""


class Layout(IntEnum):
    """How a tensor lies in the file."""

    PLAIN_FLOAT32 = 0
    TILED_FLOAT32 = 1
    TILED_INT8 = 2
    TILED_INT4 = 3


@dataclass(frozen=True)
class Header:
    """The numbers of the header, in their order; ``slstm_at`` becomes a bit mask.

    ``ffn_activation`` is its number in :data:`~lram_export.model.config.FFN_ACTIVATIONS`. ``name`` is what is left of
    the policy's by :func:`stored_name`, ``source_sha256`` the checkpoint's; both are "" in older artifacts.
    """

    batch: int
    hidden: int
    blocks: int
    heads: int
    inner: int
    conv_kernel: int
    slstm_heads: int
    ffn_slices: int
    ffn_slice: int
    ffn_activation: int
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
    state_format: int
    norm_epsilon: float
    head_epsilon: float
    slstm_epsilon: float
    embed_epsilon: float
    slstm_at: tuple[int, ...]
    target_return: float
    reward_scale: float
    feedback: int
    name: str
    source_sha256: str

    def pack(self, tensors: int) -> bytes:
        """Everything after the checksum."""
        values = [getattr(self, f.name) for f in fields(self) if f.name not in _AFTER_EPSILONS]
        integers = [v for v in values if isinstance(v, int)]
        masks = [sum(1 << (b % 64) for b in self.slstm_at if b // 64 == word) for word in range(4)]
        packed = struct.pack(f"<I{len(integers)}I4fI4Q", tensors, *integers, *values[len(integers) :], 0, *masks)
        name, digest = self.name.encode(), bytes.fromhex(self.source_sha256)
        return packed + struct.pack(_LAST, self.target_return, self.reward_scale, self.feedback, name, digest)

    @staticmethod
    def unpack(data: bytes) -> Header:
        """The inverse of :meth:`pack`, from the first bytes of an artifact; raises ValueError."""
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise ValueError("magic: not an artifact of the target `native`")
        names = [f.name for f in fields(Header) if f.name not in _AFTER_EPSILONS]
        integers = len(names) - _EPSILONS
        _, *values = struct.unpack_from(f"<I{integers}I{_EPSILONS}fI4Q{_LAST[1:]}", data, CHECKSUM_START)
        numbers, (_, *masks) = values[: len(names)], values[len(names) : len(names) + 5]
        target_return, reward_scale, feedback, name, digest = values[len(names) + 5 :]
        blocks = tuple(64 * word + bit for word, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1)
        return Header(
            **dict(zip(names, numbers, strict=True)),
            slstm_at=blocks,
            target_return=target_return,
            reward_scale=reward_scale,
            feedback=feedback,
            name=name.rstrip(b"\0").decode(),
            source_sha256=digest.hex() if any(digest) else "",
        )


_AFTER_EPSILONS = ("slstm_at", "target_return", "reward_scale", "feedback", "name", "source_sha256")
_LAST = f"<2fI{NAME_BYTES}s{DIGEST_BYTES}s"
_EPSILONS = 4


def stored_name(name: str) -> str:
    """The beginning of a policy's name for which a header has room: whole characters, and a zero behind them."""
    return name.encode(errors="replace")[: NAME_BYTES - 1].decode(errors="ignore")


def header_sizes(config: ModelConfig, task: TaskSpec, batch_size: int, *, one_plane: bool) -> dict[str, Any]:
    """The fields of a header that follow from a model and its task: not the epsilons, nor where it comes from."""
    channels, height, width = config.image_shape or (0, 0, 0)
    discrete, image, slstm = task.action == "discrete", task.observation == "image", bool(config.slstm_at)
    return {
        "batch": batch_size,
        "hidden": config.hidden_size,
        "blocks": config.num_blocks,
        "heads": config.num_heads,
        "inner": config.inner_size,
        "conv_kernel": config.conv_kernel_size,
        "slstm_heads": config.slstm_num_heads if slstm else 0,
        "ffn_slices": FFN_SLICES if slstm else 0,
        "ffn_slice": ffn_slice_width(config.ffn_size) if slstm else 0,
        "ffn_activation": FFN_ACTIVATIONS.index(config.ffn_activation),
        "observation": int(image),
        "observation_dim": 0 if image else task.observation_dim or 0,
        "image_channels": channels if image else 0,
        "image_height": height if image else 0,
        "image_width": width if image else 0,
        "action": int(discrete),
        "action_dim": 1 if discrete else task.action_dim,
        "action_tokens": config.discrete_actions if discrete else config.num_actions,
        "discrete_actions": config.discrete_actions,
        "action_channels": config.action_channels,
        "planes": 1 if one_plane else 2,
        "state_format": 0,
        "slstm_at": config.slstm_at,
        "target_return": task.target_return,
        "reward_scale": task.reward_scale,
        "feedback": int(task.reward_feedback == "observed"),
    }


FFN_SLICES = 4
"""The feed-forward is divided among threads in slices; each is a whole number of int4 groups."""


def ffn_slice_width(ffn_size: int) -> int:
    """Columns of a slice of the feed-forward."""
    return -(-ffn_size // (FFN_SLICES * GROUP)) * GROUP


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``parts`` matrices (rows, cols), as bytes in the order in which they are written.

    ``two_planes``: its input is kept in two planes of codes although the header says one.
    """

    id: Id
    block: int
    layout: Layout
    parts: int
    rows: int
    cols: int
    data: NDArray[Any]
    two_planes: bool = False

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        return self.data.nbytes


def plain(id: Id, block: int, values: NDArray[np.float32]) -> Tensor:
    """Floats one after the other."""
    data = np.ascontiguousarray(values, np.float32).reshape(-1)
    return Tensor(id, block, Layout.PLAIN_FLOAT32, 1, data.size, 1, data)


def tiled_float32(id: Id, block: int, parts: Sequence[NDArray[np.float32]]) -> Tensor:
    """Per tile of 32 rows: (cols, 32)."""
    rows, cols = parts[0].shape
    data = np.ascontiguousarray(np.concatenate([input_major(part) for part in parts]))
    return Tensor(id, block, Layout.TILED_FLOAT32, len(parts), rows, cols, data)


def tiled_int8(id: Id, block: int, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]) -> Tensor:
    """Per tile: 32 scales, 32 times -128 * sum of the row's codes, codes (cols / 4, 32, 4)."""
    rows, cols = parts[0][0].shape
    packed = [
        _bytes(tiles(scales[:, :1]).astype(np.float32), int8_offsets(codes), int8_quads(codes))
        for codes, scales in parts
    ]
    return Tensor(id, block, Layout.TILED_INT8, len(parts), rows, cols, np.concatenate(packed))


def tiled_int4(id: Id, block: int, parts: Sequence[tuple[NDArray[np.int8], NDArray[np.float32]]]) -> Tensor:
    """Per tile and group of 64 inputs: 32 scales, then (8, 32, 4) bytes of two codes + 8."""
    rows, cols = parts[0][0].shape
    packed = []
    for codes, scales in parts:
        octets = int4_octets(codes)
        per_group = octets.reshape(octets.shape[0] * octets.shape[1], -1)
        scale = tiles(scales).astype(np.float32).transpose(0, 2, 1).reshape(len(per_group), -1)
        packed.append(_bytes(scale, per_group))
    return Tensor(id, block, Layout.TILED_INT4, len(parts), rows, cols, np.concatenate(packed))


def write_artifact(path: Path, header: Header, tensors: Sequence[Tensor]) -> None:
    """Write header, directory and tensors."""
    start = _aligned(HEADER_BYTES + ENTRY_BYTES * len(tensors))
    entries, offset = b"", start
    for t in tensors:
        layout = t.layout | (TWO_PLANES if t.two_planes else 0)
        entries += struct.pack("<4I4Q", t.id, t.block, layout, t.parts, t.rows, t.cols, offset, t.bytes)
        offset = _aligned(offset + t.bytes)
    with path.open("wb") as file:
        file.write(bytes(CHECKSUM_START))
        covered = _Checksummed(file)
        covered.write(np.frombuffer(header.pack(len(tensors)) + entries, np.uint8), start)
        for t in tensors:
            covered.write(t.data.reshape(-1).view(np.uint8), covered.position + _aligned(t.bytes))
        file.seek(0)
        file.write(MAGIC + struct.pack("<IIQQQ", FORMAT_VERSION, HEADER_BYTES, offset, *covered.checksum))


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

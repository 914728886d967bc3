"""Exporter of the target `native`: one file in the layout that the C++ kernels read (`kernels/native/src/format.h`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.xlstm.fused import folded_gates, query_key_value
from lram_export.backbones.xlstm.step import MLSTMBlock, SLSTMBlock
from lram_export.errors import UsageError
from lram_export.exporters import ExportedArtifact
from lram_export.lowering import LoweredPolicy
from lram_export.model.step_graph import StepGraph
from lram_export.progress import SILENT, Progress
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import GROUP
from lram_export.spec.tensors import array
from lram_export.targets.layout import channels_last, check_sums, image_convolutions, image_weight
from lram_export.targets.native.format import (
    FFN_SLICES,
    FORMAT_VERSION,
    Header,
    Id,
    Tensor,
    ffn_slice_width,
    header_sizes,
    plain,
    stored_name,
    tiled_float32,
    tiled_int4,
    tiled_int8,
    write_artifact,
)
from lram_export.version import __version__

Matrix = NDArray[np.float32]
MODEL_FILE = "model.lrn"


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``model.lrn``; raises UsageError for sizes that the kernels do not know."""
    check_sizes(policy)
    tensors = list(_Packer(policy).tensors())
    path = directory / MODEL_FILE
    write_artifact(path, header(policy), tensors)
    tools = {"lram-export": __version__, "format": str(FORMAT_VERSION)}
    size = sum(tensor.bytes for tensor in tensors)
    return ExportedArtifact((path,), tools, size)


def stored_bytes(policy: LoweredPolicy) -> dict[str, int]:
    """Bytes of each large matrix in ``model.lrn``, see :func:`lram_export.exporters.stored_bytes`."""
    check_sizes(policy)
    kinds = {Id.UP: "proj_up", Id.DOWN: "proj_down", Id.FFN_UP: "ffn_up", Id.FFN_DOWN: "ffn_down"}
    names = {(id, n): f"blocks.{n}.{kind}" for id, kind in kinds.items() for n in range(len(policy.graph.blocks))}
    names[Id.HEAD, 0] = "head"
    if policy.task.observation == "image":
        names[Id.EMBED_OBSERVATION, 0] = "embed_observation.cnn.linear.0"
    tensors = _Packer(policy).tensors()
    return {names[t.id, t.block]: t.bytes for t in tensors if (t.id, t.block) in names}


def check_sizes(policy: LoweredPolicy) -> None:
    """Raise UsageError for what the kernels do not know: widths, blocks of q, k, v, sums that do not fit 32 bits."""
    config = policy.checkpoint.config
    check_sums("native", {} if policy.quantization is None else policy.quantization.matrices)
    widths = {"hidden_size": config.hidden_size, "head width": config.head_dim}
    for name, width in widths.items():
        if width % 16:
            raise UsageError(f"native: {name}: expected a multiple of 16, got {width}; use another target")
    if config.qkv_block_size not in (1, 2, 4):
        raise UsageError(f"native: qkv_block_size: expected 1, 2 or 4, got {config.qkv_block_size}; use another target")
    if not 2 <= config.conv_kernel_size <= 16:
        raise UsageError(f"native: conv_kernel_size: expected 2 to 16, got {config.conv_kernel_size}")


def header(policy: LoweredPolicy) -> Header:
    """The sizes of a policy, and what it is called."""
    graph = policy.graph
    blocks: list[Any] = list(graph.blocks)
    mlstm = next((b for b in blocks if isinstance(b, MLSTMBlock)), None)
    slstm = next((b for b in blocks if isinstance(b, SLSTMBlock)), None)
    post_norm: Any = graph.post_norm
    one_plane = policy.quantization is not None and policy.quantization.quantized_activations
    return Header(
        **header_sizes(policy.checkpoint.config, policy.task, policy.spec.batch_size, one_plane=one_plane),
        norm_epsilon=post_norm.eps,
        head_epsilon=mlstm.out_norm.eps if mlstm else 0.0,
        slstm_epsilon=slstm.out_norm.eps if slstm else 0.0,
        embed_epsilon=graph.embed_norm.eps,
        name=stored_name(policy.name),
        source_sha256=policy.checkpoint.sha256,
    )


class _Packer:
    """Brings the weights of a step graph into the kernels' layout, tensor by tensor."""

    def __init__(self, policy: LoweredPolicy) -> None:
        self._graph: StepGraph = policy.graph
        self._config = policy.checkpoint.config
        self._codes = {} if policy.quantization is None else dict(policy.quantization.matrices)
        self._one_plane = policy.quantization is not None and policy.quantization.quantized_activations
        self._image = policy.task.observation == "image"

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, in the order in which a step reads them."""
        yield from self._embedding()
        for number, block in enumerate(self._graph.blocks):
            yield from self._slstm(number, block) if isinstance(block, SLSTMBlock) else self._mlstm(number, block)
        yield plain(Id.POST_NORM, 0, array(self._graph.post_norm.weight))
        head = self._linear("head")
        yield self._tiled(Id.HEAD, 0, [head])
        yield plain(Id.HEAD_BIAS, 0, array(self._graph.head.bias))

    def _embedding(self) -> Iterator[Tensor]:
        graph = self._graph
        for layer, weight, bias in (
            (graph.embed_reward, Id.EMBED_REWARD_WEIGHT, Id.EMBED_REWARD_BIAS),
            (graph.embed_return, Id.EMBED_RETURN_WEIGHT, Id.EMBED_RETURN_BIAS),
        ):
            yield plain(weight, 0, array(layer.weight))
            yield plain(bias, 0, array(layer.bias))
        encoder: Any = graph.embed_observation
        if self._image:
            yield from self._image_encoder(encoder.cnn)
        else:
            yield self._tiled(Id.EMBED_OBSERVATION, 0, [array(encoder.weight)])
            yield plain(Id.EMBED_OBSERVATION_BIAS, 0, array(encoder.bias))
        yield plain(Id.EMBED_NORM_WEIGHT, 0, array(graph.embed_norm.weight))
        yield plain(Id.EMBED_NORM_BIAS, 0, array(graph.embed_norm.bias))

    def _image_encoder(self, cnn: Any) -> Iterator[Tensor]:
        for number, conv in enumerate(image_convolutions(cnn)):
            yield plain(Id.IMAGE_WEIGHT, number, image_weight(conv))
            yield plain(Id.IMAGE_BIAS, number, array(conv.bias))
        linear = self._linear("embed_observation.cnn.linear.0")
        if isinstance(linear, QuantizedMatrix) and linear.format == "int4":
            linear = linear.dequantize()  # groups of 64 inputs do not survive the new order
        yield self._tiled(Id.EMBED_OBSERVATION, 0, [_columns(linear, channels_last(cnn, linear.shape[1]))])
        yield plain(Id.EMBED_OBSERVATION_BIAS, 0, array(cnn.linear[0].bias))

    def _mlstm(self, number: int, block: Any) -> Iterator[Tensor]:
        config = self._config
        heads, width, inner = config.num_heads, config.head_dim, config.inner_size
        yield plain(Id.NORM, number, array(block.norm.weight))
        up = self._linear(f"blocks.{number}.proj_up")
        starts = [part + head * width for head in range(heads) for part in (0, inner)]
        yield self._tiled(Id.UP, number, [_rows(up, start, width) for start in starts])
        yield from _convolution(number, block.conv)
        yield plain(Id.QUERY_KEY_VALUE, number, query_key_value(block))
        yield plain(Id.GATE_WEIGHT, number, folded_gates(block, heads))
        yield plain(Id.GATE_BIAS, number, array(block.gates.bias))
        yield plain(Id.HEAD_NORM, number, array(block.out_norm.weight))
        yield plain(Id.SKIP, number, array(block.skip))
        down = self._linear(f"blocks.{number}.proj_down")
        yield self._tiled(Id.DOWN, number, self._slices(down, width, heads))

    def _slstm(self, number: int, block: Any) -> Iterator[Tensor]:
        config = self._config
        head = config.hidden_size // config.slstm_num_heads
        yield plain(Id.NORM, number, array(block.norm.weight))
        yield plain(Id.CONV_WEIGHT, number, np.stack([_spread_heads(array(tap), head) for tap in block.conv.taps]))
        yield plain(Id.CONV_BIAS, number, _spread_heads(array(block.conv.bias), head))
        for id, weight in (
            (Id.FROM_CONV, block.from_conv),
            (Id.FROM_INPUT, block.from_input),
            (Id.RECURRENT, block.recurrent),
        ):
            yield self._tiled(id, number, list(_slstm_projection(weight, head)))
        yield plain(Id.GATE_BIASES, number, _spread_heads(array(block.bias), head))
        yield plain(Id.HEAD_NORM, number, array(block.out_norm.weight))
        yield plain(Id.FFN_NORM, number, array(block.ffn_norm.weight))
        size, width = config.ffn_size, ffn_slice_width(config.ffn_size)
        up = self._linear(f"blocks.{number}.ffn_up")
        parts = [_rows(up, start, size) for start in (0, size)]
        slices = [_rows(part, i * width, width) for i in range(FFN_SLICES) for part in parts]
        yield self._tiled(Id.FFN_UP, number, slices)
        down = self._linear(f"blocks.{number}.ffn_down")
        yield self._tiled(Id.FFN_DOWN, number, self._slices(down, width, FFN_SLICES))

    def _linear(self, name: str) -> Matrix | QuantizedMatrix:
        """A large matrix: its codes if it has any that the kernels multiply with, else float32 values."""
        matrix = self._codes.get(name)
        if matrix is not None and matrix.format in ("int8", "int4"):
            return matrix
        layer: Any = self._graph.get_submodule(name)
        return array(layer.weight)

    def _slices(self, matrix: Matrix | QuantizedMatrix, width: int, count: int) -> list[Matrix | QuantizedMatrix]:
        """Columns in ``count`` slices; float32 where a slice does not hold whole groups of int4 codes."""
        if isinstance(matrix, QuantizedMatrix) and matrix.format == "int4" and width % GROUP:
            matrix = matrix.dequantize()
        columns = matrix.shape[1]
        return [
            _columns(matrix, np.arange(min(i * width, columns), min((i + 1) * width, columns)), width)
            for i in range(count)
        ]

    def _tiled(self, id: Id, block: int, parts: list[Matrix | QuantizedMatrix]) -> Tensor:
        """Matrices of one shape, one after the other."""
        first = parts[0]
        if not isinstance(first, QuantizedMatrix):
            return tiled_float32(id, block, [p for p in parts if not isinstance(p, QuantizedMatrix)])
        pack = tiled_int8 if first.format == "int8" else tiled_int4
        packed = pack(id, block, [(p.codes, p.scales) for p in parts if isinstance(p, QuantizedMatrix)])
        return dataclasses.replace(packed, two_planes=self._one_plane and first.activation is None)


def _rows(matrix: Matrix | QuantizedMatrix, start: int, count: int) -> Any:
    """Rows from ``start``; beyond the last they are 0."""

    def part(array: NDArray[Any]) -> NDArray[Any]:
        found = array[start : start + count]
        return np.concatenate([found, np.zeros((count - len(found), *array.shape[1:]), array.dtype)])

    if isinstance(matrix, QuantizedMatrix):
        return dataclasses.replace(matrix, codes=part(matrix.codes), scales=part(matrix.scales))
    return part(matrix)


def _columns(matrix: Matrix | QuantizedMatrix, columns: NDArray[np.int64], width: int | None = None) -> Any:
    """Chosen columns, filled up with zeros to ``width``; int4 only in whole groups."""
    padding = 0 if width is None else width - len(columns)

    def part(array: NDArray[Any], chosen: NDArray[np.int64], fill: int) -> NDArray[Any]:
        return np.pad(array[:, chosen], ((0, 0), (0, fill)))

    if not isinstance(matrix, QuantizedMatrix):
        return part(matrix, columns, padding)
    scales = matrix.scales
    if matrix.format == "int4":
        groups = -(-(len(columns) + padding) // GROUP)
        first = int(columns[0]) // GROUP if len(columns) else 0
        scales = scales[:, first : first + groups]
        scales = np.pad(scales, ((0, 0), (0, groups - scales.shape[1])))
    return dataclasses.replace(matrix, codes=part(matrix.codes, columns, padding), scales=scales)


def _head_room(width: int) -> int:
    """Channels that kernels compute for an sLSTM head of some width: the next multiple of 16."""
    return -(-width // 16) * 16


def _spread_heads(values: NDArray[Any], width: int) -> Matrix:
    """Heads of ``width`` channels side by side in the last axis, each filled up with zeros to `_head_room`."""
    heads = values.reshape(*values.shape[:-1], -1, width)
    padded = np.pad(heads, [(0, 0)] * (heads.ndim - 1) + [(0, _head_room(width) - width)])
    spread: Matrix = padded.reshape(*values.shape[:-1], -1)
    return spread


def _slstm_projection(weight: Any, width: int) -> list[Matrix]:
    """Gates of an sLSTM block (heads, in, gates * width) -> per head (gates * room, room), see `_head_room`."""
    by_output = _spread_heads(array(weight), width).transpose(0, 2, 1)
    return list(_spread_heads(by_output, width))


def _convolution(number: int, conv: Any) -> Iterator[Tensor]:
    yield plain(Id.CONV_WEIGHT, number, np.stack([array(tap) for tap in conv.taps]))
    yield plain(Id.CONV_BIAS, number, array(conv.bias))

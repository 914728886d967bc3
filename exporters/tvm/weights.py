"""Weights of a step graph in the layout of TVM's kernels, the same for every platform."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.xlstm.fused import folded_gates, query_key_value
from lram_export.backbones.xlstm.step import SLSTMBlock
from lram_export.lowering import LoweredPolicy
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.tensors import array
from lram_export.targets.layout import (
    TILE,
    channels_last,
    image_convolutions,
    image_weight,
    input_major,
    int4_octets,
    int8_offsets,
    int8_quads,
    pad_columns,
    tiles,
)
from lram_export.targets.tvm.interface import PackedMatrix, channel_parts


def pack_weights(policy: LoweredPolicy) -> tuple[dict[str, NDArray[Any]], dict[str, PackedMatrix]]:
    """Arrays by name, in the order in which a step takes them, and which of them are large matrices."""
    return _Packer(policy).pack()


class _Packer:
    def __init__(self, policy: LoweredPolicy) -> None:
        self._policy = policy
        self._graph: Any = policy.graph
        self._codes = {} if policy.quantization is None else dict(policy.quantization.matrices)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._matrices: dict[str, PackedMatrix] = {}

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, PackedMatrix]]:
        graph = self._graph
        self._vectors("embed_reward", weight=array(graph.embed_reward.weight), bias=array(graph.embed_reward.bias))
        self._vectors("embed_return", weight=array(graph.embed_return.weight), bias=array(graph.embed_return.bias))
        self._observation()
        self._vectors("embed_norm", weight=array(graph.embed_norm.weight), bias=array(graph.embed_norm.bias))
        for number, block in enumerate(graph.blocks):
            name = f"blocks.{number}"
            self._slstm(name, block) if isinstance(block, SLSTMBlock) else self._mlstm(name, block)
        self._vectors("post_norm", weight=array(graph.post_norm.weight))
        self._linear("head")
        self._vectors("head", bias=array(graph.head.bias))
        return self._arrays, self._matrices

    def _observation(self) -> None:
        encoder = self._graph.embed_observation
        if self._policy.task.observation != "image":
            self._linear("embed_observation")
            self._vectors("embed_observation", bias=array(encoder.bias))
            return
        for number, conv in enumerate(image_convolutions(encoder.cnn)):
            self._add(f"embed_observation.cnn.{number}.weight", image_weight(conv))
            self._vectors(f"embed_observation.cnn.{number}", bias=array(conv.bias))
        name = "embed_observation.cnn.linear.0"
        matrix = self._codes.get(name)
        if matrix is not None and matrix.format == "int4":
            matrix = None  # groups of 64 inputs do not survive the new order
        columns = channels_last(encoder.cnn, encoder.cnn.linear[0].in_features)
        if matrix is not None:
            self._matrix("embed_observation", dataclasses.replace(matrix, codes=matrix.codes[:, columns]))
        else:
            self._floats("embed_observation", [array(encoder.cnn.linear[0].weight)[:, columns]])
        self._vectors("embed_observation", bias=array(encoder.cnn.linear[0].bias))

    def _mlstm(self, name: str, block: Any) -> None:
        self._vectors(f"{name}.norm", weight=array(block.norm.weight))
        self._linear(f"{name}.proj_up")
        self._convolution(name, block.conv)
        self._add(f"{name}.query_key_value", query_key_value(block))
        self._add(f"{name}.gates.weight", folded_gates(block, channel_parts(block.inner)))
        self._vectors(f"{name}.gates", bias=array(block.gates.bias))
        self._vectors(f"{name}.out_norm", weight=array(block.out_norm.weight))
        self._add(f"{name}.skip", array(block.skip))
        self._linear(f"{name}.proj_down")

    def _slstm(self, name: str, block: Any) -> None:
        self._vectors(f"{name}.norm", weight=array(block.norm.weight))
        self._convolution(name, block.conv)
        for part in ("from_conv", "from_input", "recurrent"):
            # (heads, in, out) -> per head (out, in)
            self._floats(f"{name}.{part}", list(array(getattr(block, part)).transpose(0, 2, 1)))
        self._add(f"{name}.bias", pad_columns(array(block.bias), TILE))
        self._vectors(f"{name}.out_norm", weight=array(block.out_norm.weight))
        self._vectors(f"{name}.ffn_norm", weight=array(block.ffn_norm.weight))
        self._linear(f"{name}.ffn_up")
        self._linear(f"{name}.ffn_down")

    def _convolution(self, name: str, conv: Any) -> None:
        self._add(f"{name}.conv.weight", np.stack([array(tap) for tap in conv.taps]))
        self._vectors(f"{name}.conv", bias=array(conv.bias))

    def _linear(self, name: str) -> None:
        matrix = self._codes.get(name)
        if matrix is not None:
            self._matrix(name, matrix)
        else:
            self._floats(name, [array(self._graph.get_submodule(name).weight)])

    def _floats(self, name: str, parts: list[NDArray[np.float32]]) -> None:
        rows, cols = parts[0].shape
        self._add(f"{name}.weight", np.concatenate([input_major(part) for part in parts]))
        self._matrices[name] = PackedMatrix("fp32", rows, cols, len(parts), (f"{name}.weight",))

    def _matrix(self, name: str, matrix: QuantizedMatrix) -> None:
        codes, weight, scales = matrix.codes, f"{name}.weight", f"{name}.scales"
        arrays = [weight]
        if matrix.format in ("fp16", "bf16"):
            self._add(weight, input_major(codes))
        elif matrix.format == "int8":
            quads = int8_quads(codes)
            self._add(weight, quads.reshape(*quads.shape[:2], -1))
            self._add(scales, tiles(matrix.scales)[..., 0])
            self._add(f"{name}.offsets", int8_offsets(codes))
            arrays += [scales, f"{name}.offsets"]
        else:
            octets = int4_octets(codes)
            self._add(weight, octets.reshape(*octets.shape[:3], -1).view(np.int8))
            self._add(scales, tiles(matrix.scales).transpose(0, 2, 1))
            arrays += [scales]
        self._matrices[name] = PackedMatrix(matrix.format, *matrix.shape, 1, tuple(arrays))

    def _vectors(self, name: str, **vectors: NDArray[np.float32]) -> None:
        for part, values in vectors.items():
            self._add(f"{name}.{part}", values.reshape(-1))

    def _add(self, name: str, values: NDArray[Any]) -> None:
        self._arrays[name] = np.ascontiguousarray(values)

"""Weights of a step graph in the layout of TVM's kernels, the same for every platform."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.exporters.tvm.backbone import backbone_kernels
from lram_export.lowering import LoweredModel
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS
from lram_export.spec.tensors import MAX_FLOAT32, array
from lram_export.targets.layout import (
    channels_last,
    image_convolutions,
    image_weight,
    input_major,
    int4_octets,
    int8_offsets,
    int8_quads,
    int8g_quads,
    tiles,
)
from lram_export.targets.tvm.interface import PackedMatrix


def pack_weights(policy: LoweredModel) -> tuple[dict[str, NDArray[Any]], dict[str, PackedMatrix]]:
    """Arrays by name, in the order in which a step takes them, and which of them are large matrices."""
    graph: Any = policy.graph
    packer = Packer({} if policy.quantization is None else dict(policy.quantization.matrices))
    # the observation's encoder last: the numbers' lie together in front of it
    for token in sorted(policy.checkpoint.config.tokens.tokens, key=lambda token: token.input == "observation"):
        name = f"embed_{token.name}"
        layer = graph.get_submodule(name)
        if token.zero:
            packer.vectors(name, token=array(graph.embed_norm(layer(torch.zeros(1)))))
        elif token.input != "observation":
            packer.vectors(name, weight=array(layer.weight), bias=array(layer.bias))
        elif policy.task.observation == "image":
            _pack_image_encoder(packer, layer.cnn)
        else:
            packer.linear(name, layer)
            packer.vectors(name, bias=array(layer.bias))
    packer.vectors("embed_norm", weight=array(graph.embed_norm.weight), bias=array(graph.embed_norm.bias))
    backbone_kernels(policy.checkpoint.config).pack(packer, policy.checkpoint.config.backbone, graph.backbone)
    normalization = graph.normalization()
    if normalization:
        packer.vectors("observation", **{"clip": np.array([MAX_FLOAT32], np.float32), **normalization})
    packer.linear("head", graph.head)
    packer.vectors("head", bias=array(graph.head.bias))
    if graph.values is not None:
        packer.vectors("action", values=array(graph.values))
    return packer.arrays, packer.matrices


def _pack_image_encoder(packer: Packer, cnn: Any) -> None:
    for number, conv in enumerate(image_convolutions(cnn)):
        packer.add(f"embed_observation.cnn.{number}.weight", image_weight(conv))
        packer.vectors(f"embed_observation.cnn.{number}", bias=array(conv.bias))
    linear = cnn.linear[0]
    matrix = packer.codes.get("embed_observation.cnn.linear.0")
    columns = channels_last(cnn, linear.in_features)
    # groups of inputs do not survive the new order
    if matrix is not None and not FORMATS[matrix.format].group:
        packer.matrix("embed_observation", dataclasses.replace(matrix, codes=matrix.codes[:, columns]))
    else:
        packer.floats("embed_observation", [array(linear.weight)[:, columns]])
    packer.vectors("embed_observation", bias=array(linear.bias))


class Packer:
    """Collects arrays in the order in which they are added, and what is known of those that are large matrices.

    ``codes`` are those of the quantized matrices, by their names in the step graph.
    """

    def __init__(self, codes: dict[str, QuantizedMatrix]) -> None:
        self.codes = codes
        self.arrays: dict[str, NDArray[Any]] = {}
        self.matrices: dict[str, PackedMatrix] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """An array as it is."""
        self.arrays[name] = np.ascontiguousarray(values)

    def vectors(self, name: str, **vectors: NDArray[np.float32]) -> None:
        """Arrays ``name.part``, one number after the other."""
        for part, values in vectors.items():
            self.add(f"{name}.{part}", values.reshape(-1))

    def norm(self, name: str, norm: Any) -> None:
        """A norm's weight, and its bias if it has one."""
        bias = getattr(norm, "bias", None)
        self.vectors(name, weight=array(norm.weight), **({} if bias is None else {"bias": array(bias)}))

    def convolution(self, name: str, conv: Any) -> None:
        """A causal convolution; where it has no bias, that is 0."""
        taps = np.stack([array(tap) for tap in conv.taps])
        self.add(f"{name}.weight", taps)
        self.vectors(name, bias=np.zeros(taps.shape[1], np.float32) if conv.bias is None else array(conv.bias))

    def linear(self, name: str, layer: Any) -> None:
        """The matrix of a linear layer: its codes if it has any, else float32."""
        matrix = self.codes.get(name)
        if matrix is not None:
            self.matrix(name, matrix)
        else:
            self.floats(name, [array(layer.weight)])

    def floats(self, name: str, parts: list[NDArray[np.float32]]) -> None:
        """Matrices of one shape (rows, cols), each for its own columns of the input."""
        rows, cols = parts[0].shape
        self.add(f"{name}.weight", np.concatenate([input_major(part) for part in parts]))
        self.matrices[name] = PackedMatrix("fp32", rows, cols, len(parts), (f"{name}.weight",))

    def matrix(self, name: str, matrix: QuantizedMatrix) -> None:
        """A quantized matrix."""
        codes, weight, scales = matrix.codes, f"{name}.weight", f"{name}.scales"
        arrays = [weight]
        if matrix.format in ("fp16", "bf16"):
            self.add(weight, input_major(codes))
        elif matrix.format == "int8":
            quads = int8_quads(codes)
            self.add(weight, quads.reshape(*quads.shape[:2], -1))
            self.add(scales, tiles(matrix.scales)[..., 0])
            self.add(f"{name}.offsets", int8_offsets(codes))
            arrays += [scales, f"{name}.offsets"]
        elif matrix.format == "int8g":
            unsigned = int8g_quads(codes)
            self.add(weight, unsigned.reshape(*unsigned.shape[:2], -1).view(np.int8))
            self.add(scales, tiles(matrix.scales).transpose(0, 2, 1))
            arrays += [scales]
        else:
            octets = int4_octets(codes)
            self.add(weight, octets.reshape(*octets.shape[:3], -1).view(np.int8))
            self.add(scales, tiles(matrix.scales).transpose(0, 2, 1))
            arrays += [scales]
        self.matrices[name] = PackedMatrix(matrix.format, *matrix.shape, 1, tuple(arrays))

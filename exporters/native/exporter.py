"""Exporter of the target `native`: one file in the layout that the C++ kernels read (`kernels/native/src/format.h`).

A module of one's own becomes a program (``exporters/native/module.py``). What every backbone needs is here: header,
tokens, encoders, head. The blocks are packed by the module of the backbone beside this one,
``exporters/native/<backbone>.py``: ``pack(number, block, config, matrices)`` is a block's entry and tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.backbones.layers import RMSNorm
from lram_export.errors import UsageError
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.native.matrices import Matrices, columns, roomy
from lram_export.exporters.native.module import export_module, stored_module_bytes
from lram_export.lowering import LoweredModel, LoweredModule
from lram_export.progress import SILENT, Progress
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.interface import scaled
from lram_export.spec.parity import FLOAT32, STATE_FORMATS
from lram_export.spec.precision import FORMATS
from lram_export.spec.tensors import MAX_FLOAT32, Floats, array
from lram_export.targets.backbones import kernels_of
from lram_export.targets.layout import channels_last, image_convolutions, image_weight
from lram_export.targets.limits import check
from lram_export.targets.native.format import (
    NO_WEIGHTS,
    BlockEntry,
    Header,
    NormKind,
    Presence,
    Role,
    Tensor,
    TokenEntry,
    format_version,
    keeps_matrices,
    plain,
    spread,
    step_fields,
    stored_name,
    write_artifact,
)
from lram_export.targets.native.interface import interface_tensor
from lram_export.version import __version__

TARGET = "native"
MODEL_FILE = "model.lrn"


def export(policy: LoweredModel | LoweredModule, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``model.lrn``; raises UsageError for a backbone, an operator or sizes that the kernels do not know."""
    path = directory / MODEL_FILE
    if policy.state_format != FLOAT32 and not keeps_matrices(policy.spec, policy.task):
        raise UsageError(
            f"--state-format {policy.state_format}: this policy has no matrices in its state, which it is for; "
            "leave the option out"
        )
    if isinstance(policy, LoweredModule):
        return export_module(policy, path)
    content = pack(policy)
    tokens = [TokenEntry(t.input, Presence.of(t)) for t in policy.checkpoint.config.tokens.tokens]
    write_artifact(path, header(policy), tokens, content.blocks, content.tensors)
    tools = {"lram-export": __version__, "format": str(format_version(content.tensors))}
    weights = sum(tensor.bytes for tensor in content.tensors if tensor.role not in NO_WEIGHTS)
    return ExportedArtifact((path,), tools, weights)


def stored_bytes(policy: LoweredModel | LoweredModule) -> dict[str, int]:
    """Bytes of each large matrix in ``model.lrn``, see :func:`lram_export.exporters.stored_bytes`."""
    if isinstance(policy, LoweredModule):
        return stored_module_bytes(policy)
    return {tensor.matrix: tensor.bytes for tensor in pack(policy).tensors if tensor.matrix is not None}


@dataclass(frozen=True)
class Content:
    """What an artifact holds besides its header: all tensors in the order in which a step reads them."""

    blocks: list[BlockEntry]
    tensors: list[Tensor]


def pack(policy: LoweredModel) -> Content:
    """Bring the weights of a step graph into the kernels' layout; raises UsageError where there are no kernels."""
    check(TARGET, policy)
    graph: Any = policy.graph
    matrices = Matrices(policy)
    content = Content([], [*_interface(policy), *_embedding(policy, matrices)])
    sizes = policy.checkpoint.config.backbone
    kernels = kernels_of(TARGET, sizes.kind)
    for number, block in enumerate(graph.backbone.blocks):
        entry, tensors = kernels.pack(number, block, sizes, matrices)
        content.blocks.append(entry)
        content.tensors.extend(tensors)
    norm = graph.backbone.post_norm
    content.tensors.append(plain(Role.POST_NORM, 0, spread(array(norm.weight))))
    if norm_kind(norm) is NormKind.LAYER_WITH_BIAS:
        content.tensors.append(plain(Role.POST_NORM_BIAS, 0, spread(array(norm.bias))))
    content.tensors.append(matrices.tiled(Role.HEAD, 0, [roomy(matrices.linear("head"))], "head"))
    content.tensors.append(plain(Role.HEAD_BIAS, 0, array(graph.head.bias)))
    return content


def header(policy: LoweredModel) -> Header:
    """The sizes of a policy, and what it is called."""
    graph: Any = policy.graph
    config, discrete = policy.checkpoint.config, policy.task.action == "discrete"
    head: Any = config.head
    one_plane = policy.quantization is not None and policy.quantization.quantized_activations
    return Header(
        **step_fields(policy.spec, policy.task, one_plane=one_plane),
        read_token=config.tokens.read_position,
        hidden=config.backbone.hidden_size,
        discrete_actions=0 if discrete else head.discrete_actions,
        action_channels=0 if discrete else head.action_channels,
        embed_epsilon=graph.embed_norm.eps,
        norm_epsilon=graph.backbone.post_norm.eps,
        norm=norm_kind(graph.backbone.post_norm),
        name=stored_name(policy.name),
        source_sha256=policy.checkpoint.sha256,
    )


def norm_kind(norm: Any) -> NormKind:
    """Which norm of the step graph it is."""
    if isinstance(norm, RMSNorm):
        return NormKind.RMS
    return NormKind.LAYER if getattr(norm, "bias", None) is None else NormKind.LAYER_WITH_BIAS


def _embedding(policy: LoweredModel, matrices: Matrices) -> Iterator[Tensor]:
    graph: Any = policy.graph
    for number, token in enumerate(policy.checkpoint.config.tokens.tokens):
        layer = graph.get_submodule(f"embed_{token.name}")
        if token.input != "observation":
            yield plain(Role.EMBED_WEIGHT, number, spread(array(layer.weight).reshape(-1)))
            yield plain(Role.EMBED_BIAS, number, spread(array(layer.bias)))
        elif policy.task.observation == "image":
            yield from _image_encoder(number, layer.cnn, matrices)
        else:
            yield matrices.tiled(Role.EMBED_WEIGHT, number, [array(layer.weight)])
            yield plain(Role.EMBED_BIAS, number, spread(array(layer.bias)))
    yield plain(Role.EMBED_NORM_WEIGHT, 0, spread(array(graph.embed_norm.weight)))
    yield plain(Role.EMBED_NORM_BIAS, 0, spread(array(graph.embed_norm.bias)))


def _interface(policy: LoweredModel) -> Iterator[Tensor]:
    """What observations are normalized by, what actions can be, and what is said of both, if anything is."""
    for part, values in policy.graph.normalization().items():
        yield plain(_NORMALIZATION[part], 0, values)
    if policy.graph.values is not None:
        yield plain(Role.ACTION_VALUES, 0, array(policy.graph.values).reshape(-1))
        if policy.spec.outputs[0].name in policy.interface.clamped:
            yield plain(Role.ACTION_UNCLAMPED, 0, _unclamped(policy).reshape(-1))
    if policy.state_format != FLOAT32:
        yield plain(Role.STATE_FORMAT, 0, np.array([STATE_FORMATS.index(policy.state_format)], np.float32))
    said = interface_tensor(policy.interface)
    if said is not None:
        yield said


def _unclamped(policy: LoweredModel) -> Floats:
    """What the values of an action were before its limits: (elements, values), of which float32 holds the largest."""
    action = policy.spec.outputs[0]
    values: Any = policy.checkpoint.config.head.values()
    every = np.repeat(values[:, None], action.shape[1], axis=1)
    before = scaled(every, action, policy.interface.action[action.name])
    return np.clip(before, -np.float32(MAX_FLOAT32), np.float32(MAX_FLOAT32)).T


_NORMALIZATION = {
    "mean": Role.OBSERVATION_MEAN,
    "deviation": Role.OBSERVATION_DEVIATION,
    "clip": Role.OBSERVATION_CLIP,
}


def _image_encoder(token: int, cnn: Any, matrices: Matrices) -> Iterator[Tensor]:
    for number, conv in enumerate(image_convolutions(cnn)):
        yield plain(Role.IMAGE_WEIGHT, number, image_weight(conv))
        yield plain(Role.IMAGE_BIAS, number, array(conv.bias))
    name = "embed_observation.cnn.linear.0"
    linear = matrices.linear(name)
    if isinstance(linear, QuantizedMatrix) and FORMATS[linear.format].group:
        linear = linear.dequantize()  # groups of inputs do not survive the new order
    ordered = columns(linear, channels_last(cnn, linear.shape[1]))
    yield matrices.tiled(Role.EMBED_WEIGHT, token, [ordered], name)
    yield plain(Role.EMBED_BIAS, token, spread(array(cnn.linear[0].bias)))

"""The step of a module for one row, as a graph of PyTorch's operators with weights by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lram_export.exporters.native.program.tape import Constant
from lram_export.lowering import LoweredModule
from lram_export.step_module.graph import ModuleGraph
from lram_export.step_module.tracing import quietly, trace

TAKEN_APART = (
    *("elu", "celu", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "softplus", "mish", "softshrink"),
    *(
        "log_sigmoid_forward",
        "glu",
        "_softmax",
        "_log_softmax",
    ),
    *("addcmul", "addcdiv", "lerp", "rsub", "masked_fill", "baddbmm", "addmv", "addr", "hardshrink", "softsign"),
    *("threshold", "silu", "std", "var_mean", "std_mean", "upsample_nearest1d", "upsample_nearest2d"),
    *("upsample_bilinear2d", "pixel_shuffle", "linalg_vector_norm"),
)
"""Operators that PyTorch counts among its core set, or takes apart only where asked, and whose parts the engine has."""


def traced(policy: LoweredModule) -> tuple[fx.Graph, dict[str, Constant], tuple[str, ...]]:
    """The graph of a step of one row, its weights by the names of their nodes, and the names of what goes in.

    Rows know nothing of each other (a module is refused where they do), so what one row's step is says all.
    """
    graph = ModuleGraph(policy.step_policy, 1, policy.interface)
    with quietly(), torch.no_grad():
        program: Any = trace(graph).run_decompositions(_table())
    signature = program.graph_signature
    owned = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors: dict[str, Tensor] = {**program.state_dict, **program.constants}
    matrices = {f"policy_module.{name}.weight": name for name in policy.matrix_names()}
    constants = {node: Constant(tensors[name].detach(), matrices.get(name)) for node, name in owned.items()}
    return program.graph, constants, tuple(signature.user_inputs)


def _table() -> dict[Any, Any]:
    table: Any = torch.export.default_decompositions()
    asked = [
        getattr(torch.ops.aten, name).overloads() and getattr(getattr(torch.ops.aten, name), overload)
        for name in TAKEN_APART
        if hasattr(torch.ops.aten, name)
        for overload in getattr(torch.ops.aten, name).overloads()
    ]
    found: dict[Any, Any] = torch._decomp.get_decompositions(asked)
    table.update(found)
    return dict(table.items())

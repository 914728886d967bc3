"""What torch leaves of a step graph, tidied: the passes of ONNX Script that change something in one.

Its default optimizer tries 46 rewrites at every node, which took a third of the time of an export; these are the ones
that fit anything in the graphs of this project.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import (
    div_by_1_rule,
    mul_by_1_rule,
    remove_optional_bias_from_gemm_rule,
    unsqueeze_unsqueeze_rule,
)

REWRITES = (unsqueeze_unsqueeze_rule, mul_by_1_rule, div_by_1_rule, remove_optional_bias_from_gemm_rule)


def optimize(model: ir.Model) -> None:
    """Inline functions, fold constants, leave out what does nothing and what nobody reads; in place."""
    common.InlinePass()(model)
    for _ in range(2):  # a rewrite can leave constants to fold
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, REWRITES)
        optimizer.remove_unused_nodes(model)
    for after in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        after(model)

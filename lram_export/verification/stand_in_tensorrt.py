"""Runs what TensorRT compiles on ONNX Runtime, so that it is known to be right where no GPU is.

Nothing is fused or folded, so every operator computes what the graph says: codes are dequantized to float32. The
processor has no products in 16 bits; they become products of the rounded inputs in float32 with a rounded result,
which is what a GPU computes up to the order of its sums.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import BundleError, describe
from lram_export.exporters.onnx.typed import HALF_TYPES
from lram_export.runtimes.onnxruntime import MODEL_FILE, WEIGHTS_FILE, runtime_of, session_options
from lram_export.runtimes.protocol import Runtime
from lram_export.system.files import scratch_directory
from lram_export.targets.tensorrt.recipe import artifact_recipe


def load(artifact: LoadedArtifact, threads: int) -> Runtime:
    """The step graph of a `tensorrt` artifact on the processor; raises BundleError if it is damaged."""
    artifact.file(WEIGHTS_FILE)  # which the model refers to
    artifact_recipe(artifact)  # says what the manifest says
    path = artifact.file(MODEL_FILE)
    try:
        session = session_of(path, session_options(threads, artifact.spec.batch_size))
    except Exception as error:  # ONNX Runtime and onnx_ir raise whatever they like for a damaged graph
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {describe(error)}") from None
    return runtime_of(session, artifact, path)


def session_of(path: Path, options: Any) -> Any:
    """A session that computes a typed step graph as it is written."""
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # warns about a damaged graph, which ONNX Runtime refuses
    model = ir.load(path)
    with scratch_directory() as folder:
        if widen_products(model):
            path = folder / MODEL_FILE
            ir.save(model, path, external_data=f"{MODEL_FILE}.data")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def widen_products(model: ir.Model) -> bool:
    """Replace products in 16 bits by products in float32 with the same rounding, in place; whether there were any."""
    # the weight is an initializer, so its type is known without inferring any
    halves = HALF_TYPES.values()
    products = [
        n for n in model.graph if n.op_type == "MatMul" and n.inputs[1] is not None and n.inputs[1].dtype in halves
    ]
    for node in products:
        tape = Tape()
        x, weight = node.inputs
        assert weight is not None
        wide = [tape.op("Cast", [value], {"to": ir.DataType.FLOAT}) for value in (x, weight)]
        rounded = tape.op("Cast", [tape.op("MatMul", wide)], {"to": weight.dtype})
        replace_nodes_and_values(model.graph, node, [node], tape.nodes, node.outputs, [rounded])
    return bool(products)

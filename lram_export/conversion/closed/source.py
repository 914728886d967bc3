"""The ONNX graph of a bundle as one model in memory, weights inside."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.tape import graphs, values
from lram_export.describe import counted
from lram_export.errors import BundleError, UsageError
from lram_export.spec.rows import ROWS

TARGET = "onnxruntime"
MOST_BYTES = (1 << 31) - (1 << 20)
"""What protobuf takes, less what the graph itself needs."""


def load_whole(bundle: Bundle, any_rows: bool = False) -> onnx.ModelProto:
    """The step graph of the target `onnxruntime` for one row or for any number of them, whose files are the manifest's.

    Raises:
        UsageError: the bundle has no such target, its weights do not go into one file, or its graph is for other rows.
        BundleError: damaged.
    """
    if TARGET not in bundle.targets:
        raise UsageError(
            f"{bundle.path}: no artifact for target '{TARGET}', whose graph this format is made of; it has: "
            f"{', '.join(bundle.targets)}. Export again with --target {TARGET}"
        )
    from lram_export.runtimes.onnxruntime import MODEL_FILE, WEIGHTS_FILE, ModelFiles

    artifact = bundle.load_artifact(TARGET, thorough=True)
    weights = artifact.file(WEIGHTS_FILE)
    data = (weights,) if artifact.quantized is None else (weights, artifact.quantized.path)
    files = ModelFiles(artifact.file(MODEL_FILE), data)
    model = onnx.load(str(files.model), load_external_data=False)
    places = {path.relative_to(files.folder).as_posix(): path for path in files.data}
    _read_weights(model, places, bundle)
    if any_rows:
        _check_rows(model, bundle)
    else:
        _fix_rows(model, bundle)
    return model


def has_any_rows(graph: onnx.GraphProto) -> bool:
    """Whether a graph is for any number of rows."""
    return bool(graph.input[0].type.tensor_type.shape.dim[0].dim_param == ROWS)


def _read_weights(model: onnx.ModelProto, places: dict[str, Path], bundle: Bundle) -> None:
    """Put the weights into the model; not onnx's own reader, which takes no links and asks nobody for their size."""
    outside = [t for part in graphs(model.graph) for t in part.initializer if t.external_data]
    said = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    size = sum(int(entry.get("length", 0)) for entry in said)
    if size > MOST_BYTES:
        raise UsageError(
            f"{bundle.path}: its weights are {size} bytes, and one ONNX file holds {MOST_BYTES}; export with a smaller "
            f"--precision, such as int8, or run onnxruntime/model.onnx, whose weights lie beside it"
        )
    opened: dict[str, mmap.mmap] = {}
    for tensor, entry in zip(outside, said, strict=True):
        location = entry.get("location", "")
        if location not in places:
            raise BundleError(f"{bundle.path}: {tensor.name}: its values are in '{location}', which is not listed")
        if location not in opened:
            with places[location].open("rb") as file:
                opened[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin = int(entry.get("offset", 0))
        tensor.raw_data = opened[location][begin : begin + int(entry["length"])]
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    for content in opened.values():
        content.close()


def _fix_rows(model: onnx.ModelProto, bundle: Bundle) -> None:
    """Let a graph for any number of rows be one for one row."""
    for value in values(model.graph):
        for extent in value.type.tensor_type.shape.dim:
            if extent.dim_param == ROWS:
                extent.dim_value = 1
    rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if rows != 1:
        raise UsageError(f"{bundle.path}: its graph steps {rows} rows at a time, not one; export again with --batch 1")


def _check_rows(model: onnx.ModelProto, bundle: Bundle) -> None:
    if not has_any_rows(model.graph):
        rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        raise UsageError(
            f"{bundle.path}: its graph is for {counted(rows, 'row')} alone, and a server's batches have any number; "
            f"say --backend python, which takes one row at a time, or export again a bundle of an earlier version"
        )

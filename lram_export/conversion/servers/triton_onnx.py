"""A model for Triton's ONNX Runtime backend: the closed step for any number of rows, the state kept by the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.closing import IS_FIRST, close
from lram_export.conversion.closed.columns import as_columns
from lram_export.conversion.closed.file import save_closed
from lram_export.conversion.closed.names import Ports, name_ports
from lram_export.conversion.closed.source import load_whole
from lram_export.conversion.formats import Options, Player
from lram_export.conversion.servers.batcher import BatchPlayer
from lram_export.conversion.servers.folder import VERSION
from lram_export.conversion.servers.pbtxt import message_text
from lram_export.conversion.servers.triton_config import CONFIG_FILE, flag, model_config, sequence_batching, state
from lram_export.system.machine import suitable_threads

MODEL_FILE = "model.onnx"
"""As the backend looks for it."""


def write_onnx(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """Write the folder of a model; returns what opens it as Triton does."""
    model = path / VERSION / MODEL_FILE
    model.parent.mkdir()
    ports = write_batched(bundle, model, options.reward_input)
    config = model_config(path.name, "onnxruntime", ports.inputs.values(), ports.actions.values(), options)
    if ports.states:
        states = [state(port.input, port.output, port.shape[1:]) for port in ports.states]
        config["sequence_batching"] = sequence_batching(options, [flag(IS_FIRST, "START")], states)
    else:
        config["dynamic_batching"] = {}
    (path / CONFIG_FILE).write_text(message_text(config), encoding="utf-8")
    threads = suitable_threads(bundle.manifest.parameters, 1)
    return lambda: BatchPlayer(model, ports, IS_FIRST if ports.states else None, threads)


def write_batched(bundle: Bundle, path: Path, reward_input: bool) -> Ports:
    """Write the closed step for any number of rows, with `is_first` as an input, and nothing of the shape (rows,).

    Raises:
        UsageError: as :func:`~lram_export.conversion.closed.file.write_closed`; or the graph is for one row alone.
    """
    graph = load_whole(bundle, any_rows=True)
    step = close(graph, bundle, reward_input, start_input=True)
    ports = as_columns(graph, name_ports(graph, step, "state"))
    save_closed(graph, bundle, ports, path, "state")
    return ports

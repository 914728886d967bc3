"""`ovms`: a model's folder for OpenVINO Model Server, which keeps the state of every sequence or is given it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.formats import Options, Player
from lram_export.conversion.servers.folder import MARKER, VERSION, check_name, write_marker
from lram_export.errors import UsageError
from lram_export.policy import observations_of
from lram_export.system.machine import suitable_threads

OPTIONS = ("reward_input", "sequences", "stateless")
PACKAGES = ("onnx", "onnxruntime", "openvino")
CONFIG_FILE = "config.json"
SEQUENCES = 500
"""At a time; the server's own default."""
CONTROLS = ("sequence_id", "sequence_control_input")
"""Inputs of the server's own."""


def marker(path: Path) -> str:
    """The file that says what the folder is made of."""
    return MARKER


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    from lram_export.conversion.servers.openvino_model import StatefulPlayer, StatelessPlayer, write_model

    check_name(path)
    if options.stateless and options.sequences is not None:
        raise UsageError("--sequences: with --stateless the server keeps none; leave one of them out")
    for tensor in observations_of(bundle.manifest.spec):
        if tensor.name in CONTROLS:
            raise UsageError(f"{bundle.path}: {tensor.name}: the policy observes something of that name, the server's")
    write_marker(bundle, path, "ovms")
    folder = path / VERSION
    folder.mkdir()
    ports = write_model(bundle, folder, options.reward_input, stateful=not options.stateless)
    stateful = bool(ports.states) and not options.stateless
    (path / CONFIG_FILE).write_text(json.dumps(_config(path.name, options, stateful), indent=2) + "\n")
    threads = suitable_threads(bundle.manifest.parameters, 1)
    return lambda: (StatefulPlayer if stateful else StatelessPlayer)(folder, ports, threads)


def _config(name: str, options: Options, stateful: bool) -> dict[str, Any]:
    """Of the server. It looks for the model beside this file."""
    from lram_export.conversion.servers.openvino_model import PROPERTIES

    model: dict[str, Any] = {"name": name, "base_path": ".", "target_device": "CPU", "plugin_config": PROPERTIES}
    if stateful:
        model |= {
            "stateful": True,
            "max_sequence_number": options.sequences or SEQUENCES,
            "idle_sequence_cleanup": True,
            "low_latency_transformation": False,  # the states are variables already
        }
    return {"model_config_list": [{"config": model}]}

"""A closed step as a file."""

from __future__ import annotations

from pathlib import Path

import onnx

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.closing import close
from lram_export.conversion.closed.names import Ports, name_ports
from lram_export.conversion.closed.older_runtimes import suit_older_runtimes
from lram_export.conversion.closed.properties import add_properties
from lram_export.conversion.closed.source import load_whole
from lram_export.errors import LramError


def write_closed(bundle: Bundle, path: Path, scheme: str, reward_input: bool = False) -> Ports:
    """Write the closed step of a bundle, weights inside.

    Args:
        bundle: the bundle.
        path: the file.
        scheme: how inputs and outputs are called, see :data:`~lram_export.conversion.formats.NAMES`.
        reward_input: whether the reward of the step before is an input.

    Raises:
        UsageError: the policy cannot be had so, and what would work.
        BundleError: a damaged bundle.
        LramError: the graph is not valid ONNX (our bug, which must not reach a robot).
    """
    model = load_whole(bundle)
    step = close(model, bundle, reward_input)
    ports = name_ports(model, step, scheme)
    save_closed(model, bundle, ports, path, scheme)
    return ports


def save_closed(model: onnx.ModelProto, bundle: Bundle, ports: Ports, path: Path, scheme: str) -> None:
    """Write a step that is closed and named, as older runtimes read it; raises LramError as :func:`write_closed`."""
    suit_older_runtimes(model)
    add_properties(model, bundle, ports, scheme)
    onnx.save(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LramError(f"{path.name}: the closed graph is not valid ONNX: {' '.join(str(error).split())}") from None

"""An interface as a person writes it: a YAML file, what a command line takes and what it writes to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lram_export.errors import UsageError
from lram_export.spec.bounds import MOST_JSON_BYTES
from lram_export.spec.interface import UNITS, FieldInterface, Interface, actions_of, observations_of, read_interface
from lram_export.spec.json_fields import Fields, parse_json
from lram_export.spec.tensors import StepSpec, TensorSpec


def read_interface_file(path: str | Path) -> Interface:
    """Read an interface from YAML (or JSON, which is YAML, too).

    Raises:
        UsageError: no such file, not YAML, or a field that is unknown or wrong, naming it.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--interface: {path}: {error.strerror}") from None
    try:
        return read_interface(Fields.of(parse_yaml(content, "--interface"), ""))
    except ValueError as error:
        raise UsageError(f"--interface: {path}: {error}") from None


def write_yaml(interface: Interface, spec: StepSpec) -> str:
    """The YAML of an interface; what is not known stands in it as a comment that says what could."""
    lines = [
        "# What a policy says of its robot. `lram-export export ... --interface FILE` takes it.",
        _line("rate", interface.rate, "Hz, how often a second the policy was trained to act"),
    ]
    for side, tensors, fields in (
        ("observation", observations_of(spec), interface.observation),
        ("action", actions_of(spec), interface.action),
    ):
        lines.append(f"{side}:")
        for tensor in tensors.values():
            shape = "x".join(map(str, tensor.shape[1:])) or "one number"
            lines.append(f"  {tensor.name}:  # {tensor.dtype}, {shape}")
            lines += [f"    {line}" for line in _field(fields.get(tensor.name, FieldInterface()), tensor, side)]
    return "\n".join(lines) + "\n"


def _field(of: FieldInterface, tensor: TensorSpec, side: str) -> list[str]:
    known = of.to_json()
    hints = {
        "elements": "[left_hip, ...]: the name of every element",
        "units": f"one for all, or a list; known: {', '.join(UNITS)}",
        "limits": "{low: -1.0, high: 1.0}: numbers for all elements, or lists"
        + (" (clamped to)" if side == "action" else " (what the sensor can read)"),
    }
    if side == "action":
        hints["scaling"] = "{scale: 1.0, offset: 0.0}: value * scale + offset, in the graph"
        hints["safety"] = "{most_change: 0.1, most_clamps: 10, safe_action: 0.0}: see docs/interface.md"
    elif tensor.dtype == "uint8":
        hints["image"] = "{height: ..., width: ..., ...}: see docs/cameras.md"
    else:
        hints["normalization"] = "{mean: 0.0, deviation: 1.0, clip: null}: (value - mean) / deviation, in the graph"
    if tensor.dtype == "int64":
        hints = {"elements": "[left, ...]: the name of every choice"}
    elif tensor.dtype == "uint8":
        hints = {"image": hints["image"]}
    return [_line(name, known.get(name), hint) for name, hint in hints.items()]


def _line(name: str, value: Any, hint: str) -> str:
    if value is None:
        return f"# {name}: {hint}"
    return f"{name}: {json.dumps(value)}"


def parse_yaml(content: bytes, option: str) -> Any:
    """What YAML says, as JSON could say it.

    Raises:
        ValueError: not YAML of plain values, or too long.
        UsageError: the package that reads YAML is missing; names the option that needs it.
    """
    if len(content) > MOST_JSON_BYTES:
        raise ValueError(f"expected at most {MOST_JSON_BYTES} bytes, got {len(content)}")
    try:
        import yaml
    except ModuleNotFoundError:
        raise UsageError(f"{option}: needs the package pyyaml: pip install 'lram-export[export]'") from None
    try:
        found = yaml.safe_load(content)
        text = json.dumps({} if found is None else found, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not YAML of plain values ({' '.join(str(error).split())[:200]})") from None
    return parse_json(text)

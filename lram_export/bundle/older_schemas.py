"""Manifests of earlier versions as the current one says the same."""

from __future__ import annotations

from typing import Any

from lram_export.spec.json_fields import Fields
from lram_export.spec.parity import FLOAT32

READ_CODES = ("pytorch", "onnxruntime")
"""Targets that read the bundle's quantized matrices; before version 4 nothing said so."""
ROLES = {"conv": "window", "C": "matrix", "n": "normalizer", "m": "stabilizer", "y": "hidden", "c": "cell"}
"""Last part of a state's name -> its role; all models before version 4 had these."""


def upgraded(document: Fields, version: int) -> Fields:
    """A manifest of a schema version as the current one says it; raises ValueError where it cannot be one.

    Version 5 differs from 4 only in what may be: a module has no task. Version 6 added the interface. Version 7 differs
    from 6 only in what may be: the quantized matrices beside an ONNX model.
    """
    if version < 2:
        document = _of_version_1(document)
    if version < 3:
        document = _of_version_2(document)
    if version < 4:
        document = _of_version_3(document)
    if version < 6:
        if "interface" in document.data:
            raise ValueError(f"schema_version: {version} has no interface")
        document = Fields({**document.data, "interface": None}, document.where)
    return document


def _entries(document: Fields) -> list[Any]:
    return document.items("artifacts", 64)


def _of_version_1(document: Fields) -> Fields:
    """Version 2 added activations, parity and quantization."""
    if "quantization" in document.data:
        raise ValueError("schema_version: 1 has no quantization")
    artifacts = [
        {"activations": FLOAT32, "parity": None, **entry} if isinstance(entry, dict) else entry
        for entry in _entries(document)
    ]
    for entry in artifacts:
        if isinstance(entry, dict):
            entry.setdefault("verified_by", None if entry["parity"] is None else entry.get("target"))
    return Fields({**document.data, "quantization": None, "artifacts": artifacts}, document.where)


def _of_version_2(document: Fields) -> Fields:
    """Version 3 added the limits of inputs, the report, and the cost over the recorded steps."""
    for i, entry in enumerate(document.fields("specification").items("inputs", 4)):
        if isinstance(entry, dict) and "limit" in entry:
            raise ValueError(f"specification.inputs[{i}].limit: unknown field")
    return Fields({**document.data, "report": None}, document.where)


def _of_version_3(document: Fields) -> Fields:
    """Version 4 added roles and initial tensors of states, and which artifacts read the quantized matrices."""
    specification = document.fields("specification")
    states = []
    for i, entry in enumerate(specification.items("state", 1 << 13)):
        state = Fields.of(entry, f"specification.state[{i}]")
        part = state.text("name").rsplit(".", 1)[-1]
        if part not in ROLES:
            raise ValueError(f"{state.path('name')}: expected state.BLOCK.PART, got {state.text('name')!r}")
        states.append({**state.data, "role": ROLES[part]})
    artifacts = [
        {**entry, "reads_codes": entry.get("target") in READ_CODES} if isinstance(entry, dict) else entry
        for entry in _entries(document)
    ]
    changed = {"specification": {**specification.data, "state": states}, "artifacts": artifacts, "initial": None}
    return Fields({**document.data, **changed}, document.where)

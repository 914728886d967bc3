"""What an artifact says about itself, and whether that is what the manifest says. Free of torch.

Formats that carry text (ONNX, OpenVINO, JSON) carry :func:`identity`, written at export; those with a header of their
own are compared by their runtimes. So an edit of the manifest that the artifact contradicts is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lram_export.errors import BundleError
from lram_export.spec.interface import Interface
from lram_export.spec.json_fields import Fields, parse_json, read_json, shown
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec

PREFIX = "lram."
IDENTITY_FILE = "identity.json"
"""Where an artifact has it whose other files have no room for it."""


def identity(
    *,
    name: str,
    precision: str,
    task: TaskSpec | None,
    model: Mapping[str, Any],
    spec: StepSpec,
    source_sha256: str,
    interface: Interface | None = None,
) -> dict[str, str]:
    """The manifest's essentials as properties, for formats that carry them; ``model`` is its config as JSON values."""
    initial = {s.name: "tensor" if s.initial is None else s.initial for s in spec.states if s.initial != 0.0}
    values: dict[str, Any] = {
        "name": name,
        "precision": precision,
        "task": None if task is None else task.to_json(),
        "model": dict(model),
        "batch_size": spec.batch_size,
        "limits": spec.limits,
        "state_initial": {"default": 0.0, **initial},
        "source_sha256": source_sha256,
    }
    if task is None:  # nothing else says what goes in and comes out
        values["specification"] = spec.to_json()
    if interface:
        values["interface"] = interface.to_json()
    return {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


@dataclass(frozen=True)
class Identity:
    """What a manifest says that its artifacts say, too; ``complete``: all of it, as since schema version 3."""

    properties: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True

    def check(self, path: Path, found: Mapping[str, str]) -> None:
        """Compare what a file says about itself with it.

        Raises:
            BundleError: naming the property, and what both say; one of the two was altered.
        """
        for key, said in self.properties.items():
            name = key.removeprefix(PREFIX)
            if key in found:
                compare(path, name, _value(found[key]), _value(said))
            elif self.complete:
                raise BundleError(
                    f"{path}: {name}: missing from what the file says about itself; copy or export the bundle again"
                )


def properties(document: Fields) -> dict[str, str]:
    """The field ``identity`` of a JSON document; raises ValueError."""
    found = document.fields("identity")
    for key, value in found.data.items():
        if not isinstance(value, str):
            raise ValueError(f"{found.path(key)}: expected a text, got {shown(value)}")
    return dict(found.data)


def read_identity(path: Path) -> dict[str, str]:
    """Read ``identity.json``; raises BundleError."""
    try:
        return properties(Fields({"identity": read_json(path)}))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}; copy or export the bundle again") from None


def compare(path: Path, name: str, own: Any, manifest: Any) -> None:
    """Raise BundleError, naming the field and what both say, unless a file and the manifest say the same."""
    if isinstance(own, dict) and isinstance(manifest, dict):
        for key in sorted({*own, *manifest}):
            compare(path, f"{name}.{key}", own.get(key, "nothing"), manifest.get(key, "nothing"))
    elif own != manifest:
        raise BundleError(
            f"{path}: {name}: the file says {shown(own)}, the manifest {shown(manifest)}; one of them was altered: "
            f"copy or export the bundle again"
        )


def _value(text: str) -> Any:
    """JSON, or a text as it is."""
    try:
        return parse_json(text)
    except ValueError:
        return text

"""What a server says of the policy that it has, and how a robot reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lram_export.spec.interface import Interface, read_interface
from lram_export.spec.json_fields import Fields, parse_json
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, read_step_spec
from lram_export.version import __version__


@dataclass(frozen=True)
class Description:
    """A policy of one row, as the manifest of its bundle has it.

    Attributes:
        bundle: digest of what runs, the same wherever the same files run.
        name: the bundle's.
        target: what runs.
        precision: of what runs.
        version: of lram-export there.
        spec: names and shapes of a step.
        task: what the policy was exported for; None for a module of one's own.
        interface: what the bundle says of its robot.
    """

    bundle: str
    name: str
    target: str
    precision: str
    spec: StepSpec
    task: TaskSpec | None
    interface: Interface
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :func:`read_description`."""
        return {
            "bundle": self.bundle,
            "name": self.name,
            "target": self.target,
            "precision": self.precision,
            "version": self.version,
            "specification": self.spec.to_json(),
            "task": None if self.task is None else self.task.to_json(),
            "interface": self.interface.to_json(),
        }

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self.to_json())


def read_description(text: str) -> Description:
    """Read what :meth:`Description.text` wrote; raises ValueError naming the field."""
    fields = Fields.of(parse_json(text), "description")
    fields.only("bundle", "name", "target", "precision", "version", "specification", "task", "interface")
    return Description(
        **{name: fields.text(name) for name in ("bundle", "name", "target", "precision", "version")},
        spec=read_step_spec(fields.fields("specification")),
        task=None if fields.get("task") is None else TaskSpec.from_json(fields.get("task")),
        interface=read_interface(fields.fields("interface")),
    )

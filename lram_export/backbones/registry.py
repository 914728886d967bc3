"""The backbones there are: kind -> package. Nothing of one is imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lram_export.backbones.protocol import BackboneConfig
from lram_export.spec.json_fields import Fields

BACKBONES = {
    "xlstm": "lram_export.backbones.xlstm",
    "mamba": "lram_export.backbones.mamba",
    "decision_transformer": "lram_export.backbones.decision_transformer",
}
"""Kind -> package; see :mod:`~lram_export.backbones.protocol` for what is in it."""


def backbone_module(kind: str, name: str) -> ModuleType:
    """A module of a backbone's package, such as ``step``."""
    return import_module(f"{BACKBONES[kind]}.{name}")


def read_backbone(fields: Fields) -> BackboneConfig:
    """Read what ``to_json`` of a backbone's config wrote; raises ValueError naming the field."""
    kind = fields.text("kind")
    if kind not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ValueError(f"{fields.path('kind')}: this lram-export knows {known}, got '{kind}'; update lram-export")
    config: BackboneConfig = backbone_module(kind, "config").read(fields)
    return config

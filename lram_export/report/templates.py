"""The pages' templates, which share tables, charts and style."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A template of this folder."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_read)
    )
    return environment.get_template(name)


def _read(name: str) -> str:
    return (files("lram_export") / "report" / name).read_text(encoding="utf-8")

"""The report: one HTML file with tables and charts, for the person who has to sign off a policy."""

from __future__ import annotations

from importlib.util import find_spec


def missing_packages() -> list[str]:
    """Packages that a report needs and that are not installed."""
    return [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]

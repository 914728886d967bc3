"""Any registered Gymnasium environment: ``gym/Pendulum-v1``."""

from __future__ import annotations

from typing import Any

import gymnasium


def names() -> list[str]:
    """All registered environments."""
    return sorted(gymnasium.registry)


def make(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The environment as it is registered."""
    return gymnasium.make(task, render_mode=render_mode)

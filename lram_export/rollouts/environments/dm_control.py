"""DeepMind Control Suite: ``dm_control/cartpole-swingup``, all observations in one flat vector."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a screen GLFW warns, before the next way to draw is tried
    import shimmy

gymnasium.register_envs(shimmy)
_PREFIX, _SUFFIX = "dm_control/", "-v0"


def names() -> list[str]:
    """All tasks of the suite."""
    found = (i.removeprefix(_PREFIX).removesuffix(_SUFFIX) for i in gymnasium.registry if i.startswith(_PREFIX))
    return sorted(name for name in found if name != "compatibility-env")


def make(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The task with flattened observations."""
    return gymnasium.wrappers.FlattenObservation(make_structured(task, render_mode))


def make_structured(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The task with its observations by name."""
    return gymnasium.make(f"{_PREFIX}{task}{_SUFFIX}", render_mode=render_mode)

"""Any registered Gymnasium environment: ``gym/Pendulum-v1``."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # with Gymnasium, which hands environments over with it
import gymnasium

from lram_export.errors import UsageError, describe


def names() -> list[str]:
    """All registered environments."""
    return sorted(gymnasium.registry)


def make(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The environment as it is registered."""
    return gymnasium.make(task, render_mode=render_mode)


def packed(task: str) -> bytes:
    """How an environment is registered, for another process; raises UsageError where that cannot be told."""
    try:
        text: bytes = cloudpickle.dumps(gymnasium.registry[task])
    except Exception as error:  # of foreign code, whatever it holds
        raise UsageError(
            f"--parallel: gym/{task} cannot be handed to another process ({describe(error)}); register it with "
            f"entry_point='module:class', and arguments that can be pickled"
        ) from None
    return text


def register(found: Mapping[str, bytes]) -> None:
    """Register environments that :func:`packed` has described, unless they are registered already."""
    for task, text in found.items():
        if task not in gymnasium.registry:
            gymnasium.registry[task] = pickle.loads(text)

"""One section of a training config after the other: what it may hold, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lram_export.errors import CheckpointError, describe

_ABSENT = object()
Options = dict[str, tuple[object, tuple[object, ...]]]
"""Option -> (default in the original constructors, values that are supported)."""
Reasons = dict[str, tuple[str, ...]]
"""Why options do not matter when the policy acts -> the options."""
_HINTS = {
    "target_return_mult": "set it to 1 in a copy of the config (--config) and export with --target-return times it",
}


class Section:
    """One mapping of the config; leaves are resolved one by one, so unresolvable others do not matter."""

    def __init__(self, config: Any, path: str, file: Path) -> None:
        self.config, self.path, self.file = config, path, file

    def section(self, name: str) -> Section:
        """The mapping of a name, or of several with dots between; it may be missing."""
        return Section(self.config, f"{self.path}.{name}", self.file)

    def names(self) -> list[str]:
        """The options that are there; none where the section is missing."""
        node = self._node()
        return [] if node is None else [str(k) for k in node]

    def _node(self) -> Any:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            node = OmegaConf.select(self.config, self.path) if self.path else self.config
        except OmegaConfBaseException as error:
            raise self._cannot_resolve(self.path, error) from None
        if node is not None and not OmegaConf.is_dict(node):
            raise CheckpointError(f"{self.file}: {self.path}: expected a mapping, got {node!r}")
        return node

    def get(self, name: str, default: Any = _ABSENT) -> Any:
        """An option's value as plain Python; raises CheckpointError where it is missing and there is no default."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        node = self._node()
        path = f"{self.path}.{name}"
        if node is None or name not in node:
            if default is _ABSENT:
                raise CheckpointError(f"{self.file}: {path}: missing")
            return default
        try:
            value = node[name]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise self._cannot_resolve(path, error) from None

    def integer(self, name: str, default: Any = _ABSENT) -> int:
        """A whole number; raises CheckpointError."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.file}: {self.path}.{name}: expected an integer, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number; raises CheckpointError."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{self.file}: {self.path}.{name}: expected a number, got {value!r}")
        return float(value)

    def require(self, options: Options) -> None:
        """Raise CheckpointError unless every option has a supported value."""
        for name, (default, supported) in options.items():
            value = self.get(name, default)
            # `in` alone would take 1 for True
            if not any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in supported):
                absent = " (the default of the training code)" if name not in self.names() else ""
                hint = f"; {_HINTS[name]}" if name in _HINTS else ""
                raise CheckpointError(
                    f"{self.file}: {self.path}.{name} = {value!r}{absent} is not supported; "
                    f"supported: {', '.join(repr(s) for s in supported)}{hint}"
                )

    def know(self, inert: Reasons, *others: Iterable[str]) -> None:
        """Raise CheckpointError for an option that is neither inert nor among the others."""
        known = {name for names in (*inert.values(), *others) for name in names}
        for name in self.names():
            if name not in known:
                raise CheckpointError(
                    f"{self.file}: {self.path}.{name} = {self._shown(name)} is not supported: this option of the "
                    f"training code is not known, and may change what the policy does"
                )

    def _shown(self, name: str) -> str:
        try:
            return repr(self.get(name))
        except CheckpointError:
            return "a reference that cannot be resolved"

    def _cannot_resolve(self, path: str, error: Exception) -> CheckpointError:
        reason = describe(error)
        return CheckpointError(f"{self.file}: {path}: cannot be resolved ({reason})")

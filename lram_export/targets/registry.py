"""Where the module of a target is found, and which package it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from lram_export.errors import TargetNotInstalledError, UsageError, describe
from lram_export.system import telemetry


@dataclass(frozen=True)
class TargetModule:
    """One target's module on one side (exporters or runtimes).

    ``packages`` are import names the module needs, ``a|b`` where one of several will do; ``extra`` is the extra of
    lram-export that brings them; ``precisions`` (exporters only) are those it can compile.
    ``compiled``: the package is lram-export's own, and was compiled when that was installed, or left out.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    precisions: tuple[str, ...] = ("fp32",)
    compiled: bool = False

    def missing(self) -> str | None:
        """The first package that is not installed, or None."""
        for package in self.packages:
            if not any(map(_installed, package.split("|"))):
                return package.replace("|", " or ")
        return None

    @property
    def install(self) -> str:
        """The command that brings what is missing; what is compiled needs a compiler as well."""
        return COMPILE_AGAIN if self.compiled else f"pip install 'lram-export[{self.extra}]'"

    def load(self, target: str) -> ModuleType:
        """Import the module; raises TargetNotInstalledError, which says why that fails and what to do."""
        missing = self.missing()
        if missing is not None and self.compiled:
            raise TargetNotInstalledError(
                f"target '{target}' needs an engine that could not be compiled when lram-export was installed. Install "
                f"a C++17 compiler (on Debian: apt-get install g++), then compile it: {self.install} (its log says "
                f"what else is wrong)"
            )
        if missing is not None:
            raise TargetNotInstalledError.of(target, missing, self.extra)
        telemetry.switch_off()
        try:
            return import_module(self.module)
        except (ImportError, OSError) as error:  # for example a library that was compiled for another system
            raise TargetNotInstalledError(
                f"target '{target}' is installed, but does not load ({describe(error)}). "
                f"Install it anew: {self.install}"
            ) from None

    def versions(self) -> dict[str, str]:
        """Versions of the packages that are installed."""
        found = {}
        for package in "|".join(self.packages).split("|"):
            try:
                found[package] = version(_DISTRIBUTIONS.get(package, package))
            except PackageNotFoundError:
                continue
        return found


COMPILE_AGAIN = "pip install -v --no-cache-dir --force-reinstall --no-deps lram-export"
"""Without pip's own copy of what it built before, in which the engine may be missing."""
_DISTRIBUTIONS = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
"""Names under which packages are published, where they are not those under which they are imported."""


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def load_target(registry: Mapping[str, TargetModule], target: str) -> ModuleType:
    """Import a target's module.

    Raises:
        UsageError: unknown target, with the list.
        TargetNotInstalledError: a package is missing, or does not load, with the pip command.
    """
    if target not in registry:
        raise UsageError(f"--target: unknown target '{target}'; known: {', '.join(registry)}")
    return registry[target].load(target)

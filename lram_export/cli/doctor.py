"""`doctor`: what this machine can do."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

import click

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.checkpoints.random import preset_config
from lram_export.cli import options
from lram_export.cli.console import print_facts, print_json, print_table
from lram_export.cli.parameters import Command
from lram_export.describe import human_bytes
from lram_export.errors import UsageError
from lram_export.system.cgroup import cpu_quota
from lram_export.system.huge_pages import huge_pages
from lram_export.system.machine import (
    available_cpus,
    cpu_features,
    cpu_model,
    physical_cores,
    suitable_threads,
    total_memory,
    usable_cores,
)
from lram_export.targets.native.options import STATE_FORMAT, NativeOptions
from lram_export.targets.registry import TargetModule
from lram_export.targets.tvm.platforms import PLATFORMS, unmet
from lram_export.version import __version__


@click.command(cls=Command)
@options.as_json
def doctor(as_json: bool) -> None:
    """Show which targets are installed, their versions, and what the processor offers."""
    from lram_export.exporters import EXPORTERS
    from lram_export.runtimes import RUNTIMES, unavailable

    targets: dict[str, dict[str, Any]] = {
        name: {
            "runs": unavailable(name) is None,
            "why_not": unavailable(name),
            "exports": EXPORTERS[name].missing() is None,
            "versions": {**EXPORTERS[name].versions(), **runtime.versions()},
            "install": runtime.install,
        }
        for name, runtime in RUNTIMES.items()
    }
    pages = huge_pages()
    machine = {
        "lram-export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "physical_cores": physical_cores(),
        "logical_cpus": len(available_cpus()),
        "cpu_quota": cpu_quota(),
        "usable_cores": usable_cores(),
        "default_threads": _default_threads(),
        "cpu_features": list(cpu_features()),
        "memory": total_memory(),
        "huge_pages": None if pages is None else dataclasses.asdict(pages),
    }
    kernels = _native_kernels() if targets["native"]["runs"] else None
    state_format = NativeOptions.from_environment().state_format or None
    tvm_platforms = [name for name, each in PLATFORMS.items() if unmet(each) is None]
    if as_json:
        native = {"native_kernels": kernels, "native_state_format": state_format}
        print_json({"machine": machine, "targets": targets, **native, "tvm_platforms": tvm_platforms})
        return
    shown = {
        **machine,
        "cpu_quota": "none" if machine["cpu_quota"] is None else f"{machine['cpu_quota']:g} CPUs",
        "default_threads": ", ".join(f"{size}: {threads}" for size, threads in _default_threads().items()),
        "cpu_features": ", ".join(cpu_features()) or "none known",
        "memory": human_bytes(total_memory()),
        "huge_pages": "none: this system has none" if pages is None else str(pages),
        "native_kernels": "none: the target native is not installed" if kernels is None else _described(kernels),
        "native_state": f"{_told(state_format)}; what is faster here: lram-export bench BUNDLE --state-formats",
        "tvm_platforms": ", ".join(tvm_platforms) or "none",
    }
    print_facts("this machine", [(name.replace("_", " "), str(value)) for name, value in shown.items()])
    rows = [
        [
            name,
            "yes" if facts["runs"] else "no",
            "yes" if facts["exports"] else "no",
            ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) or "-",
            "" if facts["runs"] else str(facts["why_not"] if _says_how(RUNTIMES[name]) else facts["install"]),
        ]
        for name, facts in targets.items()
    ]
    print_table("targets", ["target", "runs", "exports", "versions", "what is missing"], rows)


def _says_how(runtime: TargetModule) -> bool:
    """Whether the reason why a target does not run also says what to do; else that is to install a package."""
    return runtime.compiled or runtime.missing() is None


def _default_threads() -> dict[str, int]:
    """Threads that the published sizes get when they are not told."""
    return {size: suitable_threads(preset_config(size).parameters) for size in PRESETS}


def _native_kernels() -> dict[str, Any]:
    """The kernels that the native engine uses here, and all that this processor runs, best first."""
    from lram_export import _native

    try:
        return {"used": _native.chosen_instruction_set(), "supported": _native.instruction_sets()}
    except ValueError as error:  # LRAM_ISA names none
        raise UsageError(str(error)) from None


def _told(state_format: str | None) -> str:
    return "as each bundle says" if state_format is None else f"{state_format} as {STATE_FORMAT} says"


def _described(kernels: dict[str, Any]) -> str:
    used, supported = kernels["used"], kernels["supported"]
    if supported == ["plain"]:
        return "plain: slow, this processor has no vector instructions that the native engine uses"
    chosen = " as LRAM_ISA says" if os.environ.get("LRAM_ISA") else ""
    slow = ", slow" if used == "plain" else ""
    return f"{used}{chosen}{slow} (this processor runs: {', '.join(supported)})"

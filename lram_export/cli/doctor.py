"""`doctor`: what this machine can do."""

from __future__ import annotations

import platform

import click

from lram_export import __version__
from lram_export.cli import options
from lram_export.cli.console import human_bytes, print_facts, print_json, print_table
from lram_export.machine import available_cpus, cpu_features, cpu_model, physical_cores, total_memory


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Show which targets are installed, their versions, and what the processor offers."""
    from lram_export.exporters import EXPORTERS
    from lram_export.runtimes import RUNTIMES

    targets = {
        name: {
            "runs": runtime.missing() is None,
            "exports": EXPORTERS[name].missing() is None,
            "versions": {**EXPORTERS[name].versions(), **runtime.versions()},
            "install": f"pip install 'lram-export[{runtime.extra}]'",
        }
        for name, runtime in RUNTIMES.items()
    }
    machine = {
        "lram-export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "physical_cores": physical_cores(),
        "logical_cpus": len(available_cpus()),
        "cpu_features": list(cpu_features()),
        "memory": total_memory(),
    }
    if as_json:
        print_json({"machine": machine, "targets": targets})
        return
    shown = {
        **machine,
        "cpu_features": ", ".join(cpu_features()) or "none known",
        "memory": human_bytes(total_memory()),
    }
    print_facts("this machine", [(name.replace("_", " "), str(value)) for name, value in shown.items()])
    rows = [
        [
            name,
            "yes" if facts["runs"] else "no",
            "yes" if facts["exports"] else "no",
            ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) or "-",  # type: ignore[attr-defined]
            "" if facts["runs"] else str(facts["install"]),
        ]
        for name, facts in targets.items()
    ]
    print_table("targets", ["target", "runs", "exports", "versions", "to install"], rows)

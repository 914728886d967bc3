"""The rooms of the package lie on floors: a room imports what lies below it, and nothing beside or above."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "progress", "version"),
    ("system", "spec", "rates", "hub"),
    ("backbones", "bundle", "camera"),
    ("model", "targets"),
    ("checkpoints", "kernels", "describe", "interface_file"),
    ("runtimes", "swapping"),
    ("arrays", "origin", "interpolation"),
    ("envelope",),
    ("flight",),
    ("step_module", "observations", "conditioning", "episodes"),
    ("lowering", "trainers", "priming"),
    ("exporters",),
    ("policy", "quantization"),
    ("verification", "integrations", "serving"),
    ("benchmark", "rollouts", "conversion"),
    ("loop",),
    ("report",),
    ("export",),
    ("prediction",),
    ("deploy", "sweep", "sharing", "cluster"),
    ("cli",),
    ("entry",),
    ("__main__",),
)
FOLDERS = ("lram_export", "exporters", "runtimes", "kernels/tvm")
NOT_OURS = {"_native"}
"""Compiled, and imported from the package itself."""
SEEN_BY_USERS = ("lram_export/deploy/templates", "lram_export/conversion/servers/templates")
"""Programs of a robot and of a server: they import what users import."""
NAMES = ("mlstm", "slstm")
"""What a backbone calls its own; found in its rooms, and where a user or the training code says it."""
ALLOWED = {
    "lram_export/checkpoints/folder.py",  # says how the format stores them
    "lram_export/checkpoints/random.py",  # `lram-export new --slstm-at`
    "lram_export/cli/checkpoint.py",
    "lram_export/model/config.py",  # reads files of earlier versions
    "kernels/native/CMakeLists.txt",  # names files
}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT)
            if not any(map(relative.is_relative_to, SEEN_BY_USERS)):
                parts = relative.with_suffix("").parts
                parts = parts[1:] if parts[0] == "lram_export" else parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in it, for types, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lram_export":
            base = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                found.add(full if full in known or not base else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("lram_export.") for alias in node.names if "lram_export." in alias.name}
    return found


def test_no_room_imports_what_lies_beside_or_above_it() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    known = modules()
    wrong = []
    for name, path in known.items():
        own = name.split(".")[0]
        if not own:  # the package itself, which imports its public names when they are used
            continue
        for imported in imports(path, known):
            other = imported.split(".")[0]
            if other != own and other not in NOT_OURS and floor[other] >= floor[own]:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    rooms = {name.split(".")[0] for name in modules()} - {""}
    assert rooms == {room for rooms in FLOORS for room in rooms}


def test_what_a_backbone_calls_its_own_stays_in_its_rooms() -> None:
    command = ["git", "grep", "-liE", "|".join(NAMES), "--", "lram_export", "exporters", "runtimes", "kernels"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    outside = {path for path in found if "xlstm" not in path}
    assert outside - ALLOWED == {path for path in outside if path.startswith("kernels/native/")} & outside - ALLOWED
    assert outside >= ALLOWED

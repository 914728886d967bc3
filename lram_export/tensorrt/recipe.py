"""How to build an engine from a bundle's typed ONNX: written at export, followed wherever the engine is built."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lram_export.errors import BundleError

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class EngineEntry:
    """An engine that lies in the bundle: its file, what built it, for which compute capabilities."""

    file: str
    toolkit: str
    version: str
    compute_capabilities: tuple[str, ...]

    def runs_on(self, toolkit: str, version: str, compute_capability: str) -> bool:
        """Whether this machine can run it: engines are tied to the version that built them."""
        return (toolkit, version) == (self.toolkit, self.version) and compute_capability in self.compute_capabilities


@dataclass(frozen=True)
class BuildRecipe:
    """Everything a build needs beside the ONNX file.

    Attributes:
        precision: of the large matrices, as in the manifest; the types are in the graph already.
        device: device profile it was made for, or None.
        compute_capability: of that device, e.g. ``8.7``, or None: whatever builds.
        workspace_bytes: most scratch memory a tactic may ask for; None: no limit.
        memory_bytes: what the engine is predicted to need on the device: weights, both copies of the state, scratch.
        tf32: whether float32 products may be rounded to 19 bits; never by default.
        optimization_level: 0 to 5; how long TensorRT searches.
        timing_cache: file beside the engines in which timings of tactics are kept.
        engines: engines in the bundle itself.
    """

    precision: str
    device: str | None = None
    compute_capability: str | None = None
    workspace_bytes: int | None = None
    memory_bytes: int = 0
    tf32: bool = False
    optimization_level: int = 3
    timing_cache: str = "timing.cache"
    engines: tuple[EngineEntry, ...] = ()

    def write(self, directory: Path) -> Path:
        """Write ``recipe.json`` and return its path."""
        path = directory / RECIPE_FILE
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


_KINDS: dict[str, tuple[type, ...]] = {
    "precision": (str,),
    "device": (str, type(None)),
    "compute_capability": (str, type(None)),
    "workspace_bytes": (int, type(None)),
    "memory_bytes": (int,),
    "tf32": (bool,),
    "optimization_level": (int,),
    "timing_cache": (str,),
    "engines": (list,),
}


def read_recipe(directory: Path) -> BuildRecipe:
    """Read a target folder's ``recipe.json``; raises BundleError naming the field."""
    path = directory / RECIPE_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return _recipe(document)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: {error}") from None


def _recipe(document: dict[str, Any]) -> BuildRecipe:
    for name, kinds in _KINDS.items():
        value = document.get(name)
        if name not in document or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name}: expected {kinds[0].__name__}, got {value!r}")
    for name in ("timing_cache",):
        if not _is_file_name(document[name]):
            raise ValueError(f"{name}: expected a file name, got {document[name]!r}")
    engines = []
    for i, entry in enumerate(document["engines"]):
        file = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(file, str) or not _is_file_name(file):
            raise ValueError(f"engines[{i}].file: expected a file name, got {file!r}")
        capabilities = tuple(entry.get("compute_capabilities", ()))
        engines.append(EngineEntry(file, str(entry.get("toolkit")), str(entry.get("version")), capabilities))
    return BuildRecipe(**{**{name: document[name] for name in _KINDS}, "engines": tuple(engines)})


def _is_file_name(value: str) -> bool:
    return Path(value).name == value and value not in ("", ".", "..")

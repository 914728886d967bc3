"""How to build an engine from a bundle's typed ONNX: written at export, followed wherever the engine is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import compare, properties
from lram_export.errors import BundleError
from lram_export.spec.bounds import MOST_FILE_BYTES, MOST_FILES
from lram_export.spec.json_fields import Fields, check_text, read_json, shown
from lram_export.spec.precision import MIXED, PRECISIONS

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
        identity: what the artifact says about itself (:mod:`lram_export.bundle.identity`); a plan has no room for it.
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
    identity: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write ``recipe.json`` and return its path."""
        path = directory / RECIPE_FILE
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


def read_recipe(directory: Path) -> BuildRecipe:
    """Read a target folder's ``recipe.json``; raises BundleError naming the field."""
    path = directory / RECIPE_FILE
    try:
        return _recipe(Fields.of(read_json(path), ""))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from None


def artifact_recipe(artifact: LoadedArtifact) -> BuildRecipe:
    """An artifact's recipe, which has to say what the manifest says; raises BundleError."""
    path, recipe = artifact.file(RECIPE_FILE), read_recipe(artifact.directory)
    artifact.identity.check(path, recipe.identity)
    compare(path, "precision", recipe.precision, artifact.identity.properties["lram.precision"])
    return recipe


def _recipe(document: Fields) -> BuildRecipe:
    def optional(name: str) -> str | None:
        return None if document.get(name) is None else document.text(name)

    workspace = document.get("workspace_bytes")
    return BuildRecipe(
        precision=document.text("precision", choices=(*PRECISIONS, MIXED)),
        device=optional("device"),
        compute_capability=optional("compute_capability"),
        workspace_bytes=None if workspace is None else document.integer("workspace_bytes", 0, MOST_FILE_BYTES),
        memory_bytes=document.integer("memory_bytes", 0, MOST_FILE_BYTES),
        tf32=document.flag("tf32"),
        optimization_level=document.integer("optimization_level", 0, 5),
        timing_cache=_file_name(document, "timing_cache"),
        engines=tuple(
            _engine(Fields.of(entry, f"engines[{i}]")) for i, entry in enumerate(document.items("engines", MOST_FILES))
        ),
        identity=properties(document) if "identity" in document.data else {},
    )


def _engine(entry: Fields) -> EngineEntry:
    entry.only("file", "toolkit", "version", "compute_capabilities")
    capabilities = entry.items("compute_capabilities", MOST_FILES)
    for i, capability in enumerate(capabilities):
        check_text(capability, entry.path(f"compute_capabilities[{i}]"))
    return EngineEntry(_file_name(entry, "file"), entry.text("toolkit"), entry.text("version"), tuple(capabilities))


def _file_name(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or Path(value).name != value or value in ("", ".", ".."):
        raise ValueError(f"{fields.path(name)}: expected a file name, got {shown(value)}")
    return fields.text(name)

"""The bundle's ``manifest.json``: what is inside, for which task, with which hashes and proofs.

Reading checks every field, so that a damaged or foreign manifest gives one line naming the field.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lram_export import __version__
from lram_export.config import ModelConfig
from lram_export.parity import FLOAT32, ParityResult
from lram_export.precision import FORMATS, MIXED, PRECISIONS, matrix_kind
from lram_export.quantized import QUANTIZED_FILE, MatrixEntry
from lram_export.specification import MAX_FLOAT32, StepSpec, step_spec
from lram_export.tasks import TaskSpec

SCHEMA_VERSION = 3
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path relative to the bundle with forward slashes, SHA-256, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class ArtifactEntry:
    """One target at one precision, its files in the folder named after the target.

    ``activations`` is the format in which the target keeps activations: `float32`, or what it rounds them to.
    ``verified_by`` is the target on whose runtime ``parity`` was found; it is another one where the hardware for
    this one was missing at export.
    """

    target: str
    precision: str
    platform: str
    tools: dict[str, str]
    files: tuple[FileEntry, ...]
    weight_bytes: int
    activations: str = FLOAT32
    parity: ParityResult | None = None
    verified_by: str | None = None

    @property
    def platforms(self) -> tuple[str, ...]:
        """What its files were compiled for, one by one."""
        return tuple(self.platform.split(", "))

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """One SHA-256 over those of all files, names included."""
        lines = "".join(f"{f.sha256} {f.path}\n" for f in sorted(self.files, key=lambda f: f.path))
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class QuantizationEntry:
    """The quantized matrices of a bundle, in one file for all its targets, and how they came about.

    ``calibration`` names the recordings by their SHA-256. ``cost`` is what quantization changed, oracle
    against float32 reference; ``auto`` what `--precision auto` measured before it chose. Both are told, not used.
    """

    method: str
    file: FileEntry
    matrices: tuple[MatrixEntry, ...]
    calibration: tuple[str, ...] = ()
    cost: dict[str, Any] | None = None
    auto: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know before it opens an artifact."""

    name: str
    model: ModelConfig
    parameters: int
    task: TaskSpec
    batch_size: int
    reference: FileEntry
    artifacts: tuple[ArtifactEntry, ...]
    created: str
    source: dict[str, str] = field(default_factory=dict)
    generator: str = f"lram-export {__version__}"
    quantization: QuantizationEntry | None = None
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """Precision of all artifacts."""
        return self.artifacts[0].precision

    @property
    def spec(self) -> StepSpec:
        """Names, shapes and dtypes of a step, derived from model, task and batch size, with the inputs' limits."""
        return step_spec(self.model, self.task, self.batch_size).with_limits(self.limits)

    def dumps(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read_manifest`."""
        artifacts = []
        for entry in self.artifacts:
            parity = None if entry.parity is None else entry.parity.to_json()
            artifacts.append({**asdict(entry), "files": [asdict(f) for f in entry.files], "parity": parity})
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "created": self.created,
            "generator": self.generator,
            "source": self.source,
            "model": {**self.model.to_json(), "parameters": self.parameters},
            "task": self.task.to_json(),
            "specification": self.spec.to_json(),
            "reference": asdict(self.reference),
            "quantization": None if self.quantization is None else _quantization_json(self.quantization),
            "artifacts": artifacts,
        }


def read_manifest(text: str) -> Manifest:
    """Parse and check a manifest.

    Raises:
        ValueError: one line naming the field, what was expected and what came.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, got {type(document).__name__}")
    version = _field(document, "schema_version", int)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version: this bundle has {version}, this lram-export ({__version__}) reads up to "
            f"{SCHEMA_VERSION}; update lram-export"
        )
    if version < 1:
        raise ValueError(f"schema_version: expected 1 or more, got {version}")
    model = dict(_field(document, "model", dict))
    parameters = _field(model, "parameters", int, "model.")
    del model["parameters"]
    specification = _field(document, "specification", dict)
    manifest = Manifest(
        name=_field(document, "name", str),
        created=_field(document, "created", str),
        generator=_field(document, "generator", str),
        source=_field(document, "source", dict),
        model=ModelConfig.from_json(model),
        parameters=parameters,
        task=TaskSpec.from_json(_field(document, "task", dict)),
        batch_size=_field(specification, "batch_size", int, "specification."),
        reference=_file(_field(document, "reference", dict), "reference"),
        quantization=_quantization(document.get("quantization")),
        limits=_limits(_field(specification, "inputs", list, "specification.")),
        artifacts=tuple(
            _artifact(entry, f"artifacts[{i}]") for i, entry in enumerate(_field(document, "artifacts", list))
        ),
    )
    if manifest.spec.to_json() != specification:
        raise ValueError("specification: does not follow from model, task and batch_size")
    if not manifest.artifacts:
        raise ValueError("artifacts: expected at least one")
    targets = [entry.target for entry in manifest.artifacts]
    twice = [target for target in targets if targets.count(target) > 1]
    if twice:
        raise ValueError(f"artifacts: target '{twice[0]}' appears twice")
    other = [entry for entry in manifest.artifacts if entry.precision != manifest.precision]
    if other:
        raise ValueError(f"artifacts: '{other[0].target}' is {other[0].precision}, the others {manifest.precision}")
    if (manifest.quantization is None) != (manifest.precision == "fp32"):
        raise ValueError(f"quantization: does not fit the artifacts' precision '{manifest.precision}'")
    return manifest


def _limits(inputs: list[Any]) -> dict[str, float]:
    """The limits of the float32 inputs of a step; bundles before schema version 3 have none."""
    found: dict[str, float] = {}
    for i, entry in enumerate(inputs):
        if isinstance(entry, dict) and "limit" in entry:
            name, limit = entry.get("name"), entry["limit"]
            allowed = isinstance(limit, float) and 0 < limit <= MAX_FLOAT32
            if name not in ("observation", "return_to_go", "reward") or not allowed or entry.get("dtype") != "float32":
                raise ValueError(
                    f"specification.inputs[{i}].limit: expected a positive float32 number, of observation, "
                    f"return_to_go or reward, got {limit!r} of {name!r}"
                )
            found[name] = limit
    return found


def _quantization_json(entry: QuantizationEntry) -> dict[str, Any]:
    matrices = [{"name": m.name, "format": m.format, "shape": list(m.shape)} for m in entry.matrices]
    return {**asdict(entry), "calibration": list(entry.calibration), "matrices": matrices}


def _quantization(entry: Any) -> QuantizationEntry | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ValueError(f"quantization: expected an object, got {entry!r}")
    prefix = "quantization."
    file = _file(_field(entry, "file", dict, prefix), "quantization.file")
    if file.path != QUANTIZED_FILE:
        raise ValueError(f"quantization.file.path: expected '{QUANTIZED_FILE}', got {file.path!r}")
    return QuantizationEntry(
        method=_field(entry, "method", str, prefix),
        file=file,
        matrices=tuple(
            _matrix(m, f"quantization.matrices[{i}]") for i, m in enumerate(_field(entry, "matrices", list, prefix))
        ),
        calibration=tuple(_field(entry, "calibration", list, prefix)),
        cost=entry.get("cost"),
        auto=entry.get("auto"),
    )


def _matrix(entry: Any, where: str) -> MatrixEntry:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {entry!r}")
    name, shape = _field(entry, "name", str, f"{where}."), _field(entry, "shape", list, f"{where}.")
    if matrix_kind(name) is None:
        raise ValueError(f"{where}.name: '{name}' is not a matrix that is quantized")
    stored_as = _field(entry, "format", str, f"{where}.")
    if stored_as not in FORMATS:
        raise ValueError(f"{where}.format: expected one of {', '.join(FORMATS)}, got '{stored_as}'")
    if len(shape) != 2 or not all(isinstance(extent, int) and extent > 0 for extent in shape):
        raise ValueError(f"{where}.shape: expected two positive numbers, got {shape}")
    return MatrixEntry(name, stored_as, (shape[0], shape[1]))


def _artifact(entry: Any, where: str) -> ArtifactEntry:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {entry!r}")
    prefix = f"{where}."
    parity = entry.get("parity")
    target = _field(entry, "target", str, prefix)
    if not re.fullmatch(r"[a-z0-9_-]+", target):
        raise ValueError(f"{prefix}target: expected a target's name, got {target!r}")
    precision = _field(entry, "precision", str, prefix)
    known = (*PRECISIONS, MIXED)
    if precision not in known:
        raise ValueError(f"{prefix}precision: expected one of {', '.join(known)}, got '{precision}'")
    files = tuple(_file(f, f"{prefix}files[{i}]") for i, f in enumerate(_field(entry, "files", list, prefix)))
    elsewhere = [f.path for f in files if PurePosixPath(f.path).parts[0] != target]
    if elsewhere or not files:
        raise ValueError(f"{prefix}files: expected files in the folder '{target}', got {elsewhere or 'none'}")
    return ArtifactEntry(
        target=target,
        precision=precision,
        platform=_field(entry, "platform", str, prefix),
        tools=_field(entry, "tools", dict, prefix),
        files=files,
        weight_bytes=_field(entry, "weight_bytes", int, prefix),
        activations=_field({"activations": FLOAT32, **entry}, "activations", str, prefix),
        parity=None if parity is None else ParityResult.from_json(parity, f"{prefix}parity"),
        verified_by=None if parity is None else _field({"verified_by": target, **entry}, "verified_by", str, prefix),
    )


def _file(entry: Any, where: str) -> FileEntry:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {entry!r}")
    path = _field(entry, "path", str, f"{where}.")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{where}.path: {path!r} leaves the bundle; refused")
    sha256 = _field(entry, "sha256", str, f"{where}.")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{where}.sha256: expected 64 hexadecimal digits, got {sha256!r}")
    return FileEntry(path, sha256, _field(entry, "size", int, f"{where}."))


def _field(document: dict[str, Any], name: str, kind: type, prefix: str = "") -> Any:
    if name not in document:
        raise ValueError(f"{prefix}{name}: missing")
    value = document[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{prefix}{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value

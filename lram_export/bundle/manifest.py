"""The bundle's ``manifest.json``: what is inside, for which task, with which hashes and proofs.

Reading checks every field, so that a damaged or foreign manifest gives one line naming the field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lram_export.bundle.identity import Identity, identity
from lram_export.bundle.older_schemas import upgraded
from lram_export.spec.bounds import MOST_FILE_BYTES, MOST_FILES, MOST_PARAMETERS
from lram_export.spec.codes import GPTQ, METHODS, QUANTIZED_PLACES, MatrixEntry
from lram_export.spec.interface import Interface, read_interface
from lram_export.spec.json_fields import Fields, parse_json, shown, whole_number
from lram_export.spec.parity import FLOAT32, ParityResult
from lram_export.spec.precision import ACTIVATION_FORMATS, FORMATS, MIXED, PRECISIONS, activation_format
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, check_model_interface, read_step_spec
from lram_export.version import __version__

SCHEMA_VERSION = 7
MANIFEST_FILE = "manifest.json"
INITIAL_FILE = "initial.safetensors"
"""The states that start as a tensor, each under its name, for one row."""
REPORT_FILE = "report.html"
"""The page for the person who signs a policy off: listed with its hash, the one listed file that may be left out."""
FIELDS = (
    *("schema_version", "name", "created", "generator", "source", "model", "task", "specification", "reference"),
    *("report", "initial", "interface", "quantization", "artifacts"),
)
STEP_MODULE = "step_module"
"""``kind`` of a model that is a module of one's own; models of ours have none."""
SHA256 = "[0-9a-f]{64}"
COST_COUNTS = ("steps", "actions", "actions_different", "beyond_one_bin")
COST_ERRORS = ("relative_error", "mean_logit_error", "max_logit_error")
MOST_MATRICES = 1 << 12
MOST_RECORDINGS = 1 << 12
STAND_IN_NAMES = {"tensorrt": ("onnxruntime",), "tvm": ("tvm-host",)}
"""Target -> what may have verified its artifact besides itself."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path relative to the bundle with forward slashes, SHA-256, size in bytes; of a large one
    also the digest of its pieces, see :mod:`lram_export.bundle.digests`."""

    path: str
    sha256: str
    size: int
    pieces_sha256: str | None = None

    @property
    def loaded_by(self) -> str:
        """The digest that loading compares, and so proves."""
        return self.pieces_sha256 or self.sha256

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without the digest of pieces where there is none."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ArtifactEntry:
    """One target at one precision, its files in the folder named after the target.

    ``activations`` is the format in which the target keeps activations: `float32`, or what it rounds them to.
    ``verified_by`` is the target on whose runtime ``parity`` was found; it is another one where the hardware for
    this one was missing at export. ``reads_codes``: it needs the bundle's file of quantized matrices, if there is one;
    otherwise all its weights are in files of its own.
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
    reads_codes: bool = False

    @property
    def platforms(self) -> tuple[str, ...]:
        """What its files were compiled for, one by one."""
        return tuple(self.platform.split(", "))

    @property
    def stand_in(self) -> str | None:
        """What verified it in place of its own runtime, and for which platforms if not for all; None: nothing did."""
        if self.verified_by in (None, self.target):
            return None
        return f"{self.verified_by} {self.tools.get(str(self.verified_by), '')}".rstrip()

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """One SHA-256 over the digests of all files that loading compares, names included."""
        lines = "".join(f"{f.loaded_by} {f.path}\n" for f in sorted(self.files, key=lambda f: f.path))
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class QuantizationEntry:
    """The quantized matrices of a bundle, in one file for all its targets, and how they came about.

    ``calibration`` names the recordings by their SHA-256. ``cost`` is what quantization changed, oracle
    against float32 reference; ``reference_cost`` the same over the recorded steps where ``cost`` is of others;
    ``auto`` what `--precision auto` measured before it chose.
    """

    method: str
    file: FileEntry
    matrices: tuple[MatrixEntry, ...]
    calibration: tuple[str, ...] = ()
    cost: dict[str, Any] | None = None
    reference_cost: dict[str, Any] | None = None
    auto: dict[str, Any] | None = None

    @property
    def recorded_cost(self) -> dict[str, Any] | None:
        """The cost over the recorded steps, which whoever has the checkpoint can measure again."""
        over_recorded = self.cost is not None and self.cost.get("measured_on") == "reference"
        return self.cost if over_recorded else self.reference_cost


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know before it opens an artifact, without knowing the model.

    ``model`` is the architecture as JSON values, for those who know it
    (:meth:`lram_export.model.config.ModelConfig.from_json`). ``initial`` is the file with the states that start as a
    tensor. ``task`` is None for a module of one's own, which does one thing only; ``model`` then has its ``kind``, its
    ``class`` and its ``matrices``. ``interface`` is what the policy says of its robot.

    ``complete``: the artifacts say about themselves what the manifest says, as since schema version 3.
    """

    name: str
    model: Mapping[str, Any]
    parameters: int
    task: TaskSpec | None
    spec: StepSpec
    reference: FileEntry
    artifacts: tuple[ArtifactEntry, ...]
    created: str
    source: dict[str, str] = field(default_factory=dict)
    generator: str = f"lram-export {__version__}"
    quantization: QuantizationEntry | None = None
    report: FileEntry | None = None
    initial: FileEntry | None = None
    interface: Interface = field(default_factory=Interface)
    complete: bool = True

    @property
    def precision(self) -> str:
        """Precision of all artifacts."""
        return self.artifacts[0].precision

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files it lists that a robot needs: without the report."""
        shared = (self.reference, None if self.quantization is None else self.quantization.file, self.initial)
        return (*(f for f in shared if f is not None), *(f for entry in self.artifacts for f in entry.files))

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self.spec.batch_size

    @property
    def identity(self) -> Identity:
        """What the artifacts have to say about themselves."""
        properties = identity(
            name=self.name,
            precision=self.precision,
            task=self.task,
            model=self.model,
            spec=self.spec,
            source_sha256=self.source["sha256"],
            interface=self.interface,
        )
        return Identity(properties, complete=self.complete)

    def dumps(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read_manifest`."""
        artifacts = []
        for entry in self.artifacts:
            parity = None if entry.parity is None else entry.parity.to_json()
            artifacts.append({**asdict(entry), "files": [f.to_json() for f in entry.files], "parity": parity})
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "created": self.created,
            "generator": self.generator,
            "source": self.source,
            "model": {**self.model, "parameters": self.parameters},
            "task": None if self.task is None else self.task.to_json(),
            "specification": self.spec.to_json(),
            "reference": self.reference.to_json(),
            "report": None if self.report is None else self.report.to_json(),
            "initial": None if self.initial is None else self.initial.to_json(),
            "interface": self.interface.to_json() if self.interface else None,
            "quantization": None if self.quantization is None else _quantization_json(self.quantization),
            "artifacts": artifacts,
        }


def read_manifest(text: str) -> Manifest:
    """Parse and check a manifest.

    Raises:
        ValueError: one line naming the field, what was expected and what came.
    """
    document = Fields.of(parse_json(text), "")
    version = document.integer("schema_version", 1, 2**31)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version: this bundle has {version}, this lram-export ({__version__}) reads up to "
            f"{SCHEMA_VERSION}; update lram-export"
        )
    document = upgraded(document, version)
    document.only(*FIELDS)
    model = document.fields("model")
    manifest = Manifest(
        name=document.text("name"),
        created=document.text("created"),
        generator=document.text("generator"),
        source=_source(document),
        model={k: v for k, v in model.data.items() if k != "parameters"},
        parameters=model.integer("parameters", 1, MOST_PARAMETERS),
        task=None if document.get("task") is None else TaskSpec.from_json(document.get("task")),
        spec=read_step_spec(document.fields("specification")),
        reference=_file(document.fields("reference")),
        quantization=None
        if document.get("quantization") is None
        else _quantization(document.fields("quantization"), version),
        report=_optional(document, "report", REPORT_FILE),
        initial=_optional(document, "initial", INITIAL_FILE),
        interface=_interface(document),
        complete=version >= 3,
        artifacts=tuple(
            _artifact(Fields.of(entry, f"artifacts[{i}]")) for i, entry in enumerate(document.items("artifacts", 64))
        ),
    )
    _check_consistent(manifest)
    return manifest


def _optional(document: Fields, name: str, path: str) -> FileEntry | None:
    """The entry of a file that need not be there, and has one place."""
    if document.get(name) is None:
        return None
    file = _file(document.fields(name))
    if file.path != path:
        raise ValueError(f"{name}.path: expected '{path}', got {file.path!r}")
    return file


def _interface(document: Fields) -> Interface:
    return Interface() if document.get("interface") is None else read_interface(document.fields("interface"))


def _source(document: Fields) -> dict[str, str]:
    source = document.fields("source")
    source.only("file", "sha256")
    return {"file": source.text("file"), "sha256": source.text("sha256", pattern="([0-9a-f]{64})?")}


def _check_consistent(manifest: Manifest) -> None:
    """Raise ValueError where two fields of a manifest contradict each other."""
    if (manifest.task is None) != ("kind" in manifest.model):
        raise ValueError("task: expected one of a model of ours, and none of a module of one's own")
    if manifest.task is not None:
        check_model_interface(manifest.spec)
    else:
        _check_module(Fields(dict(manifest.model), "model"))
        told = {tensor.name for tensor in manifest.spec.inputs} & {"return_to_go", "reward"}
        if told:
            raise ValueError(f"specification.inputs: '{min(told)}' is told to models of ours only, not to a module")
    for tensor in manifest.spec.inputs[:-1]:
        limited = manifest.complete and tensor.dtype == "float32" and manifest.task is not None
        if limited != (tensor.limit is not None):
            raise ValueError(f"specification.inputs: {tensor.name}.limit: {'missing' if limited else 'unknown field'}")
    try:
        manifest.interface.check(manifest.spec)
    except ValueError as error:
        raise ValueError(f"interface.{error}") from None
    if bool(manifest.spec.starts_as_tensor) != (manifest.initial is not None):
        raise ValueError("initial: expected a file where a state starts as a tensor, and nowhere else")
    if not manifest.artifacts:
        raise ValueError("artifacts: expected at least one")
    targets = [entry.target for entry in manifest.artifacts]
    twice = [target for target in targets if targets.count(target) > 1]
    if twice:
        raise ValueError(f"artifacts: target '{twice[0]}' appears twice")
    quantization, precision = manifest.quantization, manifest.precision
    if (quantization is None) != (precision == "fp32"):
        raise ValueError(f"quantization: does not fit the artifacts' precision '{precision}'")
    if quantization is not None:
        _check_quantization(manifest, quantization)
    formats = {m.format for m in quantization.matrices} if quantization is not None else set()
    for i, entry in enumerate(manifest.artifacts):
        if entry.precision != precision:
            raise ValueError(f"artifacts: '{entry.target}' is {entry.precision}, the others {precision}")
        expected = activation_format(entry.target, precision, formats)
        if entry.activations != expected:
            raise ValueError(
                f"artifacts[{i}].activations: expected '{expected}' for {entry.target} at {precision}, "
                f"got '{entry.activations}'"
            )
        if entry.parity is not None:
            _check_parity(manifest, entry, entry.parity, f"artifacts[{i}].parity")
        read = entry.size + (0 if quantization is None else quantization.file.size)
        if entry.weight_bytes > 4 * read:  # a step graph may hold a weight in more than one form
            raise ValueError(f"artifacts[{i}].weight_bytes: {entry.weight_bytes} of the {read} bytes in its files")


def _check_module(model: Fields) -> None:
    """What is known of a module of one's own."""
    model.only("kind", "class", "matrices")
    model.text("kind", choices=(STEP_MODULE,))
    model.text("class")
    for name in model.fields("matrices").data:
        shape = model.fields("matrices").items(name, 2)
        if len(shape) != 2:
            raise ValueError(f"model.matrices.{name}: expected two positive numbers, got {shown(shape)}")
        for extent in shape:
            whole_number(extent, f"model.matrices.{name}", 1, MOST_FILE_BYTES)


def _check_quantization(manifest: Manifest, entry: QuantizationEntry) -> None:
    names = [m.name for m in entry.matrices]
    if len(set(names)) != len(names) or not names:
        raise ValueError("quantization.matrices: expected one or more different matrices")
    for i, matrix in enumerate(entry.matrices):
        where = f"quantization.matrices[{i}]"
        named = PRECISIONS.get(manifest.precision)
        if named is not None and matrix.format != named.weights:
            raise ValueError(f"{where}.format: expected {named.weights} at {manifest.precision}, got {matrix.format}")
    if (entry.auto is not None) != (manifest.precision == MIXED):
        raise ValueError(f"quantization.auto: expected what `auto` measured at precision {MIXED}, and nowhere else")
    if entry.method == GPTQ and not entry.calibration:
        raise ValueError(f"quantization.calibration: expected recordings, since the method is {GPTQ}")


def _check_parity(manifest: Manifest, entry: ArtifactEntry, parity: ParityResult, where: str) -> None:
    """A proof is of this artifact, and says the same in all its fields."""
    for name in ("precision", "activations"):
        if getattr(parity, name) != getattr(entry, name):
            raise ValueError(f"{where}.{name}: expected the artifact's, got {getattr(parity, name)!r}")
    chosen = sum(manifest.spec.outputs[place].size for place in manifest.spec.chosen)
    if parity.actions != parity.steps * chosen:
        raise ValueError(f"{where}.actions: expected {parity.steps * chosen} in {parity.steps} steps")
    only_scores = all(manifest.spec.are_scores(place) for place in manifest.spec.computed)
    if parity.worst is not None and only_scores and parity.worst.scale != 1.0:
        raise ValueError(f"{where}.worst.scale: expected 1, since errors of logits are absolute")
    if parity.worst is not None and parity.worst.error != parity.max_logit_error:
        raise ValueError(f"{where}.max_logit_error: does not follow from the worst logit")
    if not parity.passed or parity.failures():
        raise ValueError(f"{where}.passed: expected a proof that passed, within the tolerance")
    if entry.verified_by not in (entry.target, *STAND_IN_NAMES.get(entry.target, ())):
        raise ValueError(f"{where.removesuffix('parity')}verified_by: '{entry.verified_by}' runs no '{entry.target}'")


def _quantization_json(entry: QuantizationEntry) -> dict[str, Any]:
    matrices = [{"name": m.name, "format": m.format, "shape": list(m.shape)} for m in entry.matrices]
    return {**asdict(entry), "file": entry.file.to_json(), "calibration": list(entry.calibration), "matrices": matrices}


def _quantization(entry: Fields, version: int) -> QuantizationEntry:
    file = _file(entry.fields("file"))
    places = QUANTIZED_PLACES if version >= 7 else QUANTIZED_PLACES[:1]
    if file.path not in places:
        raise ValueError(f"quantization.file.path: expected {' or '.join(map(repr, places))}, got {file.path!r}")
    matrices = entry.items("matrices", MOST_MATRICES)
    calibration = entry.items("calibration", MOST_RECORDINGS)
    for i, digest in enumerate(calibration):
        if not isinstance(digest, str) or not re.fullmatch(SHA256, digest):
            raise ValueError(f"quantization.calibration[{i}]: expected 64 hexadecimal digits, got {shown(digest)}")
    quantization = QuantizationEntry(
        method=entry.text("method", choices=METHODS),
        file=file,
        matrices=tuple(_matrix(Fields.of(m, f"quantization.matrices[{i}]")) for i, m in enumerate(matrices)),
        calibration=tuple(calibration),
        cost=_cost(entry, "cost"),
        reference_cost=None if version < 3 else _cost(entry, "reference_cost"),
        auto=None if entry.get("auto") is None else entry.fields("auto").data,
    )
    if version >= 3:
        _check_cost(quantization)
    return quantization


def _check_cost(entry: QuantizationEntry) -> None:
    """Raise ValueError unless the cost over the recorded steps is stated once: what `verify --checkpoint` asks for."""
    if entry.recorded_cost is None:
        missing = "cost" if entry.cost is None else "reference_cost"
        raise ValueError(f"quantization.{missing}: expected the cost over the recorded steps, got none")
    if entry.cost is None or (entry.recorded_cost is entry.cost and entry.reference_cost is not None):
        raise ValueError("quantization.cost: expected a cost over episodes beside reference_cost, got another")


def _cost(entry: Fields, name: str) -> dict[str, Any] | None:
    if entry.get(name) is None:
        return None
    cost = entry.fields(name)
    cost.only("measured_on", *COST_COUNTS, *COST_ERRORS)
    cost.text("measured_on", choices=("reference", "episodes") if name == "cost" else ("reference",))
    for count in COST_COUNTS:
        cost.integer(count, 0, 2**53)
    for error in COST_ERRORS:
        cost.number(error, low=0.0)
    if not cost.data["beyond_one_bin"] <= cost.data["actions_different"] <= cost.data["actions"]:
        raise ValueError(f"quantization.{name}.actions_different: expected between beyond_one_bin and actions")
    return cost.data


def _matrix(entry: Fields) -> MatrixEntry:
    name, shape = entry.text("name"), entry.items("shape", 2)
    if len(shape) != 2:
        raise ValueError(f"{entry.where}.shape: expected two positive numbers, got {shown(shape)}")
    rows, columns = (whole_number(extent, f"{entry.where}.shape", 1, MOST_FILE_BYTES) for extent in shape)
    return MatrixEntry(name, entry.text("format", choices=tuple(FORMATS)), (rows, columns))


def _artifact(entry: Fields) -> ArtifactEntry:
    target = entry.text("target")
    if not re.fullmatch(r"[a-z0-9_-]+", target):
        raise ValueError(f"{entry.where}.target: expected a target's name, got {target!r}")
    files = tuple(
        _file(Fields.of(f, f"{entry.where}.files[{i}]")) for i, f in enumerate(entry.items("files", MOST_FILES))
    )
    elsewhere = [f.path for f in files if PurePosixPath(f.path).parts[0] != target]
    if elsewhere or not files:
        raise ValueError(f"{entry.where}.files: expected files in the folder '{target}', got {elsewhere or 'none'}")
    if len({f.path for f in files}) != len(files):
        raise ValueError(f"{entry.where}.files: a file appears twice")
    parity = entry.get("parity")
    verified_by = entry.get("verified_by")
    if (parity is None) != (verified_by is None):
        raise ValueError(f"{entry.where}.verified_by: expected a target where there is parity, and only there")
    return ArtifactEntry(
        target=target,
        precision=entry.text("precision", choices=(*PRECISIONS, MIXED)),
        platform=entry.text("platform"),
        tools=entry.texts("tools"),
        files=files,
        weight_bytes=entry.integer("weight_bytes", 1, MOST_FILE_BYTES),
        activations=entry.text("activations", choices=ACTIVATION_FORMATS),
        parity=None if parity is None else ParityResult.from_json(parity, f"{entry.where}.parity"),
        verified_by=None if verified_by is None else entry.text("verified_by"),
        reads_codes=entry.flag("reads_codes"),
    )


def _file(entry: Fields) -> FileEntry:
    path = entry.text("path")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{entry.where}.path: {path!r} leaves the bundle; refused")
    if path != "/".join(parts):
        raise ValueError(f"{entry.where}.path: expected {'/'.join(parts)!r}, got {path!r}")
    pieces = _sha256(entry, "pieces_sha256") if "pieces_sha256" in entry.data else None
    return FileEntry(path, _sha256(entry, "sha256"), entry.integer("size", 0, MOST_FILE_BYTES), pieces)


def _sha256(entry: Fields, name: str) -> str:
    digest = entry.text(name)
    if not re.fullmatch(SHA256, digest):
        raise ValueError(f"{entry.where}.{name}: expected 64 hexadecimal digits, got {digest!r}")
    return digest

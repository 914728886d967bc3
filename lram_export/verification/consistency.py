"""What a bundle stores twice outside of its artifacts: recorded steps, codes and limits against the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lram_export.bundle.identity import compare
from lram_export.errors import BundleError
from lram_export.model.config import read_model
from lram_export.model.matrices import matrix_shapes
from lram_export.model.specification import step_spec
from lram_export.spec.codes import QuantizedFile
from lram_export.spec.json_fields import shown
from lram_export.spec.precision import PRECISIONS

if TYPE_CHECKING:
    from lram_export.bundle.bundle import Bundle
    from lram_export.spec.tensors import StepSpec


def check_model(bundle: Bundle) -> None:
    """Does what the manifest says of a step, of weights and of matrices follow from the model and the task?

    A reader takes the manifest's word, so that it need not know the model; whoever verifies a bundle does not.

    Raises:
        BundleError: naming the field, or a backbone that this version does not know.
    """
    manifest, path = bundle.manifest, bundle.path / "manifest.json"
    if manifest.task is None:
        _check_matrices(bundle, path, dict(manifest.model["matrices"]))
        return
    model = read_model(manifest.model, bundle.path)
    try:
        expected = step_spec(model, manifest.task, manifest.batch_size).with_limits(manifest.spec.limits)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    _compare_follows(path, "specification", manifest.spec.to_json(), expected.to_json())
    _compare_follows(path, "model.parameters", manifest.parameters, model.parameters)
    _check_matrices(bundle, path, {n: list(shape) for n, shape in matrix_shapes(model, manifest.task).items()})


def _check_matrices(bundle: Bundle, path: Path, shapes: Mapping[str, Any]) -> None:
    """Compare the quantized matrices with those that the model has."""
    quantization = bundle.manifest.quantization
    for matrix in () if quantization is None else quantization.matrices:
        if matrix.name not in shapes:
            raise BundleError(f"{path}: quantization.matrices: this model has no matrix {matrix.name!r}")
        _compare_follows(path, f"quantization.matrices.{matrix.name}.shape", list(matrix.shape), shapes[matrix.name])


def _compare_follows(path: Path, name: str, said: Any, follows: Any) -> None:
    if isinstance(said, dict) and isinstance(follows, dict) and set(said) == set(follows):
        for key, value in said.items():
            _compare_follows(path, f"{name}.{key}", value, follows[key])
    elif isinstance(said, list) and isinstance(follows, list) and len(said) == len(follows):
        for i, value in enumerate(said):
            _compare_follows(path, f"{name}[{i}]", value, follows[i])
    elif said != follows:
        raise BundleError(
            f"{path}: {name}: is {shown(said)}, from model, task and batch size follows {shown(follows)}; copy or "
            f"export the bundle again"
        )


def check_steps(bundle: Bundle, steps: int) -> None:
    """Compare the number of recorded steps with what the manifest says was done with them; raises BundleError."""
    manifest = bundle.manifest
    path = bundle.path / manifest.reference.path
    for entry in manifest.artifacts:
        if entry.parity is not None:
            compare(path, f"steps that {entry.target} was verified on", steps, entry.parity.steps)
    cost = None if manifest.quantization is None else manifest.quantization.recorded_cost
    if cost is not None:
        compare(path, "steps that the cost was measured on", steps, cost["steps"])


def check_codes_file(bundle: Bundle) -> None:
    """Read the quantized matrices, one after the other: are they numbers, and what the manifest lists?

    Raises:
        BundleError: naming the tensor.
    """
    quantization = bundle.manifest.quantization
    if quantization is None:
        return
    bundle.check_files([quantization.file])
    precision = bundle.manifest.precision
    static = precision in PRECISIONS and PRECISIONS[precision].quantized_activations
    for matrix in QuantizedFile(bundle.path / quantization.file.path, quantization.matrices).matrices():
        if matrix.activation is not None and not static:
            raise BundleError(
                f"{bundle.path / quantization.file.path}: {matrix.name}.activation: the precision {precision} has no "
                f"activation ranges; copy or export the bundle again"
            )


def check_limits(bundle: Bundle, follows: StepSpec) -> None:
    """Compare the limits of the inputs with those that follow from the checkpoint's weights; raises BundleError."""
    limits = bundle.manifest.spec.limits
    if limits:
        compare(bundle.path / "manifest.json", "limits", follows.limits, limits)

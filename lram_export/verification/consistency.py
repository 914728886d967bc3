"""What a bundle stores twice outside of its artifacts: recorded steps, codes and limits against the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lram_export.bundle.identity import compare
from lram_export.errors import BundleError
from lram_export.spec.codes import QuantizedFile
from lram_export.spec.precision import PRECISIONS

if TYPE_CHECKING:
    from lram_export.bundle.bundle import Bundle
    from lram_export.checkpoints.checkpoint import Checkpoint


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
    for matrix in QuantizedFile(bundle.path, quantization.matrices).matrices():
        if matrix.activation is not None and not static:
            raise BundleError(
                f"{bundle.path / quantization.file.path}: {matrix.name}.activation: the precision {precision} has no "
                f"activation ranges; copy or export the bundle again"
            )


def check_limits(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Compare the limits of the inputs with those that the checkpoint's weights allow; raises BundleError."""
    from lram_export.model.limits import input_limits

    limits = bundle.manifest.spec.limits
    if limits:
        compare(bundle.path / "manifest.json", "limits", input_limits(checkpoint.weights, bundle.manifest.task), limits)

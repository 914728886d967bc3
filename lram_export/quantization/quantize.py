"""The quantization pass, between lowering and the exporters: large matrices become codes and scales, once.

What comes out is a :class:`~lram_export.lowering.LoweredPolicy` again. Its model and its step graph compute
with the dequantized weights, so they are the oracle every target is held to; its ``quantization`` has the
codes that every exporter compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lram_export.episodes.batches import batch_episodes
from lram_export.errors import UsageError
from lram_export.lowering import LoweredPolicy, Quantization, matrix_values, with_quantization
from lram_export.model.matrices import select_matrices
from lram_export.model.reference import oracle_threads
from lram_export.progress import SILENT, Progress
from lram_export.quantization.auto import DEFAULT_DISAGREEMENT, choose_formats
from lram_export.quantization.calibrated import quantize_blockwise
from lram_export.quantization.calibration import Calibration, check_enough, load_calibration
from lram_export.quantization.episode_runs import outputs
from lram_export.quantization.nearest import round_to_nearest
from lram_export.spec.codes import GPTQ, NEAREST
from lram_export.spec.cost import QuantizationCost, quantization_cost
from lram_export.spec.precision import AUTO, MIXED, PRECISIONS, calibrated


@dataclass(frozen=True)
class QuantizationOptions:
    """What to quantize and how.

    ``precision`` is a name of :data:`~lram_export.spec.precision.PRECISIONS` or `auto`; ``keep_fp32`` patterns of
    matrices to leave in float32; ``calibration`` recordings of `lram-export record`; ``max_disagreement`` the
    bound of `auto`: share of action values that may differ from float32 by more than one bin.
    """

    precision: str = "fp32"
    keep_fp32: Sequence[str] = ()
    calibration: Sequence[str | Path] = ()
    max_disagreement: float | None = None

    @property
    def result(self) -> str:
        """Name of the precision that comes out: `auto` makes a `mixed` one."""
        return MIXED if self.precision == AUTO else self.precision

    @property
    def static_activations(self) -> bool:
        """Whether the inputs of matrices get static 8-bit ranges."""
        return self.precision in PRECISIONS and PRECISIONS[self.precision].quantized_activations


def check_options(options: QuantizationOptions) -> None:
    """Raise UsageError for options that do not go together."""
    precision = options.precision
    if precision != AUTO and options.max_disagreement is not None:
        raise UsageError(f"--max-disagreement: only with --precision {AUTO}")
    if not options.calibration and (precision == AUTO or options.static_activations):
        raise UsageError(f"--precision {precision}: needs --calibration; make a recording with lram-export record")
    if options.calibration and precision != AUTO and not calibrated(precision):
        raise UsageError(f"--calibration: there is nothing to calibrate at {precision}")


def quantize(
    policy: LoweredPolicy,
    options: QuantizationOptions,
    calibration: Calibration | None = None,
    progress: Progress = SILENT,
    *,
    targets: Sequence[str] = ("onnxruntime",),
) -> LoweredPolicy:
    """Turn every large matrix into codes; a policy in `fp32` comes back as it is.

    Args:
        policy: the policy in float32.
        options: what and how.
        calibration: the episodes of ``options.calibration``, where they are loaded already.
        progress: told about the stages.
        targets: what it is for: `auto` chooses among the formats that all of them store.

    Raises:
        UsageError: a pattern that fits no matrix, or options that do not go together.
        LramError: a recording that does not fit or is too short, or a bound that `auto` cannot keep to.
    """
    check_options(options)
    if options.precision == AUTO and not policy.spec.chosen:
        raise UsageError(
            f"--precision {AUTO}: judges by actions that are chosen from scores, and this policy has none; name one"
        )
    if options.precision == "fp32":
        select_matrices(policy.matrix_names(), options.keep_fp32)
        return policy
    policy = policy.quantizable()
    names = select_matrices(policy.matrix_names(), options.keep_fp32)
    if not names:
        raise UsageError(
            f"--precision {options.precision}: there is no matrix to apply it to; it applies to linear and recurrent "
            f"layers that a step uses once, less those of --keep-fp32. Use fp32"
        )
    if not options.calibration:
        weights = PRECISIONS[options.precision].weights
        with progress.stage(f"quantizing to {options.precision}", len(names)) as advance:
            matrices = {}
            for name in names:
                matrices[name] = round_to_nearest(name, matrix_values(policy, name), weights)
                advance(1)
        return with_quantization(policy, Quantization(options.precision, NEAREST, matrices))
    recorded = calibration or load_calibration(options.calibration, policy.spec)
    with oracle_threads(policy.parameters):  # the last bits of products depend on their number
        return with_quantization(policy, _calibrated(policy, names, options, recorded, targets, progress))


def _calibrated(
    policy: LoweredPolicy,
    names: Sequence[str],
    options: QuantizationOptions,
    recorded: Calibration,
    targets: Sequence[str],
    progress: Progress,
) -> Quantization:
    if options.precision == AUTO:
        bound = DEFAULT_DISAGREEMENT if options.max_disagreement is None else options.max_disagreement
        choice = choose_formats(policy, names, recorded, bound, targets, progress)
        return Quantization(MIXED, GPTQ, choice.matrices, recorded.sha256, choice.to_json(), choice.cost)
    fitted, _ = recorded.split()
    check_enough(fitted, policy.graph, names)
    formats = dict.fromkeys(names, PRECISIONS[options.precision].weights)
    with progress.stage(f"calibrating {options.precision}", len(names)) as advance:
        matrices = quantize_blockwise(policy, formats, fitted, activations=options.static_activations, advance=advance)
    return Quantization(options.precision, GPTQ, matrices, recorded.sha256)


def cost_on_episodes(policy: LoweredPolicy, quantized: LoweredPolicy, calibration: Calibration) -> QuantizationCost:
    """What quantization changed over the episodes that were held out from calibration; `auto` has measured it."""
    if quantized.quantization is not None and quantized.quantization.cost is not None:
        return quantized.quantization.cost
    batches = batch_episodes(calibration.split()[1].episodes)
    with oracle_threads(policy.parameters):
        expected, actual = outputs(policy.graph, batches), outputs(quantized.graph, batches)
    return quantization_cost(policy.spec, policy.bin_width, expected, actual)

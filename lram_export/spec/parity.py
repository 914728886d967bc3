"""Comparing a target with the reference: what counts as equal, and how a difference is told.

The tolerances live here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.bounds import MOST_BATCH, MOST_STEPS
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tensors import MOST_DIMENSIONS, StepSpec

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Tolerance:
    """How far a target may be from its oracle.

    ``logit``: largest absolute error of any action logit; if ``relative``, largest relative error (2-norm) of
    the action logits of one step and row. ``state``: largest relative error (2-norm) of any state tensor. An
    action may differ only where the oracle's own logits were tied within twice ``logit`` (if ``relative``:
    times their norm): then the error may decide.
    """

    logit: float
    state: float
    relative: bool = False

    @property
    def tie(self) -> float:
        """Largest difference of two oracle logits between which an error may decide."""
        return 2 * self.logit


TOLERANCES = {
    "fp32": Tolerance(logit=1e-4, state=1e-4),
    "quantized": Tolerance(logit=2e-3, state=2e-3, relative=True),
    "rounded": Tolerance(logit=3e-2, state=3e-2, relative=True),
}
"""Float32 weights against the float32 reference; quantized weights against the dequantized oracle, and any target
that keeps its state in 16 bits; and any that rounds activations, by 8-bit codes or 16-bit arithmetic. See
:func:`tolerance`."""

FLOAT32 = "float32"
"""Activations that are kept in float32. Anything else (`int8`, `bf16`, `fp16`) says to what they are rounded."""


LAZY_HALF = "lazy-fp16"
STATE_FORMATS = (FLOAT32, LAZY_HALF)
"""In which a target can keep its state."""


def tolerance(precision: str, activations: str, state_format: str = FLOAT32) -> Tolerance:
    """What holds for a target of some precision that keeps its activations and its state in some formats."""
    if activations != FLOAT32:
        return TOLERANCES["rounded"]
    return TOLERANCES["fp32" if precision == "fp32" and state_format == FLOAT32 else "quantized"]


@dataclass(frozen=True)
class WorstLogit:
    """Where the largest logit error was: step, batch row, index within the row, both values, and the magnitude that the
    error is relative to: 1 for a logit."""

    step: int
    row: int
    index: tuple[int, ...]
    expected: float
    actual: float
    scale: float = 1.0

    @property
    def error(self) -> float:
        """The error as it is compared with the tolerance, see :meth:`ParityMeter.add_step`."""
        return abs(self.actual - self.expected) / self.scale


@dataclass(frozen=True)
class ParityResult:
    """What a comparison over many steps found.

    ``state_error`` is None where no reference state was at hand. ``largest_tie`` is the largest difference
    between the reference's logits of its own choice and the target's choice, over all actions that differ;
    where the tolerance is relative, in units of the norm of the step's logits. ``relative_error`` is the
    largest relative error (2-norm) of the logits of one step and row, ``activations`` and
    ``state_format`` the formats the target keeps them and its state in.
    """

    steps: int
    precision: str
    max_logit_error: float
    mean_logit_error: float
    worst: WorstLogit | None
    state_error: float | None
    worst_state: str | None
    actions: int
    actions_different: int
    largest_tie: float
    passed: bool
    relative_error: float | None = None
    activations: str = FLOAT32
    state_format: str = FLOAT32

    @property
    def tolerance(self) -> Tolerance:
        """The bounds that hold for this result."""
        return tolerance(self.precision, self.activations, self.state_format)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        data = dataclasses.asdict(self)
        if data["worst"] is not None:
            data["worst"]["index"] = list(data["worst"]["index"])
        return data

    @staticmethod
    def from_json(data: object, where: str = "parity") -> ParityResult:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        fields = Fields.of(data, where)
        # schema version 1 has none of them
        fields = Fields({"relative_error": None, "activations": FLOAT32, "state_format": FLOAT32, **fields.data}, where)
        fields.only(*(f.name for f in dataclasses.fields(ParityResult)))

        def error(name: str) -> float | None:
            return None if fields.get(name) is None else fields.number(name, low=0.0)

        steps, actions = fields.integer("steps", 1, MOST_STEPS), fields.integer("actions", 0, 2**53)
        return ParityResult(
            steps=steps,
            precision=fields.text("precision"),
            max_logit_error=fields.number("max_logit_error", low=0.0),
            mean_logit_error=fields.number("mean_logit_error", low=0.0, high=fields.number("max_logit_error")),
            worst=None if fields.get("worst") is None else _worst(fields.fields("worst"), steps),
            state_error=error("state_error"),
            worst_state=None if fields.get("worst_state") is None else fields.text("worst_state"),
            actions=actions,
            actions_different=fields.integer("actions_different", 0, actions),
            largest_tie=fields.number("largest_tie", low=0.0),
            passed=fields.flag("passed"),
            relative_error=error("relative_error"),
            activations=fields.text("activations"),
            state_format=fields.text("state_format", choices=STATE_FORMATS),
        )

    def failures(self) -> list[str]:
        """One line per bound that was exceeded, with both values and where to look."""
        bound = self.tolerance
        error = self.relative_error if bound.relative else self.max_logit_error
        lines = []
        if (error is None or not error <= bound.logit) and self.worst is not None:
            w = self.worst
            what = ("relative" if bound.relative else "largest") + (" logit error" if self.actions else " error")
            place = "logit" if self.actions else "element"
            found = "not measured" if error is None else f"{error:.3g}"
            lines.append(
                f"{what} {found} exceeds {bound.logit:.3g}: step {w.step}, row "
                f"{w.row}, {place} {list(w.index)}: reference {w.expected:.6g}, target {w.actual:.6g}"
            )
        if self.state_error is not None and not self.state_error <= bound.state:
            lines.append(f"relative state error {self.state_error:.3g} exceeds {bound.state:.3g}: {self.worst_state}")
        if not self.largest_tie <= bound.tie:
            of_norm = " of their norm" if bound.relative else ""
            lines.append(
                f"{self.actions_different} of {self.actions} actions differ, one where the reference's logits "
                f"were {self.largest_tie:.3g}{of_norm} apart (a tie within {bound.tie:.3g}{of_norm} would be allowed)"
            )
        return lines


def _worst(fields: Fields, steps: int) -> WorstLogit:
    fields = Fields({"scale": 1.0, **fields.data}, fields.where)  # before schema version 5 there were only logits
    fields.only(*(f.name for f in dataclasses.fields(WorstLogit)))
    index = fields.items("index", MOST_DIMENSIONS)
    return WorstLogit(
        step=fields.integer("step", 0, steps - 1),
        row=fields.integer("row", 0, MOST_BATCH - 1),
        index=tuple(whole_number(i, fields.path("index"), 0, 2**31) for i in index),
        expected=fields.number("expected"),
        actual=fields.number("actual"),
        scale=fields.number("scale", low=sys.float_info.min),
    )


class ParityMeter:
    """Compares step by step and sums up."""

    def __init__(
        self,
        spec: StepSpec,
        precision: str = "fp32",
        activations: str = FLOAT32,
        state_format: str = FLOAT32,
        recorded: Mapping[str, Array] | None = None,
    ) -> None:
        """An empty comparison; ``recorded`` are outputs of the reference by name, which tell how large values are."""
        self._spec = spec
        self._typical = {i: typical_value(recorded[spec.outputs[i].name]) for i in spec.computed} if recorded else {}
        self._precision, self._activations, self._state_format = precision, activations, state_format
        self._relative: list[float] = []
        self._steps = 0
        self._sum, self._count = 0.0, 0
        self._max = 0.0
        self._worst: WorstLogit | None = None
        self._state_error: float | None = None
        self._worst_state: str | None = None
        self._actions = self._different = 0
        self._tie = 0.0
        self._per_step: list[NDArray[np.float64]] = []

    def add_step(self, expected: Iterable[Array], actual: Iterable[Array]) -> None:
        """Compare the outputs of one step, both in the order of the specification; NaN counts as an infinite error.

        Errors of logits are absolute: their differences decide. Values that nothing is chosen from can be of any
        magnitude: their errors are relative to the value, or to what is typical of the output (the root of the mean
        square over the recorded steps) where that is larger. Whole numbers are equal or different.
        """
        spec, expected, actual = self._spec, tuple(expected), tuple(actual)
        places = {output.name: i for i, output in enumerate(spec.outputs)}
        errors = []
        self._relative.append(0.0)
        for i in spec.computed:
            typical = None if spec.are_scores(i) else self._typical.get(i, 1.0)
            errors.append(self._add_values(expected[i], actual[i], typical))
        self._per_step.append(np.max(errors, axis=0) if errors else np.zeros(spec.batch_size))
        for i in spec.chosen:
            chosen_from = spec.scores_of(spec.outputs[i])
            if chosen_from is not None:
                at = places[chosen_from.name]
                self._add_actions(expected[i], expected[at].astype(np.float64), actual[i], actual[at])
            else:
                self._add_numbers(expected[i], actual[i])
        self._steps += 1

    def _add_numbers(self, expected: Array, actual: Array) -> None:
        """Compare whole numbers that come without scores."""
        different = int(np.not_equal(expected, actual).sum())
        self._actions += expected.size
        self._different += different
        self._tie = max(self._tie, np.inf if different else 0.0)

    def _add_values(self, expected: Array, actual: Array, typical: float | None) -> NDArray[np.float64]:
        """Compare values (B, ...), with what is typical of them, None for logits; returns the largest error of each
        row."""
        reference = expected.astype(np.float64)
        scale = np.ones_like(reference) if typical is None else np.maximum(typical, np.abs(reference))
        error = np.abs(actual.astype(np.float64) - reference) / scale
        error = np.where(np.isnan(error), np.inf, error)
        for one, other in zip(reference, actual, strict=True):
            floor = 0.0 if typical is None else typical * np.sqrt(one.size)
            self._relative[-1] = max(self._relative[-1], relative_error(one, other, floor))
        largest = float(error.max())
        if self._worst is None or largest > self._max:
            row, *index = (int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            at = (row, *index)
            values = (float(reference[at]), float(actual[at]), float(scale[at]))
            self._worst = WorstLogit(self._steps, row, tuple(index), *values)
            self._max = largest
        self._sum += float(error.sum())
        self._count += error.size
        rows: NDArray[np.float64] = error.reshape(len(error), -1).max(axis=1)
        return rows

    def _add_actions(self, expected: Array, expected_logits: Array, action: Array, logits: Array) -> None:
        """Compare actions (B, A) that were chosen from logits (B, A, K) or (B, K)."""
        different = np.not_equal(expected, action)
        self._actions += expected.size
        self._different += int(different.sum())
        if not different.any():
            return
        # one row of logits per action value: (B * A, K)
        reference = expected_logits.reshape(expected.size, -1)
        chosen = np.nan_to_num(logits, nan=-np.inf).reshape(expected.size, -1).argmax(axis=1)
        rows = np.flatnonzero(different.reshape(-1))
        margin = reference[rows].max(axis=1) - reference[rows, chosen[rows]]
        # A different action from the same choice of logit is no tie but a wrong decoding.
        margin = np.where(chosen[rows] == reference[rows].argmax(axis=1), np.inf, margin)
        if tolerance(self._precision, self._activations, self._state_format).relative:
            norms = np.linalg.norm(expected_logits.reshape(len(expected), -1), axis=1)
            margin /= norms[rows // (expected.size // len(expected))]
        self._tie = max(self._tie, float(margin.max()))

    def add_state(self, expected: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """Compare states; every tensor of ``expected`` counts by itself."""
        for name, reference in expected.items():
            error = relative_error(reference, state[name])
            if self._state_error is None or not error <= self._state_error:
                self._state_error, self._worst_state = error, name

    @property
    def errors(self) -> NDArray[np.float64]:
        """Largest logit error of every step and row, (N, B)."""
        return np.array(self._per_step)

    @property
    def relative_errors(self) -> NDArray[np.float64]:
        """Largest relative error (2-norm) of the logits of every step, over its rows, (N,)."""
        return np.array(self._relative)

    def typical(self, parts: int = 10) -> list[float]:
        """The median over steps of their largest logit error, of each of some equal stretches: one late outlier
        is no growth."""
        stretches = np.array_split(self.errors.max(axis=1), parts)
        return [float(np.median(stretch)) for stretch in stretches if stretch.size]

    def result(self) -> ParityResult:
        """The sum of all steps so far."""
        result = ParityResult(
            steps=self._steps,
            precision=self._precision,
            max_logit_error=self._max,
            mean_logit_error=self._sum / max(self._count, 1),
            worst=self._worst,
            state_error=self._state_error,
            worst_state=self._worst_state,
            actions=self._actions,
            actions_different=self._different,
            largest_tie=self._tie,
            passed=False,
            relative_error=max(self._relative, default=0.0),
            activations=self._activations,
            state_format=self._state_format,
        )
        return dataclasses.replace(result, passed=self._steps > 0 and not result.failures())


def typical_value(values: Array) -> float:
    """The root of the mean square of an output, 1 where it is all 0."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1.0


def _norm(values: NDArray[np.float64]) -> float:
    """The 2-norm, the same bits for any number of BLAS threads: ``np.linalg.norm`` of all elements leaves the order of
    its sum to them."""
    return float(np.sqrt(np.sum(np.square(values))))


def relative_error(expected: Array, actual: Array, floor: float = 0.0) -> float:
    """|actual - expected| / |expected| in the 2-norm, or / ``floor`` if that is more; absolute where both are 0; NaN
    gives infinity."""
    reference = expected.astype(np.float64)
    difference = _norm(actual.astype(np.float64) - reference)
    norm = max(_norm(reference), floor)
    error = difference / norm if norm > 0 else difference
    return error if np.isfinite(error) else float("inf")

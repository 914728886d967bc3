"""Names, shapes, dtypes and initial values of everything that enters or leaves one environment step."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.bounds import MOST_BATCH, MOST_STATES
from lram_export.spec.json_fields import Fields, shown, whole_number

DTYPES = ("float32", "uint8", "int64")
ROLES = ("matrix", "normalizer", "stabilizer", "window", "hidden", "cell", "key", "value", "index")
"""What a state tensor can be, see :class:`StateSpec`."""
MOST_DIMENSIONS, MOST_ELEMENTS, MOST_INPUTS = 8, 1 << 36, 16

SCORES = "_logits"
"""How the name of the scores ends that another output is chosen from: ``action`` from ``action_logits``."""

UNCLAMPED = "_unclamped"
"""How the name of the output ends that says what another one was before it was clamped to its limits."""

MAX_FLOAT32 = float.fromhex("0x1.fffffep127")
"""The largest float32 number."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor that goes in or comes out.

    ``limit`` is the largest magnitude with which the step's arithmetic stays within float32 (float32 inputs only);
    None: not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    limit: float | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``limit`` only where there is one."""
        data: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        return data if self.limit is None else {**data, "limit": self.limit}


@dataclass(frozen=True)
class StateSpec(TensorSpec):
    """One tensor that is carried from step to step, rows first, named ``state.<block>.<part>``.

    Attributes:
        role: what it is, in a word: ``matrix``, ``normalizer``, ``stabilizer`` (a logarithm: it may be of any
            magnitude), ``window`` (of past inputs), ``hidden``, ``cell``, ``key`` and ``value`` (of past tokens, for
            attention), ``index`` (a whole number up to ``limit``: which of several entries is replaced next).
        initial: the value of every element at the start of an episode; None: those of a tensor that the bundle
            carries under the state's name, see :func:`initial_values`.
    """

    role: str = "hidden"
    initial: float | None = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_json(), "role": self.role, "initial": self.initial}


Tensor = TypeVar("Tensor", bound=TensorSpec)
InitialTensors = Mapping[str, NDArray[np.float32]]
"""Name of a state that starts as a tensor -> that tensor, for one row."""


def initial_values(state: StateSpec, tensors: InitialTensors) -> NDArray[np.float32]:
    """What a state is at the start of an episode, in all rows: a read-only view of its shape."""
    value = tensors[state.name] if state.initial is None else np.float32(state.initial)
    return np.broadcast_to(value, state.shape)


@dataclass(frozen=True)
class StepSpec:
    """The interface of one step graph.

    ``inputs`` are observations, of a model of ours ``observation`` and whatever else it embeds (``return_to_go`` and
    ``reward`` of an LRAM), and ``is_first``; ``outputs`` are any, of a model of ours ``action`` and ``action_logits``;
    ``states`` are named ``state.<block>.<part>`` and
    come out again, in the same order and shape, as ``next_state.<block>.<part>``. All have a leading batch dimension
    of ``batch_size`` rows.
    """

    batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all graph inputs, in order."""
        return tuple(t.name for t in (*self.inputs, *self.states))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all graph outputs, in order."""
        return tuple(t.name for t in self.outputs) + tuple(next_name(t.name) for t in self.states)

    @property
    def limits(self) -> dict[str, float]:
        """Name of an input -> its ``limit``, of those that have one."""
        return {t.name: t.limit for t in self.inputs if t.limit is not None}

    def with_limits(self, limits: Mapping[str, float]) -> StepSpec:
        """The same with these limits of inputs."""
        inputs = tuple(dataclasses.replace(t, limit=limits.get(t.name)) for t in self.inputs)
        return dataclasses.replace(self, inputs=inputs)

    def with_batch(self, batch_size: int) -> StepSpec:
        """The same step of another number of rows."""

        def resized(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(dataclasses.replace(t, shape=(batch_size, *t.shape[1:])) for t in tensors)

        return StepSpec(batch_size, resized(self.inputs), resized(self.outputs), resized(self.states))

    @property
    def state_bytes(self) -> int:
        """Size of the recurrent state of the whole batch in bytes (float32)."""
        return 4 * sum(t.size for t in self.states)

    def scores_of(self, output: TensorSpec) -> TensorSpec | None:
        """The output whose largest element decides another one; None for one that is computed as it is.

        Numbers are chosen as `action` of a model of ours is: each from a row of scores. Any other output of numbers may
        be what the scores are the logits of.
        """
        scores = next((t for t in self.outputs if t.name == output.name + SCORES), None)
        if scores is None or output.dtype == "int64":
            return scores
        binned = output.name == "action" and len(output.shape) == 2 and scores.shape[:-1] == output.shape
        return scores if binned else None

    @property
    def computed(self) -> tuple[int, ...]:
        """Places of the outputs that are float32 and computed as they are: scores, and values not chosen from any."""
        return tuple(
            i for i, output in enumerate(self.outputs) if output.dtype == "float32" and self.scores_of(output) is None
        )

    def are_scores(self, place: int) -> bool:
        """Whether another output is chosen from the one at a place."""
        return any(self.scores_of(output) == self.outputs[place] for output in self.outputs)

    @property
    def chosen(self) -> tuple[int, ...]:
        """Places of the other outputs: actions that were chosen from scores, or whole numbers."""
        return tuple(i for i in range(len(self.outputs)) if i not in self.computed)

    def input(self, name: str) -> TensorSpec | None:
        """An input by name; None where a step has none of that name."""
        return next((t for t in self.inputs if t.name == name), None)

    @property
    def starts_as_tensor(self) -> tuple[StateSpec, ...]:
        """The states whose initial value is not a number."""
        return tuple(state for state in self.states if state.initial is None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest holds them; the inverse of :func:`read_step_spec`."""
        return {
            "batch_size": self.batch_size,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "state": [t.to_json() for t in self.states],
        }


def read_step_spec(fields: Fields) -> StepSpec:
    """Read what :meth:`StepSpec.to_json` wrote.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    fields.only("batch_size", "inputs", "outputs", "state")
    batch = fields.integer("batch_size", 1, MOST_BATCH)
    inputs = tuple(_tensor(entry, batch, TensorSpec, ("limit",)) for entry in _entries(fields, "inputs", MOST_INPUTS))
    outputs = tuple(_tensor(entry, batch, TensorSpec) for entry in _entries(fields, "outputs", MOST_INPUTS))
    states = tuple(
        _tensor(entry, batch, StateSpec, ("role", "initial", "limit"))
        for entry in _entries(fields, "state", MOST_STATES)
    )
    spec = StepSpec(batch, inputs, outputs, states)  # type: ignore[arg-type]
    _check_interface(spec, fields)
    return spec


def _entries(fields: Fields, name: str, most: int) -> Iterator[Fields]:
    for i, entry in enumerate(fields.items(name, most)):
        yield Fields.of(entry, f"{fields.path(name)}[{i}]")


def _tensor(entry: Fields, batch: int, kind: type[TensorSpec], more: tuple[str, ...] = ()) -> TensorSpec:
    optional = {"limit"} & set(more) & set(entry.data)
    entry.only("name", "shape", "dtype", *optional, *(name for name in more if name != "limit"))
    shape = entry.items("shape", MOST_DIMENSIONS)
    extents = tuple(whole_number(e, f"{entry.path('shape')}[{i}]", 1, MOST_ELEMENTS) for i, e in enumerate(shape))
    if not extents or extents[0] != batch:
        raise ValueError(f"{entry.path('shape')}: expected rows first, {batch}, got {list(extents)}")
    if math.prod(extents) > MOST_ELEMENTS:
        raise ValueError(f"{entry.path('shape')}: expected at most {MOST_ELEMENTS} elements, got {list(extents)}")
    values: dict[str, Any] = {}
    if optional:
        values["limit"] = entry.number("limit", low=0.0 if kind is StateSpec else 1.0, high=MAX_FLOAT32)
    if "role" in more:
        values["role"] = entry.text("role", choices=ROLES)
    if "initial" in more:
        values["initial"] = None if entry.get("initial") is None else entry.number("initial")
    return kind(entry.text("name"), extents, entry.text("dtype", choices=DTYPES), **values)


def _check_interface(spec: StepSpec, fields: Fields) -> None:
    """Raise ValueError unless it is the interface of a step: what every runtime relies on."""
    names = [tensor.name for tensor in (*spec.inputs, *spec.states)]
    for kind in (names, [tensor.name for tensor in spec.outputs]):
        if len(set(kind)) != len(kind):
            raise ValueError(f"{fields.where}: expected different names, got {shown(kind)}")
    inputs, outputs = fields.path("inputs"), fields.path("outputs")
    if len(spec.inputs) < 2 or spec.inputs[-1].name != "is_first":
        raise ValueError(f"{inputs}: expected an observation, and 'is_first' last, got {shown(names[:8])}")
    if (spec.inputs[-1].shape, spec.inputs[-1].dtype) != ((spec.batch_size,), "float32"):
        raise ValueError(f"{inputs}: is_first: expected float32 of shape {[spec.batch_size]}")
    for where, tensors, dtypes in (
        (inputs, spec.inputs, ("float32", "uint8")),
        (outputs, spec.outputs, ("float32", "int64")),
    ):
        for tensor in tensors:
            if tensor.dtype not in dtypes or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", tensor.name):
                raise ValueError(f"{where}: {shown(tensor.name)}: expected {' or '.join(dtypes)}, got {tensor.dtype}")
    if not spec.outputs:
        raise ValueError(f"{outputs}: expected at least one")
    for output in spec.outputs:
        scores = spec.scores_of(output)
        if scores is not None and (scores.dtype != "float32" or scores.size != output.size * scores.shape[-1]):
            raise ValueError(f"{outputs}: {output.name}: does not fit its logits")
    for state in spec.states:
        if state.dtype != "float32" or not re.fullmatch(r"state\.[A-Za-z0-9_.]+", state.name):
            raise ValueError(f"{fields.path('state')}: {state.name}: expected a float32 tensor named state.BLOCK.PART")


def check_model_interface(spec: StepSpec) -> None:
    """Raise ValueError unless it is the interface of a model of ours, which the step API knows more of."""
    inputs, outputs, rows = "specification.inputs", "specification.outputs", (spec.batch_size,)
    if spec.inputs[0].name != "observation":
        raise ValueError(f"{inputs}: expected 'observation' first, got {shown(spec.inputs[0].name)}")
    for tensor in spec.inputs[1:]:
        if (tensor.shape, tensor.dtype) != (rows, "float32"):
            raise ValueError(f"{inputs}: {tensor.name}: expected float32 of shape {list(rows)}")
    if [tensor.name for tensor in spec.outputs] != ["action", "action_logits"]:
        raise ValueError(f"{outputs}: expected 'action' and 'action_logits'")
    action, logits = spec.outputs
    discrete = action.dtype == "int64"
    if len(logits.shape) != (2 if discrete else 3) or len(action.shape) != 2:
        raise ValueError(f"{outputs}: expected logits of every action value, float32")
    if action.shape[1] != (1 if discrete else logits.shape[1]):
        raise ValueError(f"{outputs}: action: does not fit its logits")


def next_name(state_name: str) -> str:
    """Name of the output that carries a state tensor out: ``state.0.C`` -> ``next_state.0.C``."""
    return f"next_{state_name}"


def state_name(block: int, part: str) -> str:
    """Name of a state tensor: ``state.<block>.<part>``."""
    return f"state.{block}.{part}"


Floats = NDArray[np.float32]


def array(tensor: Any) -> Floats:
    """A parameter of the step graph as numpy."""
    values: Floats = tensor.detach().numpy()
    return values

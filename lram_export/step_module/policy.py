"""What a user says of a module: what goes in, what comes out, what is carried from step to step. Free of torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.spec.bounds import MOST_STATES
from lram_export.spec.interface import Interface
from lram_export.spec.tensors import MOST_DIMENSIONS, MOST_ELEMENTS, MOST_INPUTS, StateSpec, StepSpec, TensorSpec

OBSERVATION, ACTION, IS_FIRST = "observation", "action", "is_first"
INPUT_DTYPES, OUTPUT_DTYPES, STATE_DTYPES = ("float32", "uint8"), ("float32", "int64"), ("float32",)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
RESERVED = (
    *("return_to_go", "reward", "target_return"),
    *("actions", "rewards", "environment", "environments"),
    *("file", "allow_pickle"),
)
"""Names of what the step API fills itself, of what files of recorded steps have beside inputs and outputs, and of what
numpy calls its own arguments where it writes them."""


@dataclass(frozen=True)
class Field:
    """One tensor of one robot: its shape is without rows.

    Attributes:
        shape: (48,), or 48; () for one number. What comes of a :class:`StepPolicy` is a tuple.
        dtype: ``float32``; an input may be ``uint8``, an output ``int64``.
        initial: of a state: its value at the start of an episode, a number or an array of its shape.
    """

    shape: Any
    dtype: str = "float32"
    initial: Any = 0.0


Shape = int | Sequence[int]
Fields = Shape | Mapping[str, Shape | Field]
"""Fields by name, each a :class:`Field` or a shape; or the shape of the only one."""


class StepPolicy:
    """A torch module as a policy that can be exported.

    The module is one step as a pure function: it is called with the observations and the state, in the order in which
    they are named here, all with rows first; it returns the outputs and then the next state, in the same order, in a
    tuple that may be nested, the outputs also as a dict. Where a row starts an episode, its state is the initial one
    before the module sees it; a module that wants to do that itself names ``is_first``, shape (), among the
    observations: (rows,) float32, 1 where a row starts an episode.

    Attributes:
        module: the module, put into evaluation mode.
        observation: inputs by name.
        action: outputs by name; the first one is what :meth:`~lram_export.policy.Policy.act` returns. A whole-number
            output ``NAME`` that is chosen from an output ``NAME_logits`` may differ where those are tied.
        state: what is carried from step to step, by name.
        interface: what is known of the robot: units, names, limits; numbers of it are made fit around the module.
    """

    def __init__(
        self,
        module: Any,
        *,
        observation: Fields,
        action: Fields,
        state: Mapping[str, Shape | Field] | None = None,
        interface: Interface | None = None,
    ) -> None:
        """Check what is said; the module itself is looked at when the policy is exported.

        Raises:
            UsageError: naming the field, what was expected and what came.
        """
        if type(module).__name__ == "OptimizedModule":  # of torch.compile: its graph is made anew, of what it holds
            module = module._orig_mod
        if isinstance(module, type):
            raise UsageError(f"StepPolicy: module: expected a module, got the class {module.__name__}; call it")
        if not callable(getattr(module, "forward", None)) or not callable(getattr(module, "state_dict", None)):
            raise UsageError(f"StepPolicy: module: expected a torch module, got {type(module).__name__}")
        self.module = module
        self.observation = _fields("observation", observation, INPUT_DTYPES, OBSERVATION)
        self.action = _fields("action", action, OUTPUT_DTYPES, ACTION)
        self.state = _fields("state", {} if state is None else state, STATE_DTYPES, None)
        self.interface = Interface() if interface is None else interface
        self._check()

    @property
    def name(self) -> str:
        """What the module's class is called."""
        return type(self.module).__name__

    @property
    def takes_is_first(self) -> bool:
        """Whether the module itself starts episodes."""
        return IS_FIRST in self.observation

    def around(self, module: Any) -> StepPolicy:
        """The same said of another module."""
        return StepPolicy(
            module, observation=self.observation, action=self.action, state=self.state, interface=self.interface
        )

    def spec(self, batch_size: int) -> StepSpec:
        """The interface of a step."""
        if batch_size < 1:
            raise UsageError(f"batch_size: expected a positive number, got {batch_size}")
        given = [(name, field) for name, field in self.observation.items() if name != IS_FIRST]
        states = []
        for name, field in self.state.items():
            initial = None if isinstance(field.initial, np.ndarray) else float(field.initial)
            states.append(StateSpec(f"state.{name}", (batch_size, *field.shape), "float32", initial=initial))
        return StepSpec(
            batch_size=batch_size,
            inputs=(
                *(TensorSpec(name, (batch_size, *field.shape), field.dtype) for name, field in given),
                TensorSpec(IS_FIRST, (batch_size,), "float32"),
            ),
            outputs=tuple(TensorSpec(n, (batch_size, *field.shape), field.dtype) for n, field in self.action.items()),
            states=tuple(states),
        )

    def initial_tensors(self) -> dict[str, NDArray[np.float32]]:
        """The states that start as a tensor, each for one row."""
        return {
            f"state.{name}": field.initial
            for name, field in self.state.items()
            if isinstance(field.initial, np.ndarray)
        }

    def _check(self) -> None:
        for what, fields, most in (
            ("observation", self.observation, MOST_INPUTS - 1),
            ("action", self.action, MOST_INPUTS),
            ("state", self.state, MOST_STATES),
        ):
            if len(fields) > most or (not fields and what != "state"):
                raise UsageError(f"StepPolicy: {what}: expected 1 to {most} fields, got {len(fields)}")
        for name in (*self.observation, *self.action):
            if name in RESERVED:
                raise UsageError(f"StepPolicy: '{name}': a name that is used already; choose another")
        if self.takes_is_first:
            field = self.observation[IS_FIRST]
            if field.shape or field.dtype != "float32":
                raise UsageError(
                    f"StepPolicy: observation: {IS_FIRST}: expected shape () and float32, one number per row, got "
                    f"{field.shape} {field.dtype}"
                )
        if list(self.observation) == [IS_FIRST]:
            raise UsageError(f"StepPolicy: observation: expected an observation beside '{IS_FIRST}'")
        if any(field.initial != 0.0 for field in (*self.observation.values(), *self.action.values())):
            raise UsageError("StepPolicy: initial: only a state has a value at the start of an episode")
        try:
            self.interface.check(self.spec(1))
        except ValueError as error:
            raise UsageError(f"StepPolicy: interface: {error}") from None
        twice = (set(self.observation) | {IS_FIRST}) & set(self.action)
        if twice:
            raise UsageError(f"StepPolicy: '{min(twice)}' is an observation and an action; give them different names")


def _fields(what: str, given: Fields, dtypes: tuple[str, ...], alone: str | None) -> dict[str, Field]:
    """Fields by name, checked."""
    if not isinstance(given, Mapping):
        if alone is None:
            raise UsageError(f"StepPolicy: {what}: expected shapes by name, got {given!r}")
        given = {alone: given}
    return {name: _field(f"{what}: {name}", _name(what, name), field, dtypes) for name, field in given.items()}


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"StepPolicy: {what}: expected names of letters, digits and underscores, got {name!r}")
    return name


def _field(where: str, name: str, given: Shape | Field, dtypes: tuple[str, ...]) -> Field:
    field = given if isinstance(given, Field) else Field(given)
    shape = (field.shape,) if hasattr(field.shape, "__index__") else field.shape
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or not all(hasattr(e, "__index__") and not isinstance(e, bool) and e > 0 for e in shape)
        or len(shape) >= MOST_DIMENSIONS
        or math.prod(shape) > MOST_ELEMENTS
    ):
        raise UsageError(f"StepPolicy: {where}: expected a shape without rows, such as (48,), got {field.shape!r}")
    if field.dtype not in dtypes:
        raise UsageError(f"StepPolicy: {where}: expected {' or '.join(dtypes)}, got {field.dtype!r}")
    extents = tuple(operator.index(extent) for extent in shape)
    return Field(extents, field.dtype, _initial(where, extents, field.initial))


def _initial(where: str, shape: tuple[int, ...], given: Any) -> float | NDArray[np.float32]:
    """A number; or an array, if its elements differ."""
    values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if values.dtype.kind not in "fiu" or values.shape not in ((), shape) or not np.isfinite(values).all():
        raise UsageError(
            f"StepPolicy: {where}: initial: expected a finite number or an array of shape {shape}, got "
            f"{values.dtype} of shape {values.shape}"
        )
    with np.errstate(over="ignore"):
        array = values.astype(np.float32)
    if not np.isfinite(array).all():
        raise UsageError(f"StepPolicy: {where}: initial: expected values within float32, got {values.max():g}")
    same = array.size > 0 and bool((array == array.flat[0]).all())
    return float(array.flat[0]) if same else array

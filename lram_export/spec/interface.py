"""What a policy says of its robot: names, units and limits of every number, how observations are normalized and
actions scaled, what an image is, the rate. Free of torch.

The step graph takes observations as the robot has them and gives actions as the robot takes them: it normalizes,
scales and clamps inside. Numbers are those of one robot, without rows; a list has one number per element, in C order,
and one number stands for all elements.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.bounds import MOST_ELEMENT_NAMES, MOST_FLOAT32, rounded_down
from lram_export.spec.images import ImageSpec
from lram_export.spec.json_fields import Fields, check_text, shown
from lram_export.spec.tensors import UNCLAMPED, StepSpec, TensorSpec

Numbers = float | tuple[float, ...]
"""One for all elements, or one for each."""

UNITS = (
    *("1", "rad", "deg", "rad/s", "deg/s", "rad/s^2", "m", "mm", "m/s", "m/s^2", "N", "N*m", "kg", "s", "Hz"),
    *("A", "V", "W", "Pa", "K", "degC", "T", "quaternion", "pixel", "normalized"),
)
"""What a number can be measured in; ``1``: a number without a unit; ``normalized``: a share of a range, such as
[-1, 1], that the controller knows."""
SMALLEST_DEVIATION = 1e-12
MOST_RATE = 1e6
"""Hz."""
MOST_CLAMPS = 1_000_000_000


@dataclass(frozen=True)
class Normalization:
    """``(value - mean) / deviation``, then clipped to ``[-clip, clip]``, in float32, as trainers do it.

    Statistics of a variance plus an epsilon are given as the deviation that comes of them.
    """

    mean: Numbers = 0.0
    deviation: Numbers = 1.0
    clip: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"mean": _plain(self.mean), "deviation": _plain(self.deviation), "clip": self.clip}

    @staticmethod
    def from_json(fields: Fields) -> Normalization:
        """Read what :meth:`to_json` wrote, or what a person did; raises ValueError naming the field."""
        _only(fields, "mean", "deviation", "clip")
        clip = fields.data.get("clip")
        found = Normalization(
            _numbers(fields, "mean", 0.0),
            _numbers(fields, "deviation", 1.0),
            None if clip is None else fields.number("clip"),
        )
        for value in np.atleast_1d(found.deviation):
            if not value >= SMALLEST_DEVIATION:
                raise ValueError(f"{fields.path('deviation')}: expected positive numbers, got {value:g}")
        if found.clip is not None and not found.clip > 0:
            raise ValueError(f"{fields.path('clip')}: expected a positive number, got {found.clip:g}")
        return found


@dataclass(frozen=True)
class Scaling:
    """``value * scale + offset``: what the network chose, in the robot's units."""

    scale: Numbers = 1.0
    offset: Numbers = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"scale": _plain(self.scale), "offset": _plain(self.offset)}

    @staticmethod
    def from_json(fields: Fields) -> Scaling:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        _only(fields, "scale", "offset")
        found = Scaling(_numbers(fields, "scale", 1.0), _numbers(fields, "offset", 0.0))
        if not np.all(np.asarray(found.scale)):
            raise ValueError(f"{fields.path('scale')}: expected numbers that are not zero")
        return found


@dataclass(frozen=True)
class Limits:
    """The smallest and the largest value of an element. Actions are clamped to them."""

    low: Numbers
    high: Numbers

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"low": _plain(self.low), "high": _plain(self.high)}

    @staticmethod
    def from_json(fields: Fields) -> Limits:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        fields.only("low", "high")
        found = Limits(_numbers(fields, "low"), _numbers(fields, "high"))
        low, high = (np.atleast_1d(side) for side in (found.low, found.high))
        if low.size == high.size or 1 in (low.size, high.size):
            wrong = np.flatnonzero(~(low < high))
            if wrong.size:
                pair = [float(np.broadcast_to(side, np.broadcast(low, high).shape)[wrong[0]]) for side in (low, high)]
                raise ValueError(
                    f"{fields.where}: expected low below high, got {pair[0]:g} and {pair[1]:g} at element {wrong[0]}"
                )
        return found


@dataclass(frozen=True)
class Safety:
    """What an action is held to beyond its limits, tick by tick: outside of the graph, so that the state of the policy
    never knows of it.

    Attributes:
        most_change: by how much an element may differ from the tick before, in the action's units.
        most_clamps: how many ticks in a row a limit may clamp the action. At the next one it becomes the safe action,
            until the row is reset.
        safe_action: what the robot does when it must not do what the policy says.
    """

    most_change: Numbers | None = None
    most_clamps: int | None = None
    safe_action: Numbers | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not said is left out."""
        found = {"most_change": self.most_change, "most_clamps": self.most_clamps, "safe_action": self.safe_action}
        return {
            name: list(said) if isinstance(said, tuple) else said for name, said in found.items() if said is not None
        }

    @staticmethod
    def from_json(fields: Fields) -> Safety:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        _only(fields, "most_change", "most_clamps", "safe_action")
        known = {name for name in fields.data if fields.data[name] is not None}
        if not known:
            raise ValueError(f"{fields.where}: expected most_change, most_clamps or safe_action, got none")
        found = Safety(
            _numbers(fields, "most_change") if "most_change" in known else None,
            fields.integer("most_clamps", 1, MOST_CLAMPS) if "most_clamps" in known else None,
            _numbers(fields, "safe_action") if "safe_action" in known else None,
        )
        for value in np.atleast_1d([] if found.most_change is None else found.most_change):
            if not value > 0:
                raise ValueError(f"{fields.path('most_change')}: expected positive numbers, got {value:g}")
        if found.most_clamps is not None and found.safe_action is None:
            raise ValueError(f"{fields.path('most_clamps')}: expected safe_action beside it: what the robot does then")
        return found


@dataclass(frozen=True)
class FieldInterface:
    """What is known of one observation or action; None: not known, or not done.

    Attributes:
        elements: the name of every element, such as a joint; of a discrete action of every choice.
        units: of every element, or one for all; see :data:`UNITS`.
        limits: of an action clamped to in the graph; of an observation what the sensor can read.
        normalization: of an observation of numbers, done in the graph.
        scaling: of an action of numbers, done in the graph.
        safety: of an action of numbers, heeded by whoever gives it to the robot.
        image: what an observation of pixels is.
    """

    elements: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    limits: Limits | None = None
    normalization: Normalization | None = None
    scaling: Scaling | None = None
    safety: Safety | None = None
    image: ImageSpec | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is left out."""
        found: dict[str, Any] = {}
        if self.elements is not None:
            found["elements"] = list(self.elements)
        if self.units is not None:
            found["units"] = self.units[0] if len(self.units) == 1 else list(self.units)
        for name in ("limits", "normalization", "scaling", "safety", "image"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_json()
        return found

    @property
    def changes_numbers(self) -> bool:
        """Whether the graph does anything for it."""
        return self.normalization is not None or self.scaling is not None or self.limits is not None


@dataclass(frozen=True)
class Interface:
    """What a policy says of its robot; fields by the name of the input or output.

    ``rate`` is how often a second the policy was trained to act, Hz.
    """

    rate: float | None = None
    observation: Mapping[str, FieldInterface] = field(default_factory=dict)
    action: Mapping[str, FieldInterface] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read_interface`."""
        return {
            "rate": self.rate,
            "observation": {name: of.to_json() for name, of in self.observation.items()},
            "action": {name: of.to_json() for name, of in self.action.items()},
        }

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return self != Interface()

    @property
    def computes(self) -> bool:
        """Whether the step graph computes anything for it."""
        return bool(self.normalizations or self.scalings)

    @property
    def normalizations(self) -> dict[str, Normalization]:
        """Name of an observation -> what the graph does to it."""
        return {name: of.normalization for name, of in self.observation.items() if of.normalization is not None}

    @property
    def scalings(self) -> dict[str, FieldInterface]:
        """Name of an action that the graph scales or clamps -> what is known of it."""
        return {name: of for name, of in self.action.items() if of.scaling is not None or of.limits is not None}

    @property
    def clamped(self) -> tuple[str, ...]:
        """Names of the actions that are clamped."""
        return tuple(name for name, of in self.action.items() if of.limits is not None)

    def and_also(self, other: Interface) -> Interface:
        """What both say together; raises ValueError, naming the field, where they say different things."""
        rate = _one_of("rate", self.rate, other.rate)
        sides = []
        for side in ("observation", "action"):
            ours, theirs = getattr(self, side), getattr(other, side)
            fields = {}
            for name in (*ours, *(name for name in theirs if name not in ours)):
                one, two = (fields_of.get(name, FieldInterface()) for fields_of in (ours, theirs))
                parts = [part.name for part in dataclasses.fields(FieldInterface)]
                both = {p: _one_of(f"{side}.{name}.{p}", getattr(one, p), getattr(two, p)) for p in parts}
                fields[name] = FieldInterface(**both)
            sides.append(fields)
        return Interface(rate, *sides)

    def of(self, network: StepSpec) -> StepSpec:
        """The interface of a step that does what is said here, around a network's.

        Observations that are normalized lose the limit of magnitude, which was the network's. What an action was before
        it was clamped is an output of its own, ``NAME_unclamped``; of one that is chosen from scores they tell it.
        """
        inputs = tuple(
            dataclasses.replace(t, limit=_limit_before(t.limit, self.normalizations[t.name]))
            if t.name in self.normalizations and t.limit is not None
            else t
            for t in network.inputs
        )
        more = tuple(
            TensorSpec(t.name + UNCLAMPED, t.shape, t.dtype)
            for t in network.outputs
            if t.name in self.clamped and network.scores_of(t) is None
        )
        return dataclasses.replace(network, inputs=inputs, outputs=(*network.outputs, *more))

    def check(self, spec: StepSpec) -> None:
        """Raise ValueError, naming the field, unless it is of a step of this specification or of its network's."""
        for where, fields, tensors in (
            ("observation", self.observation, observations_of(spec)),
            ("action", self.action, actions_of(spec)),
        ):
            for name, of in fields.items():
                if name not in tensors:
                    raise ValueError(f"{where}.{name}: this policy has no such field; it has {', '.join(tensors)}")
                _check_field(f"{where}.{name}", of, tensors[name], spec)


def observations_of(spec: StepSpec) -> dict[str, TensorSpec]:
    """The inputs of a step that a robot observes, by name."""
    return {t.name: t for t in spec.inputs if t.name not in ("return_to_go", "reward", "is_first")}


def actions_of(spec: StepSpec) -> dict[str, TensorSpec]:
    """The outputs of a step that a robot acts by: no scores, and nothing of what was before it was clamped."""
    found = {t.name: t for place, t in enumerate(spec.outputs) if not spec.are_scores(place)}
    return {name: t for name, t in found.items() if name not in {other + UNCLAMPED for other in found}}


def read_interface(fields: Fields) -> Interface:
    """Read what :meth:`Interface.to_json` wrote, or what a person did, who may leave out what is not known.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    _only(fields, "rate", "observation", "action")
    rate = fields.data.get("rate")
    if rate is not None:
        rate = fields.number("rate", 1 / MOST_RATE, MOST_RATE)
    sides = {}
    for side in ("observation", "action"):
        found = fields.fields(side) if fields.data.get(side) is not None else Fields({})
        read = {name: _field(found.fields(name), side) for name in found.data if found.data[name] is not None}
        sides[side] = {name: of for name, of in read.items() if of != FieldInterface()}
    return Interface(rate, sides["observation"], sides["action"])


def _field(fields: Fields, side: str) -> FieldInterface:
    observed = side == "observation"
    _only(fields, "elements", "units", "limits", *(("normalization", "image") if observed else ("scaling", "safety")))
    known = {name for name in fields.data if fields.data[name] is not None}
    return FieldInterface(
        elements=_names(fields, "elements") if "elements" in known else None,
        units=_units(fields) if "units" in known else None,
        limits=Limits.from_json(fields.fields("limits")) if "limits" in known else None,
        normalization=Normalization.from_json(fields.fields("normalization")) if "normalization" in known else None,
        scaling=Scaling.from_json(fields.fields("scaling")) if "scaling" in known else None,
        safety=Safety.from_json(fields.fields("safety")) if "safety" in known else None,
        image=ImageSpec.from_json(fields.fields("image")) if "image" in known else None,
    )


def _one_of(where: str, one: Any, other: Any) -> Any:
    if one is None or other is None or one == other:
        return other if one is None else one
    said = [shown(part.to_json() if hasattr(part, "to_json") else part) for part in (one, other)]
    raise ValueError(f"{where}: the policy's own file says {said[0]}, the interface {said[1]}; leave it out of one")


def _only(fields: Fields, *names: str) -> None:
    """Refuse fields that are not among ``names``; any may be left out."""
    odd = sorted(set(map(str, fields.data)) - set(names))
    if odd:
        raise ValueError(f"{fields.path(odd[0])}: unknown field; known: {', '.join(names)}")


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    found = fields.items(name, MOST_ELEMENT_NAMES)
    for i, entry in enumerate(found):
        check_text(entry, f"{fields.path(name)}[{i}]")
    twice = [entry for entry in found if found.count(entry) > 1]
    if twice:
        raise ValueError(f"{fields.path(name)}: expected different names, got {shown(twice[0])} twice")
    return tuple(found)


def _units(fields: Fields) -> tuple[str, ...]:
    given = fields.get("units")
    found = [given] if not isinstance(given, list) else fields.items("units", MOST_ELEMENT_NAMES)
    for entry in found:
        if entry not in UNITS:
            raise ValueError(f"{fields.path('units')}: expected one of {', '.join(UNITS)}, got {shown(entry)}")
    if not found:
        raise ValueError(f"{fields.path('units')}: expected one, or one per element, got none")
    return tuple(map(str, found))


def _numbers(fields: Fields, name: str, default: float | None = None) -> Numbers:
    """A number, or a list of them."""
    given = fields.data.get(name)
    if given is None and default is not None:
        return default
    if not isinstance(given, list):
        return fields.number(name)
    found = Fields({str(i): entry for i, entry in enumerate(fields.items(name, MOST_ELEMENT_NAMES))}, fields.path(name))
    if not found.data:
        raise ValueError(f"{fields.path(name)}: expected a number, or one per element, got none")
    return tuple(found.number(i) for i in found.data)


def _plain(numbers: Numbers) -> float | list[float]:
    return list(numbers) if isinstance(numbers, tuple) else numbers


def _check_field(where: str, of: FieldInterface, tensor: TensorSpec, spec: StepSpec) -> None:
    """Raise ValueError unless what is said fits a field's type and number of elements."""
    size = math.prod(tensor.shape[1:])
    whole = tensor.dtype != "float32"
    for name in ("normalization", "scaling", "limits", "safety"):
        if whole and getattr(of, name) is not None:
            raise ValueError(f"{where}.{name}: only of numbers, float32; this field is {tensor.dtype}")
    if of.image is not None and tensor.dtype != "uint8":
        raise ValueError(f"{where}.image: only of pixels, uint8; this field is {tensor.dtype}")
    if of.image is not None and tuple(of.image.shape) != tensor.shape[1:]:
        raise ValueError(f"{where}.image: expected {list(tensor.shape[1:])}, got {list(of.image.shape)}")
    scores = spec.scores_of(tensor) if tensor in spec.outputs else None
    count = scores.shape[-1] if tensor.dtype == "int64" and scores is not None and size == 1 else size
    if of.elements is not None and len(of.elements) != count:
        raise ValueError(f"{where}.elements: expected {count} names, got {len(of.elements)}")
    if of.units is not None and len(of.units) not in (1, size):
        raise ValueError(f"{where}.units: expected 1 or {size}, got {len(of.units)}")
    parts: Sequence[Any] = [of.limits, of.normalization, of.scaling, of.safety]
    for part, name in zip(parts, ("limits", "normalization", "scaling", "safety"), strict=True):
        for key, numbers in ({} if part is None else part.to_json()).items():
            if isinstance(numbers, list) and len(numbers) != size:
                raise ValueError(f"{where}.{name}.{key}: expected 1 or {size} numbers, got {len(numbers)}")
    if of.safety is not None:
        _check_safety(where, of.safety, of.limits, size)


def _check_safety(where: str, safety: Safety, limits: Limits | None, size: int) -> None:
    """Raise ValueError unless an envelope fits the limits that an action is clamped to."""
    if safety.most_clamps is not None and limits is None:
        raise ValueError(f"{where}.safety.most_clamps: expected limits of the action, which say what is clamped")
    if safety.safe_action is not None and limits is not None:
        chosen, low, high = (np.broadcast_to(n, size) for n in (safety.safe_action, limits.low, limits.high))
        beyond = np.flatnonzero((chosen < low) | (chosen > high))
        if beyond.size:
            i = beyond[0]
            raise ValueError(
                f"{where}.safety.safe_action: expected numbers within the limits, {low[i]:g} to {high[i]:g} at element "
                f"{i}, got {chosen[i]:g}"
            )


def _limit_before(limit: float, normalization: Normalization) -> float:
    """How large an observation may be so that the network's is within its limit.

    ``|(x - mean) / deviation| <= (|x| + |mean|) / deviation``; what is clipped within the limit only has to be finite.

    Raises:
        ValueError: a deviation so small that no ordinary observation is left.
    """
    smallest, mean = float(np.min(normalization.deviation)), float(np.max(np.abs(normalization.mean)))
    clipped = normalization.clip is not None and normalization.clip <= limit
    found = min((MOST_FLOAT32 if clipped else limit) * smallest - mean, MOST_FLOAT32)
    if not found >= 1:
        raise ValueError(
            f"normalization.deviation: {smallest:g} is so small that observations above {max(found, 0.0):.3g} would "
            f"leave float32; clip what is normalized, or set the deviation of numbers that never change to 1"
        )
    return rounded_down(found)


Floats = NDArray[np.float32]


def elementwise(numbers: Numbers, tensor: TensorSpec) -> Floats:
    """Numbers as a float32 array that fits the elements of a field, for one row: its shape, or ()."""
    values = np.asarray(numbers, np.float32)
    return values if values.ndim == 0 else values.reshape(tensor.shape[1:])


def normalized(values: Floats, tensor: TensorSpec, normalization: Normalization) -> Floats:
    """A field with rows as the network takes it; every operation in float32."""
    found = (values - elementwise(normalization.mean, tensor)) / elementwise(normalization.deviation, tensor)
    if normalization.clip is not None:
        found = np.clip(found, np.float32(-normalization.clip), np.float32(normalization.clip))
    return np.asarray(found, np.float32)


def scaled(values: Floats, tensor: TensorSpec, of: FieldInterface) -> Floats:
    """A field with rows in the robot's units, before it is clamped."""
    if of.scaling is None:
        return values
    found = values * elementwise(of.scaling.scale, tensor) + elementwise(of.scaling.offset, tensor)
    return np.asarray(found, np.float32)


def clamped(values: Floats, tensor: TensorSpec, of: FieldInterface) -> Floats:
    """A field with rows within its limits."""
    if of.limits is None:
        return values
    return np.clip(values, elementwise(of.limits.low, tensor), elementwise(of.limits.high, tensor))

"""A policy of an arm with two joints, and the parameters of its node."""

from __future__ import annotations

from typing import Any

from lram_ros.parameters import PARAMETERS

from lram_export import StepPolicy
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety
from tests.loop.robots import Follower

RATE = 100.0


def arm(**action: Any) -> StepPolicy:
    """Does what it observes: the hip's position and the knee's velocity."""
    seen = FieldInterface(elements=("hip", "knee"), units=("rad", "rad/s"), limits=Limits(-50.0, 50.0))
    usual = {"elements": ("hip", "knee"), "units": ("rad",), "limits": Limits(-8.0, 8.0)}
    usual["safety"] = Safety(most_change=4.0, safe_action=0.5)
    interface = Interface(RATE, {"observation": seen}, {"action": FieldInterface(**{**usual, **action})})
    return StepPolicy(Follower(), observation=2, action=2, state={"count": 1}, interface=interface)


def in_degrees() -> StepPolicy:
    """Does what it observes: the knee gets the hip's position, the hip the knee's."""
    seen = FieldInterface(elements=("hip", "knee"), units=("deg",), limits=Limits(-180.0, 180.0))
    safety = Safety(most_change=4.0)
    done = FieldInterface(elements=("knee", "hip"), units=("deg",), limits=Limits(-180.0, 180.0), safety=safety)
    interface = Interface(RATE, {"observation": seen}, {"action": done})
    return StepPolicy(Follower(), observation=2, action=2, state={"count": 1}, interface=interface)


def values(**told: Any) -> dict[str, Any]:
    """Parameters as the node reads them; dots in names are two underscores."""
    return {p.name: p.default for p in PARAMETERS} | {name.replace("__", "."): told[name] for name in told}

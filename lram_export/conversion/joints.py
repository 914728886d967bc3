"""What an interface says of joints: names as other programs have them, and which quantity of a joint a field is.

As for ROS, an element may be called ``JOINT/position``, ``JOINT/velocity`` or ``JOINT/effort``; one that says no
quantity has that of its unit.
"""

from __future__ import annotations

from lram_export.spec.interface import FieldInterface

UNITS = {"position": ("rad", "m"), "velocity": ("rad/s", "m/s"), "effort": ("N*m", "N")}
"""Quantity -> units of a turning and of a sliding joint, in which others give and take it."""
TURNING = {units[0]: quantity for quantity, units in UNITS.items()}


def quantity(of: FieldInterface) -> str | None:
    """What all elements of a field are, in the units of :data:`UNITS`; None: not known, others, or not all the same."""
    if of.units is None:
        return None
    names: tuple[str | None, ...] = of.elements or (None,) * len(of.units)
    units = of.units * len(names) if len(of.units) == 1 else of.units
    found = {_quantity(name, unit) for name, unit in zip(names, units, strict=True)}
    return found.pop() if len(found) == 1 else None


def joint_names(of: FieldInterface) -> list[str] | None:
    """The names of a field's elements, of joints without a quantity that all of them say; None: not known."""
    if of.elements is None:
        return None
    said = {_said(name) for name in of.elements}
    if len(said) > 1 or None in said:
        return list(of.elements)
    return [name.rpartition("/")[0] for name in of.elements]


def _quantity(name: str | None, unit: str) -> str | None:
    said = _said(name)
    if said is None:
        return TURNING.get(unit)
    return said if unit in UNITS[said] else None


def _said(name: str | None) -> str | None:
    """The quantity that a name ends with."""
    joint, _, last = (name or "").rpartition("/")
    return last if joint and last in UNITS else None

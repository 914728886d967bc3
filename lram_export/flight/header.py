"""What a flight says of itself: which bundle ran, where, how. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lram_export.flight.place import Place
from lram_export.spec.json_fields import Fields, parse_json
from lram_export.spec.tensors import StepSpec, read_step_spec

NAME = "lram_export.flight"
"""Of the file's metadata; one for each bundle that ran."""

VERSION = 1


@dataclass(frozen=True)
class FlightHeader:
    """Which policy flies from here on.

    Attributes:
        number: of the bundle in this file, from 0; another one takes over with the next.
        bundle: the name of its folder.
        digest: what tells what its target runs from anything else, one SHA-256; "": not known.
        weights: SHA-256 of the checkpoint's; "": not known.
        target: that ran.
        precision: of what ran.
        threads: of the runtime; 0: not known.
        place: the processor and the software, where the same artifact chooses the same actions to the bit.
        rate: steps per second, Hz; ``ticks``: actions per step.
        began: when, in nanoseconds since 1970.
        spec: of a step.
        reward_scale: what rewards are divided by; None: the policy is told none.
        release: of lram-export.
    """

    number: int
    bundle: str
    digest: str
    weights: str
    target: str
    precision: str
    threads: int
    place: Place
    rate: float
    ticks: int
    began: int
    spec: StepSpec
    reward_scale: float | None
    release: str

    def to_metadata(self) -> dict[str, str]:
        """As MCAP holds it: texts by name."""
        return {
            "version": str(VERSION),
            "number": str(self.number),
            "bundle": self.bundle,
            "digest": self.digest,
            "weights": self.weights,
            "target": self.target,
            "precision": self.precision,
            "threads": str(self.threads),
            "machine": self.place.machine,
            "features": self.place.features,
            "software": self.place.software,
            "rate": json.dumps(self.rate),
            "ticks": str(self.ticks),
            "began": str(self.began),
            "specification": json.dumps(self.spec.to_json()),
            "reward_scale": json.dumps(self.reward_scale),
            "release": self.release,
        }


def read_header(metadata: Mapping[str, str]) -> FlightHeader:
    """What :meth:`FlightHeader.to_metadata` wrote.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    if metadata.get("version") != str(VERSION):
        found = metadata.get("version")
        raise ValueError(f"version: expected {VERSION}, got {found!r}; read it with the release that wrote it")
    numbers = ("number", "threads", "rate", "ticks", "began", "specification", "reward_scale")
    fields = Fields({k: parse_json(v) if k in numbers else v for k, v in metadata.items()})
    scale = fields.get("reward_scale")
    return FlightHeader(
        number=fields.integer("number", 0, 2**31),
        bundle=fields.text("bundle"),
        digest=fields.text("digest"),
        weights=fields.text("weights"),
        target=fields.text("target"),
        precision=fields.text("precision"),
        threads=fields.integer("threads", 0, 2**31),
        place=Place(fields.text("machine"), fields.text("features"), fields.text("software")),
        rate=fields.number("rate", 0.0),
        ticks=fields.integer("ticks", 1, 2**31),
        began=fields.integer("began", 0, 2**63),
        spec=read_step_spec(fields.fields("specification")),
        reward_scale=None if scale is None else fields.number("reward_scale"),
        release=fields.text("release"),
    )

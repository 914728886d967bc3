"""Sizes, weights and state. Free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.spec.json_fields import Fields
from lram_export.spec.tensors import StateSpec

STATE = "state.0.sum"


@dataclass(frozen=True)
class LeakyConfig:
    """One layer of ``hidden_size`` sums."""

    kind: ClassVar[str] = "leaky"
    hidden_size: int
    num_blocks: int = 1

    def weights(self) -> list[WeightSpec]:
        size = self.hidden_size
        return [
            WeightSpec("encoder.mix.weight", (size, size), Draw(size**-0.5), matrix="mix"),
            WeightSpec("encoder.leak", (size,), Draw(1.0)),
            WeightSpec("encoder.start", (size,), Draw(1.0)),
        ]

    def states(self, batch_size: int, tokens: int) -> list[StateSpec]:
        return [StateSpec(STATE, (batch_size, self.hidden_size), "float32", role="hidden", initial=None)]

    def facts(self) -> list[tuple[str, str]]:
        return [("hidden size", str(self.hidden_size))]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


def read(fields: Fields) -> LeakyConfig:
    fields.only("kind", "hidden_size", "num_blocks")
    return LeakyConfig(fields.integer("hidden_size", 1, 1 << 15), fields.integer("num_blocks", 1, 1))

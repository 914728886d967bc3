"""What reading a backbone's sizes has in common, from a manifest and from weights. Free of torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lram_export.errors import CheckpointError
from lram_export.spec.json_fields import Fields

Config = TypeVar("Config")


def read_sizes(kind: type[Config], fields: Fields, **values: Any) -> Config:
    """A data class of sizes from what its ``to_json`` wrote, with some ``values`` in another form than JSON has.

    Raises:
        ValueError: naming the field that is missing, unknown or wrong.
    """
    fields.only("kind", *(field.name for field in dataclasses.fields(kind)))  # type: ignore[arg-type]
    try:
        return kind(**{**{name: value for name, value in fields.data.items() if name != "kind"}, **values})
    except ValueError as error:
        raise ValueError(f"{fields.where}.{error}") from None


@dataclass(frozen=True)
class FoundWeights:
    """What a checkpoint without a config shows of its sizes.

    Attributes:
        where: the file and what it is, for messages.
        shapes: of all weights, by name.
        given: sizes that they do not show and the user says, of the backbone's ``HINTS``.
        assumptions: takes what neither shows.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    given: Mapping[str, int]
    assumptions: list[str]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape; raises CheckpointError where it is missing."""
        if name not in self.shapes:
            raise CheckpointError(f"{self.where}: {name}: missing; is this a checkpoint of an action model?")
        return self.shapes[name]

    def block_count(self, block: re.Pattern[str]) -> int:
        """How many blocks there are; ``block`` finds a block's number in a weight's name.

        Raises:
            CheckpointError: there is none, or one is missing.
        """
        blocks = sorted({int(found[1]) for name in self.shapes if (found := block.match(name))})
        if not blocks or blocks != list(range(len(blocks))):
            prefix = block.pattern.split("(")[0].replace("\\", "")
            raise CheckpointError(f"{self.where}: {prefix}: expected blocks 0, 1, 2, ..., got {blocks}")
        return len(blocks)

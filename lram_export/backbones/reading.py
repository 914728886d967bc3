"""What reading a backbone's sizes has in common, from a manifest and from weights. Free of torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
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


def block_count(names: Iterable[str], block: re.Pattern[str], path: Path) -> int:
    """How many blocks have weights of these names; ``block`` finds a block's number, ``path`` is for messages.

    Raises:
        CheckpointError: there is none, or one is missing.
    """
    blocks = sorted({int(found[1]) for name in names if (found := block.match(name))})
    if not blocks or blocks != list(range(len(blocks))):
        prefix = block.pattern.split("(")[0].replace("\\", "")
        raise CheckpointError(f"{path}: {prefix}: expected blocks 0, 1, 2, ..., got {blocks}")
    return len(blocks)

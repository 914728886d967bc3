"""Reference backbones whose training code takes one token after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lram_export.backbones.protocol import State
from lram_export.backbones.state import select_rows
from lram_export.spec.tokens import TokenLayout


class TokenByToken(nn.Module, ABC):
    """A :class:`~lram_export.backbones.protocol.ReferenceBackbone` by ``nest``, ``token`` and ``flatten``."""

    @abstractmethod
    def nest(self, state: Mapping[str, Tensor]) -> Any:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""

    @abstractmethod
    def token(self, x: Tensor, nested: Any) -> tuple[Tensor, Any]:
        """One token of all rows, (B, 1, hidden), and the nested state, which is used up; the same out."""

    @abstractmethod
    def flatten(self, nested: Any) -> State:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""

    def initial_tensors(self, padding: Tensor) -> dict[str, Tensor]:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`: all states start as numbers."""
        return {}

    def step(self, tokens: Tensor, first: Tensor, layout: TokenLayout, nested: Any) -> tuple[Tensor, Any]:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        starts, read = bool(first.any()), tokens[:, :1]
        for position in range(len(layout)):
            before = self.flatten(nested) if starts and position < layout.skipped else None
            left, nested = self.token(tokens[:, position : position + 1], nested)
            if before is not None:
                nested = self.nest(select_rows(first, before, self.flatten(nested)))
            if position == layout.read_position:
                read = left
        return read[:, 0], nested

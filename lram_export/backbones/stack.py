"""Blocks one after the other: the stack of the backbones that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lram_export.spec.tensors import state_name
from lram_export.spec.tokens import TokenLayout


@dataclass(frozen=True)
class BlockStage:
    """A block: see :class:`~lram_export.backbones.protocol.Stage`."""

    name: str
    states: tuple[str, ...]
    run: Callable[..., tuple[Tensor, ...]]


class BlockStack(nn.Module):
    """Blocks, and the norm behind the last one: a :class:`~lram_export.backbones.protocol.Stack`.

    A block is a module (tokens, first, present, *state) -> (tokens, *next state), as a stage is, whose ``parts`` are
    the names of its states.
    """

    def __init__(self, blocks: Iterable[nn.Module], post_norm: nn.Module, layout: TokenLayout) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.post_norm = post_norm
        self._position = layout.read_position - len(layout)  # from the end, as a constant of the graph

    def forward(self, tokens: Tensor, first: Tensor, present: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """See :class:`~lram_export.backbones.protocol.Stack`."""
        next_state: list[Tensor] = []
        remaining = list(state)
        for stage in self.stages():
            count = len(stage.states)
            tokens, *after = stage.run(tokens, first, present, *remaining[:count])
            next_state += after
            remaining = remaining[count:]
        return (self.read(tokens), *next_state)

    def stages(self) -> list[BlockStage]:
        """One for each block."""
        blocks: Iterable[Any] = self.blocks
        return [
            BlockStage(f"blocks.{i}.", tuple(state_name(i, part) for part in block.parts), block)
            for i, block in enumerate(blocks)
        ]

    def initial_tensors(self) -> dict[str, Tensor]:
        """See :class:`~lram_export.backbones.protocol.Stack`: all states start as numbers."""
        return {}

    def read(self, tokens: Tensor) -> Tensor:
        """See :class:`~lram_export.backbones.protocol.Stack`."""
        read: Tensor = self.post_norm(tokens[:, self._position])
        return read

"""What a backbone offers: one package per kind, the same file names in all. Free of torch, which is in types only.

``config.py``    the sizes, a :class:`BackboneConfig`, and the published ones, ``PRESETS`` and ``preset_sizes``; free of
                 torch. Where one policy can be run in several ways that act differently, ``CONTEXTS`` names them, the
                 config's ``context`` says which one it is, and ``in_context`` turns one into the other. Where a step
                 multiplies every weight with many tokens, the config's ``products()`` counts the multiplications
``original.py``  how the training code describes it and names its weights
``reference.py`` ``build(config, context_length)``: a :class:`ReferenceBackbone`
``step.py``      ``build(reference, layout, padding)``: a :class:`Stack`, the same as part of the step graph;
                 ``padding`` (T, hidden) are the tokens of a step in which every input is 0
``fused.py``     its matrices as fused kernels read them

What a target needs beyond that lies beside its exporter, under the backbone's name: ``exporters/native/<kind>.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from lram_export.spec.tensors import StateSpec
from lram_export.spec.tokens import TokenLayout

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = "dict[str, torch.Tensor]"
"""Name of a weight in a checkpoint -> its values."""
State: TypeAlias = "dict[str, torch.Tensor]"
"""Name of a state tensor -> its values."""


@dataclass(frozen=True)
class Draw:
    """How `lram-export new` draws a weight: ``mean`` + ``deviation`` * normal.

    ``ramp`` raises the mean of some elements, from one index to before another, evenly from 2 to 6: the forget gates
    of a trained model, which remember for tens to hundreds of steps.
    """

    deviation: float
    mean: float = 0.0
    ramp: tuple[int, int] | None = None


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a checkpoint.

    Attributes:
        name: in the checkpoint, as the original code calls it.
        shape: its shape.
        draw: how a random one is drawn.
        matrix: name in the step graph of the large matrix that a precision applies to; None: it stays float32.
        drives_state: the matrix's output drives the recurrent state through exponentials: `w8a8` leaves its input in
            float32.
    """

    name: str
    shape: tuple[int, ...]
    draw: Draw
    matrix: str | None = None
    drives_state: bool = False


class BackboneConfig(Protocol):
    """The sizes of a backbone, a frozen data class."""

    kind: ClassVar[str]

    @property
    def hidden_size(self) -> int:
        """Width of the tokens that go in and come out."""

    @property
    def num_blocks(self) -> int:
        """How many blocks are computed one after the other."""

    def weights(self) -> Sequence[WeightSpec]:
        """All weights, in the original code's names."""

    def states(self, batch_size: int, tokens: int) -> Sequence[StateSpec]:
        """What is carried from step to step, in the order of the step graph, for steps of so many tokens."""

    def facts(self) -> list[tuple[str, str]]:
        """The sizes in words, for people."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with ``kind``."""


class Stage(Protocol):
    """A part of a stack that runs by itself, with a memory of its own."""

    name: str
    """What the names of its matrices begin with."""
    states: tuple[str, ...]
    """The state tensors it carries, as the specification calls them."""
    run: Callable[..., tuple[torch.Tensor, ...]]
    """(tokens, first, present, *state) -> (tokens, *next state)."""


class Stack(Protocol):
    """The backbone as part of the step graph, a torch module."""

    def __call__(
        self, tokens: torch.Tensor, first: torch.Tensor, present: torch.Tensor, *state: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """One step.

        Args:
            tokens: (B, T, hidden).
            first: (B,) bool, rows that start an episode: their state is the initial one, whatever came in.
            present: (B, T) float32, 0 where a row does not see a token, else 1.
            state: as :meth:`BackboneConfig.states` lists it.

        Returns:
            What the head reads, (B, hidden), and the next state.
        """

    def stages(self) -> Sequence[Stage]:
        """Its parts in order: one after the other they do what a call does, but for :meth:`read`."""

    def initial_tensors(self) -> Mapping[str, torch.Tensor]:
        """By name, for one row: the states whose initial value is not a number."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the head reads of what the last stage left, (B, T, hidden) -> (B, hidden)."""


class ReferenceBackbone(Protocol):
    """The backbone as the training code computes it: a torch module whose weights have the original's names, less
    `encoder.`.

    What is trained here (`examples/metaworld`) has a ``forward``, too: whole sequences at once, (B, tokens, hidden) ->
    the same.
    """

    def initial_tensors(self, padding: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See :class:`Stack`; ``padding`` (T, hidden) are the tokens of a step in which every input is 0."""

    def nest(self, state: Mapping[str, torch.Tensor]) -> Any:
        """The state, by name, in the form of the training code; whatever that changes in place is a copy."""

    def step(
        self, tokens: torch.Tensor, first: torch.Tensor, layout: TokenLayout, nested: Any
    ) -> tuple[torch.Tensor, Any]:
        """One step of all rows.

        Args:
            tokens: (B, T, hidden); those that are skipped are, in rows that start an episode, those of padding.
            first: (B,) bool, rows that start an episode; their state is the initial one.
            layout: of the tokens.
            nested: the state, which is used up.

        Returns:
            What the head reads, (B, hidden), and the next state, nested.
        """

    def flatten(self, nested: Any) -> State:
        """The inverse of :meth:`nest`."""


BuildReference: TypeAlias = Callable[[Any, int], "ReferenceBackbone"]
BuildStack: TypeAlias = Callable[[Any, TokenLayout, "torch.Tensor"], "Stack"]

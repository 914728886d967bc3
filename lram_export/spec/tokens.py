"""The tokens of a step: what a policy embeds of its inputs, in which order, and where its action is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lram_export.spec.json_fields import Fields

MOST_TOKENS = 16


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        name: what it is called, in the step graph, too (``embed_<name>``).
        input: the input of the step that it embeds.
        skipped_at_start: the backbone does not see it at the first step of an episode.
        zero: it is always that of an input of 0, and the step has no such input.
    """

    name: str
    input: str
    skipped_at_start: bool = False
    zero: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``zero`` only where it is."""
        data = {"name": self.name, "input": self.input, "skipped_at_start": self.skipped_at_start}
        return {**data, "zero": True} if self.zero else data


@dataclass(frozen=True)
class TokenLayout:
    """All tokens of a step in their order; ``read`` names the one behind which the action is read."""

    tokens: tuple[Token, ...]
    read: str

    def __post_init__(self) -> None:
        """Raise ValueError unless names differ, ``read`` is one of them, and what is skipped comes first."""
        names = [token.name for token in self.tokens]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"tokens: expected one or more different names, got {names}")
        if self.read not in names:
            raise ValueError(f"tokens.read: expected one of {', '.join(names)}, got {self.read!r}")
        if sorted(self.tokens, key=lambda token: not token.skipped_at_start) != list(self.tokens):
            raise ValueError("tokens: those that are skipped at the start of an episode come first")
        if all(token.skipped_at_start for token in self.tokens):
            raise ValueError("tokens: expected one that is not skipped at the start of an episode")
        if any(token.zero and (token.skipped_at_start or token.input == "observation") for token in self.tokens):
            raise ValueError("tokens: one that is always zero is neither the observation nor skipped")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def skipped(self) -> int:
        """How many tokens are skipped at the start of an episode: the first ones."""
        return sum(token.skipped_at_start for token in self.tokens)

    @property
    def read_position(self) -> int:
        """Place of the token behind which the action is read."""
        return next(i for i, token in enumerate(self.tokens) if token.name == self.read)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What tokens embed, in their order, whether it is an input of the step or always zero."""
        return tuple(token.input for token in self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        return {"sequence": [token.to_json() for token in self.tokens], "read": self.read}

    @staticmethod
    def from_json(fields: Fields) -> TokenLayout:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        fields.only("sequence", "read")
        tokens = []
        for i, entry in enumerate(fields.items("sequence", MOST_TOKENS)):
            token = Fields.of(entry, f"{fields.path('sequence')}[{i}]")
            zero = "zero" in token.data and token.flag("zero")
            token.only("name", "input", "skipped_at_start", *(["zero"] if zero else []))
            tokens.append(Token(token.text("name"), token.text("input"), token.flag("skipped_at_start"), zero))
        return TokenLayout(tuple(tokens), fields.text("read"))


LRAM = TokenLayout(
    (
        Token("reward", "reward", skipped_at_start=True),
        Token("observation", "observation"),
        Token("return", "return_to_go"),
    ),
    "return",
)
"""Reward of the previous step, observation, return-to-go: what the action models of arXiv 2410.22391 see of a step."""

PLAIN = TokenLayout((Token("observation", "observation"),), "observation")
"""A policy that sees nothing but its observation."""

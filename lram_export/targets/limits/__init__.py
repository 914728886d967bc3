"""What the hand-written kernels of `native` and `tvm` cannot do: one table, free of torch.

Exporters check a policy against it, `lram-export inspect` shows it of a checkpoint, and the contract tests hold that a
target refuses what is in it, and nothing else. Rows that concern every backbone are here, those of one in
``<backbone>.py`` beside this module. Whether there are kernels for a backbone at all is not a row: that a target has a
module for it says so (`lram_export/targets/backbones.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lram_export.errors import UsageError
from lram_export.spec.precision import PRECISIONS
from lram_export.targets.backbones import ANY_BACKBONE, OWN_KERNELS, targets_of

NATIVE, TVM, TVM_GPU = "native", "tvm", "tvm on a GPU"
COLUMNS = {NATIVE: (NATIVE,), TVM: (TVM,), TVM_GPU: (TVM, TVM_GPU)}
"""Whose rows concern whom."""
MOST_INT8_COLUMNS = 133_144
"""127 * 127 times so many products of 8-bit codes still fit the 32 bits in which kernels add them up."""


@dataclass(frozen=True)
class Asked:
    """What a policy asks of kernels.

    Attributes:
        config: of the model.
        task: None: any, see ``ModelConfig.encoders_of``.
        int8_columns: inputs of each matrix of 8-bit codes, by the matrix's name in the step graph.
    """

    config: Any
    task: Any = None
    int8_columns: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def by(policy: Any) -> Asked:
        """By a lowered policy."""
        matrices = {} if policy.quantization is None else policy.quantization.matrices
        columns = {name: matrix.shape[1] for name, matrix in matrices.items() if matrix.format == "int8"}
        return Asked(policy.checkpoint.config, policy.task, columns)

    @staticmethod
    def at(config: Any, precision: str) -> Asked:
        """By a model at a precision, whatever its task."""
        codes = precision in PRECISIONS and PRECISIONS[precision].weights == "int8"
        matrices = {w.matrix: w.shape[1] for w in config.used_weights(None) if codes and w.matrix is not None}
        return Asked(config, None, matrices)


@dataclass(frozen=True)
class Limit:
    """A row: kernels of some targets compute a value only up to a limit, or only some values.

    Attributes:
        targets: whose kernels.
        values: of what is limited, each with its name.
        limit: the largest value, or those that there are kernels for.
        has_no: what there are no kernels for beyond it, a format of ``name``, ``value`` and ``limit``.
        instead: what to do; None: take one of the targets that run it.
    """

    targets: tuple[str, ...]
    values: Callable[[Asked], Mapping[str, Any]]
    limit: int | tuple[Any, ...]
    has_no: str
    instead: str | None = None

    def beyond(self, asked: Asked) -> Iterator[str]:
        """What there are no kernels for, of what is asked."""
        for name, value in self.values(asked).items():
            if value not in self.limit if isinstance(self.limit, tuple) else value > self.limit:
                yield self.has_no.format(name=name, value=value, limit=self.limit)


def _tokens(asked: Asked) -> dict[str, str]:
    count, skipped = len(asked.config.tokens), asked.config.tokens.skipped
    return {"tokens": f"{count} token{'s' * (count > 1)} per step, {skipped} skipped at the start of an episode"}


UNROLLED_TOKENS = Limit((NATIVE,), _tokens, ("3 tokens per step, 1 skipped at the start of an episode",), "{value}")
"""A row of backbones whose kernels hold the tokens of a step in registers: their number is compiled in."""

LIMITS = (
    Limit(
        (NATIVE, TVM),
        lambda asked: {encoder.name: encoder.kind for encoder in asked.config.encoders_of(asked.task)},
        ("scalar", "state", "image"),
        "the encoder '{value}'",
    ),
    Limit((NATIVE, TVM), lambda asked: {"head": asked.config.head.kind}, ("action_bins",), "the head '{value}'"),
    Limit(
        (NATIVE, TVM),
        lambda asked: asked.int8_columns,
        MOST_INT8_COLUMNS,
        "a sum of {value} products of 8-bit codes ({name}), at most {limit} fit 32 bits",
        "use another precision",
    ),
)


def limits_of(backbone: str) -> tuple[Limit, ...]:
    """The rows that concern a backbone."""
    module = f"{__name__}.{backbone}"
    return LIMITS if find_spec(module) is None else (*LIMITS, *import_module(module).LIMITS)


def refusal(target: str, asked: Asked, platform: str | None = None) -> str | None:
    """Why a target cannot run what is asked, and what to do; None if it can.

    Args:
        target: one of :data:`COLUMNS`; others refuse nothing.
        asked: what the policy asks.
        platform: what the message calls the machine to compile for, where it is one of several.
    """
    found = _first(target, asked)
    if found is None:
        return None
    what, instead = found
    runs = [t for t in (*ANY_BACKBONE, *OWN_KERNELS) if t not in COLUMNS[target] and _first(t, asked) is None]
    return (
        f"target '{COLUMNS[target][0]}' has no kernels for {'' if platform is None else f'{platform}: '}{what}; "
        f"{instead or 'it runs on ' + ', '.join(runs)}"
    )


def check(target: str, policy: Any, platform: str | None = None) -> None:
    """Raise UsageError where :func:`refusal` says why a target cannot run a lowered policy."""
    found = refusal(target, Asked.by(policy), platform)
    if found is not None:
        raise UsageError(found)


def _first(target: str, asked: Asked) -> tuple[str, str | None] | None:
    """The first thing asked that a target has no kernels for, and what to do instead."""
    kind, names = asked.config.backbone.kind, COLUMNS.get(target, ())
    if names and names[0] not in targets_of(kind):
        return f"backbone '{kind}'", None
    rows = (row for row in limits_of(kind) if set(names) & set(row.targets))
    return next(((what, row.instead) for row in rows for what in row.beyond(asked)), None)

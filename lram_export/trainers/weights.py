"""Finds the layers of a network among named weights, and notes what nobody has asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lram_export.errors import CheckpointError
from lram_export.spec.json_fields import shown
from lram_export.trainers.networks import Gru, Lstm

MOST_LAYERS = 64


class NamedWeights:
    """The tensors of a network by name. ``where`` is what messages call them."""

    def __init__(self, tensors: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._tensors = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def take(self, name: str, dimensions: int) -> Tensor:
        """A tensor of finite numbers; raises CheckpointError where it is missing or of other dimensions."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.where}: {shown(name)}: missing; it has {self._some()}")
        tensor = self._tensors[name]
        self._taken.add(name)
        if tensor.dim() != dimensions or not tensor.is_floating_point():
            raise CheckpointError(
                f"{self.where}: {shown(name)}: expected numbers in {dimensions} dimensions, got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{self.where}: {shown(name)}: expected finite values")
        return tensor.detach().float()

    def layer(self, name: str, dimensions: int = 2) -> tuple[Tensor, Tensor]:
        """Weight and bias of one layer, which fit."""
        weight, bias = self.take(f"{name}.weight", dimensions), self.take(f"{name}.bias", 1)
        if len(bias) != len(weight):
            raise CheckpointError(f"{self.where}: {name}.bias: expected {len(weight)} numbers, got {len(bias)}")
        return weight, bias

    def layers(self, prefix: str) -> list[tuple[Tensor, Tensor]]:
        """The linear layers ``PREFIX.<number>`` in order of their numbers, each as wide as the one before leaves.

        Raises:
            CheckpointError: there is none, or one of another kind, or two do not fit.
        """
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.weight")
        numbers = sorted(int(match[1]) for name in self._tensors if (match := pattern.fullmatch(name)))
        if not numbers or len(numbers) > MOST_LAYERS:
            raise CheckpointError(
                f"{self.where}: {prefix}: expected 1 to {MOST_LAYERS} linear layers, got {len(numbers)}; it has "
                f"{self._some()}"
            )
        found = [self.layer(f"{prefix}.{number}") for number in numbers]
        for (before, _), (after, _), number in zip(found, found[1:], numbers[1:], strict=False):
            if after.shape[1] != before.shape[0]:
                raise CheckpointError(
                    f"{self.where}: {prefix}.{number}.weight: expected {before.shape[0]} columns, what the layer "
                    f"before it leaves, got {after.shape[1]}"
                )
        return found

    def recurrent(self, prefix: str) -> list[Lstm | Gru]:
        """The layers of a ``torch.nn.LSTM`` or ``GRU``; none where there are none."""
        found: list[Lstm | Gru] = []
        while len(found) < MOST_LAYERS and self.has(f"{prefix}weight_ih_l{len(found)}"):
            number = len(found)
            weights = {
                name: self.take(f"{prefix}{name}_l{number}", dimensions)
                for name, dimensions in (("weight_ih", 2), ("weight_hh", 2), ("bias_ih", 1), ("bias_hh", 1))
            }
            rows, width = weights["weight_hh"].shape
            kinds: dict[int, type[Lstm | Gru]] = {4 * width: Lstm, 3 * width: Gru}
            if rows not in kinds or any(len(values) != rows for values in weights.values()):
                shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in weights.items())
                raise CheckpointError(
                    f"{self.where}: {prefix}*_l{number}: expected four (LSTM) or three (GRU) gates, got {shapes}"
                )
            found.append(kinds[rows](weights))
        return found

    def drop(self, *prefixes: str) -> None:
        """Tensors that acting does not need, by what their names begin with."""
        self._taken |= {name for name in self._tensors if name.startswith(prefixes)}

    def expect_no_more(self, supported: str) -> None:
        """Raise CheckpointError if there is a tensor that nobody has taken."""
        left = [name for name in self._tensors if name not in self._taken]
        if left:
            raise CheckpointError(
                f"{self.where}: {shown(left[0])}: a part of the network that is not known here; {supported} are read"
            )

    def _some(self) -> str:
        names = list(self._tensors)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(shown(name) for name in names[:4]) + more if names else "no tensors"


def expect_inputs(weights: NamedWeights, what: str, expected: int, got: int) -> None:
    """Raise CheckpointError unless two parts of a network fit."""
    if expected != got:
        raise CheckpointError(f"{weights.where}: {what}: expected {expected} inputs, got {got}")

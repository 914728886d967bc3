"""Modules as their users write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lram_export import Field, StepPolicy


class Swish(nn.Module):
    """A layer of nobody's library."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.5 * x)


class Seeing(nn.Module):
    """A vector and an image in, an action and a value out, a GRU whose state does not start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), Swish(), nn.LayerNorm(32))
        self.camera = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 32))
        self.cell = nn.GRUCell(64, 48)
        self.head, self.value = nn.Linear(48, 6), nn.Linear(48, 1)

    def forward(self, proprio: Tensor, camera: Tensor, hidden: Tensor) -> Any:
        image = self.camera(camera.float() / 255)
        hidden = self.cell(torch.cat([self.encoder(proprio), image], -1), hidden)
        return {"action": torch.tanh(self.head(hidden)), "value": 30 * self.value(hidden).squeeze(-1)}, hidden


class Choosing(nn.Module):
    """An LSTM that chooses one of five, with the scores it chooses by."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(10, 32), nn.Linear(32, 5)

    def forward(self, observation: Tensor, hidden: Tensor, cell: Tensor) -> Any:
        out, (hidden, cell) = self.lstm(observation[None], (hidden[None], cell[None]))
        logits = self.head(out[0])
        return (logits.argmax(-1), logits), (hidden[0], cell[0])


class Plain(nn.Module):
    """No state: normalization, then an MLP; its weights are a sequence's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 20))
        self.mlp = nn.Sequential(nn.Linear(20, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 4))

    def forward(self, observation: Tensor) -> Tensor:
        return self.mlp(torch.clamp(observation - self.mean, -5, 5))


class Counting(nn.Module):
    """Starts its episodes itself: its state counts the steps, and a start adds to an output that no state shows."""

    def forward(self, x: Tensor, is_first: Tensor, steps: Tensor) -> Any:
        steps = torch.where(is_first > 0, 0.0, steps) + 1
        return x * steps[:, None] + is_first[:, None], steps


class Echoing(nn.Module):
    """What comes out is a state, an input, or the same as another output; one state is handed on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(9, 5)

    def forward(self, x: Tensor, hidden: Tensor, kept: Tensor) -> Any:
        hidden = torch.tanh(self.cell(torch.cat([x, hidden], -1)))
        return (hidden, hidden, x, kept), (hidden, kept)


class Masked(nn.Linear):
    """No plain product: what is read is not its weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class Awkward(nn.Module):
    """What is fine and easily refused or wrong: an input that becomes a state as it is, states that change places, one
    that nobody reads, products in a row, layers that are no plain products, large and small values, a distribution,
    scores of another kind, operators beside PyTorch's core set, an index counted from the end, the largest over two
    dimensions, an attribute that is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        self.unused, self.constant, self.masked = nn.Linear(8, 3), nn.Linear(5, 8), Masked(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 2))
        self.place = nn.Parameter(torch.randn(1, 5))
        self.fill = float("nan")

    def forward(self, x: Tensor, last: Tensor, one: Tensor, other: Tensor, never: Tensor) -> Any:
        hidden = self.second(self.first(x - last)) + self.constant(self.place)
        self.unused(hidden)
        mean = torch.distributions.Normal(self.head(hidden), 1.0).mean
        halves = hidden.view(-1, 2, 4)
        ends = hidden[:, -1] + halves.amax((1, 2)) - halves.amin((1, 2))
        outputs = {
            "large": 1e5 * torch.tanh(self.masked(hidden)),
            "small": 1e-5 * torch.tanh(self.normed(nn.functional.normalize(hidden, dim=-1))),
            "gripper": torch.sigmoid(mean),
            "gripper_logits": mean,
            "sum": one + 2 * other + ends[:, None],
        }
        return outputs, x, other, 0.5 * one + x, torch.ones_like(never)


def awkward() -> StepPolicy:
    torch.manual_seed(4)
    return StepPolicy(
        Awkward(),
        observation={"x": 4},
        action={"large": 2, "small": 2, "gripper": 2, "gripper_logits": 2, "sum": 4},
        state={"last": 4, "one": 4, "other": Field(4, initial=1.0), "never": ()},
    )


def seeing() -> StepPolicy:
    torch.manual_seed(0)
    return StepPolicy(
        Seeing(),
        observation={"proprio": 12, "camera": Field((3, 16, 16), "uint8")},
        action={"action": 6, "value": ()},
        state={"hidden": Field(48, initial=torch.linspace(-1, 1, 48))},
    )


def choosing() -> StepPolicy:
    torch.manual_seed(1)
    return StepPolicy(
        Choosing(),
        observation=(10,),
        action={"action": Field((), "int64"), "action_logits": 5},
        state={"hidden": 32, "cell": Field(32, initial=0.25)},
    )


def plain() -> StepPolicy:
    torch.manual_seed(2)
    return StepPolicy(Plain(), observation=20, action=4)


def counting() -> StepPolicy:
    return StepPolicy(Counting(), observation={"x": 3, "is_first": ()}, action={"torque": 3}, state={"steps": ()})


def echoing() -> StepPolicy:
    torch.manual_seed(3)
    return StepPolicy(
        Echoing(),
        observation={"x": 4},
        action={"action": 5, "again": 5, "heard": 4, "held": 2},
        state={"hidden": 5, "kept": Field(2, initial=torch.tensor([1.0, -2.0]))},
    )


POLICIES = {
    "awkward": awkward,
    "echoing": echoing,
    "seeing": seeing,
    "choosing": choosing,
    "plain": plain,
    "counting": counting,
}

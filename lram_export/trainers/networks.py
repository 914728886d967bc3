"""The network of a trained actor, one step of it, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.step_module.policy import Field, Fields, StepPolicy

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "leakyrelu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
"""Names of activations, as torch calls them in lower case."""


class Normalizer(nn.Module):
    """(x - mean) / deviation, then within -clip to clip if there is a ``clip``.

    The mean is two numbers, of which the second is what float32 has no room for in the first: trainers subtract it in
    float64, and where it is large beside the deviation the difference is an action's.
    """

    mean: Tensor
    rest: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, clip: float | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("rest", (mean.double() - mean.float().double()).float())
        self.register_buffer("deviation", deviation.float())
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) -> the same."""
        x = ((x - self.mean) - self.rest) / self.deviation
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def perceptron(weights: Sequence[tuple[Tensor, Tensor]], activation: str, *, last: bool = False) -> nn.Sequential:
    """Linear layers with an activation between them, and behind the last one if asked for."""
    layers: list[nn.Module] = []
    for number, (weight, bias) in enumerate(weights):
        layers.append(linear(weight, bias))
        if last or number < len(weights) - 1:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = (nn.Parameter(t.float(), requires_grad=False) for t in (weight, bias))
    return layer


class Lstm(nn.Module):
    """One layer of ``torch.nn.LSTM``, one step."""

    states = ("h", "c")

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.width, self.inputs = weights["weight_hh"].shape[1], weights["weight_ih"].shape[1]
        self.of_input = linear(weights["weight_ih"], weights["bias_ih"])
        self.of_state = linear(weights["weight_hh"], weights["bias_hh"])

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """(rows, inputs), state -> (rows, width) and the next state."""
        entering, forget, new, out = (self.of_input(x) + self.of_state(h)).chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(entering) * torch.tanh(new)
        h = torch.sigmoid(out) * torch.tanh(c)
        return h, h, c


class Gru(nn.Module):
    """One layer of ``torch.nn.GRU``, one step."""

    states = ("h",)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.width, self.inputs = weights["weight_hh"].shape[1], weights["weight_ih"].shape[1]
        self.of_input = linear(weights["weight_ih"], weights["bias_ih"])
        self.of_state = linear(weights["weight_hh"], weights["bias_hh"])

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """(rows, inputs), state -> (rows, width) and the next state."""
        x_reset, x_update, x_new = self.of_input(x).chunk(3, -1)
        h_reset, h_update, h_new = self.of_state(h).chunk(3, -1)
        update = torch.sigmoid(x_update + h_update)
        new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
        h = (1 - update) * new + update * h
        return h, h


class Floats(nn.Module):
    """Whole numbers as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape -> float32."""
        return x.float()


class Pixels(nn.Module):
    """Whole numbers from 0 to 255 become numbers from 0 to 1."""

    def forward(self, image: Tensor) -> Tensor:
        """uint8 of any shape -> float32."""
        return image.float() / 255


class NatureEncoder(nn.Module):
    """The image encoder of stable-baselines3 (Mnih et al. 2015): three convolutions and a linear layer."""

    def __init__(self, convolutions: Sequence[tuple[Tensor, Tensor]], of_features: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (weight, bias), stride in zip(convolutions, (4, 2, 1), strict=True):
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride)
            layer.weight, layer.bias = (nn.Parameter(t.float(), requires_grad=False) for t in (weight, bias))
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), linear(*of_features), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """(rows, channels, height, width) -> (rows, features)."""
        features: Tensor = self.layers(image)
        return features


class Mean(nn.Module):
    """The action is what the network says."""

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """(rows, actions) -> the action."""
        return (y,)


class FirstHalf(nn.Module):
    """Of means and deviations, the means."""

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """(rows, 2 * actions) -> the action."""
        return (y[:, : y.shape[1] // 2],)


class Within(nn.Module):
    """The action is kept within limits."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """(rows, actions) -> the action."""
        return (torch.minimum(torch.maximum(y, self.low), self.high),)


class Scaled(nn.Module):
    """-1 to 1, by a hyperbolic tangent, becomes the range of the action."""

    low: Tensor
    range: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("range", high - low)

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """(rows, actions) -> the action."""
        return (self.low + 0.5 * (torch.tanh(y) + 1.0) * self.range,)


class Largest(nn.Module):
    """The action is the number of the largest logit."""

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """(rows, logits) -> the action, and the logits."""
        return y.argmax(-1), y


class Actor(nn.Module):
    """Observation, normalized and encoded, through recurrent layers and a perceptron to an action."""

    def __init__(
        self, before: Sequence[nn.Module], recurrent: Sequence[Lstm | Gru], behind: nn.Module, decide: nn.Module
    ) -> None:
        super().__init__()
        self.before = nn.Sequential(*before)
        self.recurrent = nn.ModuleList(recurrent)
        self.behind = behind
        self.decide = decide

    def forward(self, observation: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """One step: the outputs, and the next state."""
        x, after, taken = self.before(observation), [], 0
        layers: Any = self.recurrent
        for layer in layers:
            count = len(layer.states)
            x, *new = layer(x, *state[taken : taken + count])
            after += new
            taken += count
        return (*self.decide(self.behind(x)), *after)


def policy_of(actor: Actor, observation: Fields, actions: int) -> StepPolicy:
    """The policy of an actor with so many outputs of the network behind its perceptron.

    Its states are ``h0``, ``c0`` and so on, by layers, 0 at the start of an episode.
    """
    layers: Any = actor.recurrent
    state = {f"{name}{i}": layer.width for i, layer in enumerate(layers) for name in layer.states}
    action: Fields = {"action": actions}
    if isinstance(actor.decide, Largest):
        action = {"action": Field((), "int64"), "action_logits": Field(actions)}
    return StepPolicy(actor, observation=observation, action=action, state=state)

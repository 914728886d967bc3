"""Recurrent layers of torch as twins made of linear layers, which are what a precision applies to.

A twin computes the same, and shares the weights: one linear layer of the input and one of the state for every layer of
``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``, and for the cells. Anything else stays as it is: layers that are bidirectional
or have projections, subclasses, layers with hooks, and those that a step runs more than once or whose weights something
else reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.step_module.graph import sharing_copy
from lram_export.step_module.policy import StepPolicy

RUNS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
OPERATORS = frozenset((*(f"aten.{name}.input" for name in RUNS), *(f"aten.{name}_cell.default" for name in RUNS)))
"""What a traced step has of a recurrent layer, a sequence that is not packed, or of a cell."""
CELL_WEIGHTS = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
"""Of a cell; without biases the last two are None."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

State = tuple[Tensor, ...]
"""h, or h and c, each (rows, width)."""


def layers_run_once(module: nn.Module, program: Any, prefix: str) -> tuple[str, ...]:
    """The recurrent layers that can have a twin, by their path in the module.

    Args:
        module: the user's.
        program: its step, as ``torch.export`` traced it.
        prefix: path of the module in what was traced, with a dot.
    """
    parameters = program.graph_signature.inputs_to_parameters
    readers = {parameters[n.name]: [*n.users] for n in program.graph.nodes if n.name in parameters}

    def is_run_once(path: str, layer: nn.Module) -> bool:
        """Whether one operator alone reads its weights, each under its own name."""
        start = f"{prefix}{path}." if path else prefix
        read = [readers.get(start + name, []) for name, weight in layer._parameters.items() if weight is not None]
        first = read[0]
        return len(first) == 1 and str(first[0].target) in OPERATORS and all(each == first for each in read)

    return tuple(path for path, layer in module.named_modules() if _has_twin(layer) and is_run_once(path, layer))


def with_linear_layers(policy: StepPolicy, paths: Iterable[str]) -> StepPolicy:
    """The policy around a copy of its module that shares the weights, in which recurrent layers are their twins.

    Args:
        policy: comes back as it is if there are no such layers.
        paths: of the layers, see :func:`layers_run_once`.
    """
    layers = [policy.module.get_submodule(path) for path in paths]
    if not layers:
        return policy
    return policy.around(sharing_copy(policy.module, {id(layer): twin_of(layer) for layer in layers}))


def twin_of(layer: Any) -> nn.Module:
    """A layer of the same kind with everything that can be read of it, but made of linear layers.

    Those are called ``of_input`` and ``of_state``, of several layers ``0.of_input`` and so on.
    """
    twin: nn.Module = copy.copy(layer)
    # weights are no parameters of its own: they would have two names, and a trace knows one of them
    vars(twin).update(layer._parameters, _parameters={}, _modules={})
    twin.__class__ = TWINS[type(layer)]
    if not isinstance(layer, nn.RNNBase) or layer.num_layers == 1:
        _add_products(twin, layer, "_l0" if isinstance(layer, nn.RNNBase) else "")
        return twin
    for number in range(layer.num_layers):
        part = nn.Module().train(layer.training)
        _add_products(part, layer, f"_l{number}")
        twin.add_module(str(number), part)
    return twin


def _add_products(part: nn.Module, layer: Any, suffix: str) -> None:
    for name, short in (("of_input", "ih"), ("of_state", "hh")):
        weight, bias = layer._parameters[f"weight_{short}{suffix}"], layer._parameters.get(f"bias_{short}{suffix}")
        product = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta").train(layer.training)
        product.weight, product.bias = weight, bias
        part.add_module(name, product)


def _has_twin(layer: Any) -> bool:
    """Whether it is what torch makes of it, and of a kind that linear layers can equal."""
    if type(layer) not in TWINS or "forward" in vars(layer) or any(vars(layer)[hooks] for hooks in HOOKS):
        return False
    if isinstance(layer, nn.RNNBase):
        own = set(layer._flat_weights_names)  # torch's weight_norm takes some away
        return not layer.bidirectional and not layer.proj_size and set(layer._parameters) == own
    return set(layer._parameters) == CELL_WEIGHTS


class _Sequence(nn.RNNBase):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` over a sequence of any length."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """See torch: the output of the last layer in all steps, and the states of all layers after the last."""
        alone, gates = input.dim() == 2, GATES[self.mode]  # alone: without rows
        time = 1 if self.batch_first and not alone else 0
        steps = [step[None] if alone else step for step in input.unbind(time)]
        given = [state[:, None] if alone else state for state in _given(hx, self.mode)]
        if hx is None:
            zeros = torch.zeros(self.num_layers, steps[0].shape[0], self.hidden_size)
            given = [zeros] * _states(self.mode)
        after = []
        for number in range(self.num_layers):
            part: Any = self if self.num_layers == 1 else self._modules[str(number)]
            state = tuple(tensor[number] for tensor in given)
            products = _at_once(part.of_input, steps)
            steps = []
            for product in products:
                state = gates(product, part.of_state(state[0]), state)
                steps.append(state[0])
            after.append(state)
        last = [torch.stack(states) for states in zip(*after, strict=True)]
        if alone:
            return torch.cat(steps), _returned([states[:, 0] for states in last])
        return torch.stack(steps, time), _returned(last)


class _Cell(nn.RNNCellBase):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """See torch: the next state."""
        layer: Any = self
        mode = _mode(self)
        state = tuple(_given(hx, mode))
        if hx is None:
            state = (torch.zeros(*input.shape[:-1], self.hidden_size),) * _states(mode)
        return _returned(GATES[mode](layer.of_input(input), layer.of_state(state[0]), state))


def _at_once(product: Callable[[Tensor], Tensor], steps: Sequence[Tensor]) -> Sequence[Tensor]:
    """The product of every step (rows, inputs): one product, and rows come first in it."""
    return [product(steps[0])] if len(steps) == 1 else product(torch.stack(list(steps), 1)).unbind(1)


def _mode(cell: Any) -> str:
    """What torch calls it in a layer."""
    if isinstance(cell, nn.RNNCell):
        return f"RNN_{cell.nonlinearity.upper()}"
    return "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU"


def _states(mode: str) -> int:
    return 2 if mode == "LSTM" else 1


def _given(hx: Any, mode: str) -> Sequence[Tensor]:
    """The states that a caller gave, in a row."""
    if hx is None:
        return ()
    return hx if mode == "LSTM" else (hx,)


def _returned(state: Sequence[Tensor]) -> Any:
    return tuple(state) if len(state) > 1 else state[0]


def _lstm(of_input: Tensor, of_state: Tensor, state: State) -> State:
    entering, forget, new, out = (of_input + of_state).chunk(4, -1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(entering) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def _gru(of_input: Tensor, of_state: Tensor, state: State) -> State:
    x_reset, x_update, x_new = of_input.chunk(3, -1)
    h_reset, h_update, h_new = of_state.chunk(3, -1)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return (new + torch.sigmoid(x_update + h_update) * (state[0] - new),)


def _rnn_tanh(of_input: Tensor, of_state: Tensor, state: State) -> State:
    return (torch.tanh(of_input + of_state),)


def _rnn_relu(of_input: Tensor, of_state: Tensor, state: State) -> State:
    return (torch.relu(of_input + of_state),)


GATES: Mapping[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _rnn_tanh,
    "RNN_RELU": _rnn_relu,
}
"""By torch's names: from the products with input and state, and the state, to the next state."""
TWINS: Mapping[type, type] = {
    kind: type(kind.__name__, (way, kind), {"__doc__": f"The twin of ``nn.{kind.__name__}``."})
    for way, kinds in ((_Sequence, (nn.LSTM, nn.GRU, nn.RNN)), (_Cell, (nn.LSTMCell, nn.GRUCell, nn.RNNCell)))
    for kind in kinds
}
"""The class of a layer -> that of its twin: a subclass, for code that asks what kind it is."""

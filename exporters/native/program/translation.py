"""From a traced step to a program: its operators one after the other, see ``operators``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from lram_export.errors import UsageError, describe
from lram_export.exporters.native.program.operators import Call, Context, computed
from lram_export.exporters.native.program.planning import planned
from lram_export.exporters.native.program.products import Codes
from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.exporters.native.program.tracing import traced
from lram_export.lowering import LoweredModule
from lram_export.spec.tensors import StateSpec, array
from lram_export.targets.native.program import FieldEntry, Program

LIKE = frozenset(
    ("full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
)
"""Operators that look at no value of their argument."""
TURNED = frozenset(("t", "permute", "transpose"))
UNCHANGED = frozenset(("detach", "alias", "lift_fresh_copy"))
"""Operators behind which a large matrix is still that matrix."""


def translate(policy: LoweredModule) -> Program:
    """The program of a module's step.

    Raises:
        UsageError: an operator that the engine has no kernel for, with the line of the module.
    """
    return Translation(policy).program()


class Translation:
    """Goes through a traced step, with what has the name of each node."""

    def __init__(self, policy: LoweredModule) -> None:
        self.policy, self.spec = policy, policy.spec
        quantization = policy.quantization
        matrices = {} if quantization is None else quantization.matrices
        self.one_plane = quantization is not None and quantization.quantized_activations
        self.tape = Tape()
        self.context = Context(self.tape, Codes(matrices, self.one_plane))
        self.values: dict[str, Any] = {}

    def program(self) -> Program:
        """All of it."""
        graph, constants, names = traced(self.policy)
        self.values.update(constants)
        inputs = [self.tape.new(t.shape[1:], getattr(torch, t.dtype)) for t in self.spec.inputs]
        states = [self.tape.state(i, t.shape[1:]) for i, t in enumerate(self.spec.states)]
        for name, value in zip(names, (*inputs, *states), strict=True):
            self.values[name] = value.reshaped(1, *value.shape)
        results: list[Value] = []
        for node in graph.nodes:
            if node.op == "output":
                results = [self.tape.value(self.values[result.name]) for result in node.args[0]]
            elif node.op == "call_function" and node.users:  # others are assertions about shapes
                self.values[node.name] = self._node(node)
        read = {node.name for node in graph.nodes if node.op == "placeholder" and node.users}
        return self._finished([name in read for name in names], inputs, results)

    def _finished(self, read: list[bool], inputs: list[Value], results: list[Value]) -> Program:
        count = len(self.spec.outputs)
        fields = zip(self.spec.inputs, inputs, read, strict=False)
        given = tuple(FieldEntry(tensor, value.place, read=reads) for tensor, value, reads in fields)
        outputs = tuple(FieldEntry(t, v.place) for t, v in zip(self.spec.outputs, results[:count], strict=True))
        after = zip(self.spec.states, results[count:], strict=True)
        states = tuple(FieldEntry(t, v.place, self._initial(t)) for t, v in after)
        first, kept = ([value.place.buffer for value in values] for values in (inputs, results))
        buffers, arena = planned(self.tape, first, kept)
        instructions, tensors = tuple(self.tape.instructions), tuple(self.tape.tensors)
        return Program(given, outputs, states, buffers, instructions, tensors, arena, 1 if self.one_plane else 2)

    def _initial(self, state: StateSpec) -> int:
        if state.initial is not None:
            return 0
        place = self.tape.floats(array(self.policy.graph.initial_tensors()[state.name]).reshape(-1))
        return 1 + self.tape.buffers[place.buffer].number

    def _node(self, node: fx.Node) -> Any:
        try:
            return self._result(node)
        except Unsupported as error:
            raise UsageError(
                f"target 'native' has no kernel for {error}{_line_of(node)}; the module runs on pytorch, onnxruntime, "
                f"openvino"
            ) from None
        except Exception as error:  # a user's module may call any operator in any way
            raise UsageError(
                f"target 'native' cannot take {node.target} as it is called{_line_of(node)}: {describe(error)}; the "
                f"module runs on pytorch, onnxruntime, openvino"
            ) from None

    def _result(self, node: fx.Node) -> Any:
        arguments = [self._resolved(a) for a in node.args]
        keywords = {name: self._resolved(a) for name, a in node.kwargs.items()}
        target: Any = node.target
        name = getattr(target, "__name__", str(target)).split(".")[0]
        if name == "getitem":
            return arguments[0][arguments[1]]
        known = _folded(target, name, arguments, keywords)
        if known is not None:
            return known
        found = node.meta.get("val")
        dtype = found.dtype if isinstance(found, torch.Tensor) else torch.float32
        return computed(self.context, Call(name, target, arguments, keywords, dtype))

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument.name]
        if isinstance(argument, list | tuple):
            return [self._resolved(part) for part in argument]
        return argument


def _folded(target: Any, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """The result where no value of a step is needed for it: a constant, or some; else None."""
    given = list(_tensors([arguments, list(keywords.values())]))
    if name in LIKE and given and isinstance(given[0], Value):
        arguments = [Constant(torch.zeros(given[0].shape, dtype=given[0].dtype)), *arguments[1:]]
        given = list(_tensors([arguments, list(keywords.values())]))
    if any(isinstance(part, Value) for part in given):
        return None
    found = target(*_plain(arguments), **_plain(keywords))
    if isinstance(found, list | tuple):
        return [Constant(part) for part in found]
    if name in TURNED | UNCHANGED and arguments[0].matrix is not None and found.dim() == 2:
        turned = name in TURNED and (name != "permute" or list(arguments[1]) == [1, 0])
        return Constant(found, arguments[0].matrix, arguments[0].transposed != turned)
    return Constant(found)


def _tensors(given: Any) -> Iterator[Value | Constant]:
    if isinstance(given, list):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, Value | Constant):
        yield given


def _plain(given: Any) -> Any:
    if isinstance(given, list):
        return [_plain(part) for part in given]
    if isinstance(given, dict):
        return {name: _plain(part) for name, part in given.items()}
    return given.tensor if isinstance(given, Constant) else given


def _line_of(node: fx.Node) -> str:
    """Where in the user's module it is, as far as the trace tells."""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    own = [line for line in trace if line.startswith("File ") and "site-packages" not in line]
    own = [line for line in own if "lram_export" not in line]
    if not own:
        return ""
    file, number = own[-1].split('"')[1], own[-1].partition("line ")[2].partition(",")[0]
    return f" ({file.rpartition('/')[2]}, line {number})"

"""A traced step as plain data: operators of PyTorch's core set, their arguments, and weights by name.

PyTorch's own file of a traced program may hold pickles and expressions that its reader evaluates; this one holds
numbers and names, and its reader calls nothing but pure tensor operators.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lram_export.errors import LramError
from lram_export.spec.json_fields import Fields, shown

PROGRAM_FILE = "program.json"
WEIGHTS_FILE = "weights.safetensors"
VERSION = 1
WEIGHT = "policy_module.{}.weight"
"""Name of the weight of a linear layer, which is called after its place in the module."""
MOST_NODES, MOST_ARGUMENTS, DEEPEST = 1 << 20, 1 << 16, 4
OPERATOR = re.compile(r"aten\.([a-z_][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
GETITEM = "getitem"
"""Takes one of the results of an operator that has several."""
VALUE, TYPE, LAYOUT = "value", "dtype", "memory_format"
"""Keys of an argument that is no number, text, flag or list: the result of a node, an input or a weight; a type."""
BESIDE_CORE = (
    *("linalg_vector_norm", "max", "min", "median", "mode", "kthvalue", "cumprod", "logcumsumexp", "hypot", "erfinv"),
    *("logaddexp", "heaviside", "copysign", "unfold", "bucketize", "searchsorted", "trace", "roll", "lerp", "renorm"),
    *("linalg_inv_ex", "_linalg_solve_ex", "_linalg_det", "linalg_matrix_exp", "linalg_cross", "cross", "std", "var"),
)
"""Functions of their arguments, too, that PyTorch neither counts among its core set nor takes apart into it."""
IGNORED = ("device", "layout", "pin_memory")
"""Keywords that say where a tensor is: on the CPU, always."""


@dataclass(frozen=True)
class Node:
    """One operator: ``arguments`` and ``keywords`` as JSON values; its result is called ``name``."""

    name: str
    operator: str
    arguments: list[Any]
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A step: names of its inputs, of its weights (value -> name in the file), its nodes, and names of its outputs."""

    inputs: tuple[str, ...]
    weights: dict[str, str]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read_program`."""
        return {
            "version": VERSION,
            "inputs": list(self.inputs),
            "weights": self.weights,
            "nodes": [[n.name, n.operator, n.arguments, n.keywords] for n in self.nodes],
            "outputs": list(self.outputs),
        }

    def run(self, tensors: Sequence[Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs for inputs, both in order."""
        values: dict[str, Any] = dict(zip(self.inputs, tensors, strict=True))
        values |= {value: weights[name] for value, name in self.weights.items()}
        for node in self.nodes:
            arguments = [_resolved(a, values) for a in node.arguments]
            if node.operator == GETITEM:
                values[node.name] = arguments[0][arguments[1]]
            else:
                keywords = {name: _resolved(a, values) for name, a in node.keywords.items()}
                values[node.name] = operator(node.operator)(*arguments, **keywords)
        return tuple(values[name] for name in self.outputs)


def weight_of(matrix: str) -> str:
    """Name in the file of the weight that is a matrix of the step graph."""
    return WEIGHT.format(matrix)


def operator(name: str) -> Any:
    """A pure tensor operator of PyTorch's core set by its name; raises ValueError for any other."""
    match = OPERATOR.fullmatch(name)
    found = None if match is None else getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    if found is None or not is_pure(found):
        raise ValueError(f"expected an operator of PyTorch's core set, got {shown(name)}")
    return found


def is_pure(found: Any) -> bool:
    """Whether an operator is in the core set or beside it, changes none of its arguments, and gives the same every
    time."""
    tags, schema = getattr(found, "tags", ()), getattr(found, "_schema", None)
    if schema is None or schema.is_mutable or torch.Tag.nondeterministic_seeded in tags:
        return False
    return torch.Tag.core in tags or schema.name.removeprefix("aten::") in BESIDE_CORE


def program_of(exported: Any) -> tuple[Program, dict[str, Tensor]]:
    """A program that ``torch.export`` traced, and its weights by name.

    Raises:
        LramError: an operator that is not of PyTorch's core set.
    """
    lowered = exported.run_decompositions()
    signature = lowered.graph_signature
    owned = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**lowered.state_dict, **lowered.constants}
    nodes, outputs = [], ()
    used = {n.name for n in lowered.graph.nodes if n.op == "placeholder" and n.users}
    for node in lowered.graph.nodes:
        if node.op == "output":
            outputs = tuple(result.name for result in node.args[0])
        elif node.op == "call_function" and node.users:  # others are assertions about shapes
            nodes.append(_node(node))
    weights = {value: name for value, name in owned.items() if value in used or value in outputs}
    kept = {name: tensors[name].detach().contiguous() for name in weights.values()}
    return Program(tuple(signature.user_inputs), weights, tuple(nodes), outputs), kept


def _node(node: Any) -> Node:
    target = node.target
    if getattr(target, "__name__", "") == GETITEM:
        return Node(node.name, GETITEM, [_plain(a) for a in node.args], {})
    if not is_pure(target):
        raise LramError(f"target 'pytorch': the operator {target} is not of PyTorch's core set")
    name = f"aten.{target._schema.name.removeprefix('aten::')}.{target._overloadname}"
    keywords = {k: _plain(a) for k, a in node.kwargs.items() if k not in IGNORED}
    return Node(node.name, name, [_plain(a) for a in node.args], keywords)


def _plain(argument: Any) -> Any:
    """An argument as JSON values."""
    if isinstance(argument, torch.fx.Node):
        return {VALUE: argument.name}
    if isinstance(argument, torch.dtype):
        return {TYPE: str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.memory_format):
        return {LAYOUT: str(argument).removeprefix("torch.")}
    if isinstance(argument, tuple | list):
        return [_plain(part) for part in argument]
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument if not isinstance(argument, float) or abs(argument) != float("inf") else str(argument)
    raise LramError(f"target 'pytorch': an argument of type {type(argument).__name__} has no place in a program")


def _resolved(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, dict):
        ((kind, name),) = argument.items()
        return values[name] if kind == VALUE else getattr(torch, name)
    if isinstance(argument, list):
        return [_resolved(part, values) for part in argument]
    return float(argument) if argument in ("inf", "-inf") else argument


def read_program(fields: Fields) -> Program:
    """Read what :meth:`Program.to_json` wrote.

    Raises:
        ValueError: naming the field; also an operator that is not of PyTorch's core set, or a value that no earlier
            node made.
    """
    fields.only("version", "inputs", "weights", "nodes", "outputs")
    fields.integer("version", VERSION, VERSION)
    inputs, weights = tuple(_names(fields, "inputs")), fields.texts("weights")
    known, nodes = {*inputs, *weights}, []
    for i, entry in enumerate(fields.items("nodes", MOST_NODES)):
        where = f"{fields.path('nodes')}[{i}]"
        if not isinstance(entry, list) or len(entry) != 4 or not all(isinstance(part, str) for part in entry[:2]):
            raise ValueError(f"{where}: expected name, operator, arguments and keywords, got {shown(entry)}")
        name, called, arguments, keywords = entry
        if not isinstance(arguments, list) or not isinstance(keywords, dict):
            raise ValueError(f"{where}: expected a list and an object of arguments, got {shown(entry)}")
        if called != GETITEM:
            try:
                operator(called)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        for argument in (*arguments, *keywords.values()):
            _check_argument(argument, known, where, 0)
        nodes.append(Node(name, called, arguments, keywords))
        known.add(name)
    outputs = tuple(_names(fields, "outputs"))
    missing = [name for name in outputs if name not in known]
    if missing:
        raise ValueError(f"{fields.path('outputs')}: no node makes {missing[0]!r}")
    return Program(inputs, weights, tuple(nodes), outputs)


def _names(fields: Fields, name: str) -> list[str]:
    found = fields.items(name, MOST_ARGUMENTS)
    if not all(isinstance(entry, str) for entry in found):
        raise ValueError(f"{fields.path(name)}: expected names, got {shown(found)}")
    return found


def _check_argument(argument: Any, known: set[str], where: str, depth: int) -> None:
    if isinstance(argument, list) and depth < DEEPEST and len(argument) <= MOST_ARGUMENTS:
        for part in argument:
            _check_argument(part, known, where, depth + 1)
        return
    if isinstance(argument, dict) and len(argument) == 1:
        ((kind, name),) = argument.items()
        if kind == VALUE and isinstance(name, str) and name in known:
            return
        types = {TYPE: torch.dtype, LAYOUT: torch.memory_format}
        if kind in types and isinstance(name, str) and isinstance(getattr(torch, name, None), types[kind]):
            return
    elif argument is None or isinstance(argument, bool | int | float | str):
        return
    raise ValueError(f"{where}: unknown argument {shown(argument)}")

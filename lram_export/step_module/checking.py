"""Is a module one step as a pure function? What is not is named, with the line of the module where it happens."""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lram_export.describe import counted
from lram_export.errors import LramError, UsageError, describe
from lram_export.spec.tensors import TensorSpec
from lram_export.step_module.graph import ModuleGraph, returned
from lram_export.step_module.policy import IS_FIRST, StepPolicy
from lram_export.step_module.recurrent import layers_run_once
from lram_export.step_module.tracing import quietly, trace

ROWS = 3
"""Rows with which a module is tried: more than one, and none of its sizes."""
ALONE = 1e-4
"""How far a row may be from what it is without the others: sums in another order."""
TRIES = 2
INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent), "<")
"""What the names of files begin with that are not the user's."""
OF_TORCH = ("_parameters", "_buffers", "_modules")
"""Attributes in which torch keeps what is looked at by itself."""
INSIDE_GRAPH = "policy_module."
"""Where a graph has the module."""
OF_WEIGHTS = ("_flat_weights", "_flat_weight_refs")
"""Attributes of torch's recurrent layers: their weights in a row, put together anew where one was replaced."""
AS_STATE = "make it a state: take it as an argument, and return what it becomes"


@dataclass(frozen=True)
class ModuleFacts:
    """What was found out.

    Attributes:
        products: the linear layers whose matrix is read by one product of a step, in their order.
        recurrent: torch's recurrent layers that a step runs once, see :mod:`~lram_export.step_module.recurrent`.
    """

    products: tuple[str, ...]
    recurrent: tuple[str, ...] = ()


def check_module(policy: StepPolicy) -> ModuleFacts:
    """Try a module, and trace it.

    Raises:
        UsageError: weights that are not float32 on the CPU; outputs or states of another number, shape or type; a
            module that is not pure: it writes buffers, attributes or inputs, draws random numbers, remembers, lets a
            row depend on others, or has control flow that depends on data.
    """
    module = policy.module
    module.eval()
    _check_weights(policy)
    trials = _trials(policy)
    before = _attributes(module)
    with quietly(), torch.random.fork_rng(devices=[]), torch.no_grad():
        first = _call(policy, trials[0])
        _check_attributes(policy, before)
        _check_outputs(policy, first, ROWS)
        facts = _check_traced(policy)
        before = _attributes(module)  # anew: to be traced some modules arrange their weights anew
        for trial in trials:
            expected = _call(policy, trial)
            _check_rows(policy, trial, expected)
            _check_repeated(policy, trial, expected)
        _check_repeated(policy, trials[0], first)
        _check_attributes(policy, before)
    return facts


def _trials(policy: StepPolicy) -> list[dict[str, Tensor]]:
    """Inputs to try: different ones, since what a module remembers shows in what it does after others; of a module that
    starts episodes itself also with all rows, and with some, at a start."""
    trials = [_random_inputs(policy, ROWS, seed) for seed in range(TRIES)]
    if policy.takes_is_first:
        for rows in ([1.0] * ROWS, [1.0, *[0.0] * (ROWS - 1)]):
            trials.append({**trials[0], IS_FIRST: torch.tensor(rows)})
    return trials


def _check_weights(policy: StepPolicy) -> None:
    for name, tensor in (*policy.module.named_parameters(), *policy.module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise _refused(policy, f"{name} has no shape yet; call the module once")
        if tensor.device.type != "cpu":
            raise _refused(policy, f"{name} is on '{tensor.device}', expected the CPU; call module.cpu()")
        if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
            raise _refused(policy, f"{name} is {_dtype(tensor)}, expected float32; call module.float()")
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise _refused(policy, f"{name}: expected finite values")


def _random_inputs(policy: StepPolicy, rows: int, seed: int) -> dict[str, Tensor]:
    """Observations and states in the order of the module's arguments, (rows, ...)."""
    rng = np.random.default_rng(seed)
    found: dict[str, Tensor] = {}
    for name, field in policy.observation.items():
        shape = (rows, *field.shape)
        if field.dtype == "uint8":
            found[name] = torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
        elif name == IS_FIRST:
            found[name] = torch.zeros(shape)
        else:
            found[name] = torch.from_numpy(rng.standard_normal(shape, np.float32))
    for name, field in policy.state.items():
        noise = rng.standard_normal((rows, *field.shape), np.float32)
        found[f"state {name}"] = torch.from_numpy(np.asarray(field.initial, np.float32) + np.float32(0.1) * noise)
    return found


def _call(policy: StepPolicy, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What the module returns, in one row; its own errors with their place."""
    try:
        given = [tensor.clone() for tensor in inputs.values()]
        return returned(policy.module(*given), tuple(policy.action))
    except LramError:
        raise
    except Exception as error:
        raise _refused(policy, f"{describe(error)}{_place(policy, error)}") from None


def _attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """What tells every attribute of a module and its parts, and what is in containers, from any other."""
    found = {}
    for path, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._buffers.items(), *part._parameters.items()):
            inside = [] if name in OF_TORCH else _inside(value)
            if not (isinstance(part, nn.RNNBase) and name in OF_WEIGHTS):
                found[path, name] = (_told_apart(value), *map(_told_apart, inside))
    return found


def _told_apart(value: Any) -> Any:
    """A plain value as it is written, so that NaN is NaN; anything else by what it is."""
    return repr(value) if isinstance(value, int | float | str | bool | bytes | None) else id(value)


def _inside(value: Any) -> list[Any]:
    """What a container of Python's holds."""
    if isinstance(value, nn.Module | Tensor):
        return []
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | set | deque):
        return list(value)
    return list(vars(value).values()) if isinstance(value, SimpleNamespace) else []


def _check_attributes(policy: StepPolicy, before: dict[tuple[str, str], Any]) -> None:
    after = _attributes(policy.module)
    for (path, name), value in after.items():
        if before.get((path, name)) != value:
            part = policy.module.get_submodule(path)
            what = "buffer" if name in part._buffers else "attribute"
            raise _impure(policy, f"it sets its {what} '{_joined(path, name)}'{_assignment(part, name)}; {AS_STATE}")


def _assignment(part: nn.Module, name: str) -> str:
    """Where a class of a module assigns an attribute: in ``forward``, else in another method."""
    methods = [m for kind in type(part).__mro__ for m in vars(kind).values() if inspect.isfunction(m)]
    own = [m for m in methods if m.__name__ != "__init__" and not m.__code__.co_filename.startswith(INSIDE)]
    for method in sorted(own, key=lambda method: method.__name__ != "forward"):
        try:
            lines, first = inspect.getsourcelines(method)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, SyntaxError, TypeError):
            continue
        for node in ast.walk(tree):
            set_here = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == name
            if set_here and isinstance(node, ast.Attribute):
                return _told(method.__code__.co_filename, first + node.lineno - 1, lines[node.lineno - 1])
    return ""


def _check_outputs(policy: StepPolicy, found: tuple[Tensor, ...], rows: int) -> None:
    """What the module returned is what was said."""
    spec, where = policy.spec(rows), _of_forward(policy)
    if len(found) != len(spec.outputs) + len(spec.states):
        raise _refused(
            policy,
            f"expected {counted(len(spec.outputs), 'output')} ({', '.join(policy.action)}) and "
            f"{counted(len(spec.states), 'state')} ({', '.join(policy.state) or 'none'}), the module returned "
            f"{counted(len(found), 'tensor')}{where}",
        )
    for tensor, said in zip(found, (*spec.outputs, *spec.states), strict=True):
        if tuple(tensor.shape) != said.shape or _dtype(tensor) != said.dtype:
            raise _refused(
                policy,
                f"{_called(said, policy)}: expected {said.dtype} of shape {said.shape} with {rows} rows, the module "
                f"returned {_dtype(tensor)} of shape {tuple(tensor.shape)}{where}",
            )
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise _refused(policy, f"{_called(said, policy)}: not finite for a random input{where}")


def _check_traced(policy: StepPolicy) -> ModuleFacts:
    """Trace the module; raises where it writes what it was given or what it owns, or needs values to know its way."""
    graph = ModuleGraph(policy)
    try:
        program = trace(graph)
    except Exception as error:
        place = _place(policy, error)
        if "data-dependent" in str(error) or "data dependent" in str(error):
            raise _refused(
                policy,
                f"its control flow depends on data{place}, which one static graph cannot have; use torch.where",
            ) from None
        raise _refused(policy, f"cannot be traced: {describe(error)}{place}") from None
    _check_constants(policy, program)
    try:
        lowered = program.run_decompositions()
    except Exception as error:
        raise _refused(policy, f"cannot be traced: {describe(error)}") from None
    for node in lowered.graph.nodes:  # of what is left: an LSTM could drop some of its values, but does not
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise _impure(policy, f"it draws random numbers{_traced_place(node)}")
    signature = lowered.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    for name in written:
        place = next((_traced_place(n) for n in program.graph.nodes if _writes(n)), "")
        if name in signature.user_inputs:
            given = graph.spec.input_names[signature.user_inputs.index(name)]
            raise _impure(policy, f"it writes its input '{given}'{place}; write a copy")
        raise _impure(policy, f"it writes its buffer '{name.removeprefix(INSIDE_GRAPH)}'{place}; {AS_STATE}")
    return ModuleFacts(products_of(graph, program), layers_run_once(policy.module, program, INSIDE_GRAPH))


def products_of(graph: ModuleGraph, program: Any) -> tuple[str, ...]:
    """The linear layers, in the order of a step, whose weight, as it is, one product reads, of something that inputs
    decide; ``program`` is the trace of the graph."""
    parameters, found = program.graph_signature.inputs_to_parameters, []
    plain = {f"{INSIDE_GRAPH}{path}.weight": path for path, part in graph.layers().items() if type(part) is nn.Linear}
    decided = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if any(given.name in decided for given in node.all_input_nodes):
            decided.add(node.name)
        if node.target is torch.ops.aten.linear.default and node.users and node.args[0].name in decided:
            weight = node.args[1]
            path = plain.get(parameters.get(weight.name, ""))
            if path is not None and len(weight.users) == 1:
                found.append(path)
    return tuple(found)


def _check_constants(policy: StepPolicy, program: Any) -> None:
    """Tensors that are attributes, no buffers, and written in place."""
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        if _writes(node) and getattr(node.args[0], "name", "") in constants:
            raise _impure(policy, f"it writes a tensor that it keeps{_traced_place(node)}; {AS_STATE}")


def _writes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and getattr(node.args[0], "op", "") == "placeholder"


def _check_repeated(policy: StepPolicy, inputs: dict[str, Tensor], expected: tuple[Tensor, ...]) -> None:
    """The same inputs give the same outputs, to the bit, whatever came between."""
    said = policy.spec(ROWS)
    for tensor, first, spec in zip(_call(policy, inputs), expected, (*said.outputs, *said.states), strict=True):
        if not torch.equal(tensor, first):
            raise _impure(policy, f"{_called(spec, policy)} differs from call to call for the same input")


def _check_rows(policy: StepPolicy, inputs: dict[str, Tensor], expected: tuple[Tensor, ...]) -> None:
    """Rows are robots: none depends on the others."""
    said = policy.spec(ROWS)
    for row in range(ROWS):
        found = _call(policy, {name: tensor[row : row + 1] for name, tensor in inputs.items()})
        _check_outputs(policy, found, 1)
        for tensor, every, spec in zip(found, expected, (*said.outputs, *said.states), strict=True):
            if not _alike(tensor, every[row : row + 1], every, chosen=said.scores_of(spec) is not None):
                raise _impure(policy, f"a row of {_called(spec, policy)} depends on the other rows")


def _alike(alone: Tensor, together: Tensor, every: Tensor, *, chosen: bool) -> bool:
    """Whether a row is what it is without the others; what is chosen from scores may differ where those are tied."""
    if not together.dtype.is_floating_point:
        return chosen or torch.equal(alone, together)
    distance = (alone.double() - together.double()).abs()
    typical = every.double().square().mean().sqrt()
    return bool((distance <= ALONE * torch.maximum(typical, together.double().abs())).all())


def _called(spec: TensorSpec, policy: StepPolicy) -> str:
    own = spec.name.removeprefix("state.")
    return f"output '{spec.name}'" if spec.name in policy.action else f"state '{own}'"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _impure(policy: StepPolicy, why: str) -> UsageError:
    return _refused(policy, f"not a pure function of observations and state: {why}")


def _refused(policy: StepPolicy, why: str) -> UsageError:
    return UsageError(f"{policy.name}: {why}")


def _of_forward(policy: StepPolicy) -> str:
    """Where the module's forward begins."""
    try:
        code = type(policy.module).forward.__code__
    except AttributeError:
        return ""
    if code.co_filename.startswith(INSIDE):
        return ""
    return _told(code.co_filename, code.co_firstlineno, f"def {code.co_name}")


def _place(policy: StepPolicy, error: BaseException) -> str:
    """The innermost line of an error that is not torch's or ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(INSIDE)]
    if not frames:
        return _of_forward(policy)
    return _told(frames[-1].filename, frames[-1].lineno or 0, frames[-1].line or "")


def _traced_place(node: Any) -> str:
    """The line of a traced node."""
    lines = re.findall(r'File "(.+)", line (\d+), in \S+\n\s*(.*)', node.meta.get("stack_trace") or "")
    found = [line for line in lines if not line[0].startswith(INSIDE)]
    return _told(found[-1][0], int(found[-1][1]), found[-1][2]) if found else ""


def _told(file: str, line: int, code: str) -> str:
    near = os.path.relpath(file)
    return f" ({file if near.startswith('..') else near}:{line}: {code.strip()})"

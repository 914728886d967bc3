"""The policies that `small_policies.py` times, and the contenders that step them."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from small_policies_results import NATIVE_C

from lram_export.errors import LramError, UsageError, describe
from lram_export.policy import Policy
from lram_export.spec.rows import ROWS
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import next_name
from lram_export.step_module.policy import StepPolicy
from lram_export.system.machine import physical_cores

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs the package 'torch'; pip install 'lram-export[all]'")

BENCHMARKS = Path(__file__).parent
ENGINE = BENCHMARKS.parent / "kernels" / "native"
BUILD = BENCHMARKS.parent / "build" / "small-policies"

OBSERVED, WIDTH, ACTIONS = 48, 256, 12
CLIP = 5.0
INPUT_STEPS, FLEET_INPUT_STEPS = 64, 8
"""Observations, used in a cycle; of many rows fewer, since they would be hundreds of megabytes."""

Floats = NDArray[np.float32]


class Recurrent(nn.Module):
    """A cell of torch's own and a linear head."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cell = cell(OBSERVED, WIDTH)
        self.head = nn.Linear(WIDTH, ACTIONS)

    def forward(self, observation: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(rows, observed), states (rows, width) -> the action, and the next states."""
        before = tuple(part[None] for part in state)
        seen, after = self.cell(observation[None], before if len(before) > 1 else before[0])
        after = after if len(before) > 1 else (after,)
        return (self.head(seen[0]), *(part[0] for part in after))


class LinearLstm(nn.Module):
    """An LSTM of two linear layers, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(OBSERVED, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.head = nn.Linear(WIDTH, ACTIONS)

    def forward(self, observation: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """(rows, observed), states (rows, width) -> the action, and the next states."""
        entering, forget, new, out = (self.of_input(observation) + self.of_state(h)).chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(entering) * torch.tanh(new)
        h = torch.sigmoid(out) * torch.tanh(c)
        return self.head(h), h, c


class Perceptron(nn.Module):
    """Three hidden layers behind an observation that is normalized by constants and clipped."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(OBSERVED))
        self.register_buffer("deviation", 0.5 + torch.rand(OBSERVED))
        widths, layers = (OBSERVED, WIDTH, WIDTH, WIDTH), list[nn.Module]()
        for ins, outs in itertools.pairwise(widths):
            layers += [nn.Linear(ins, outs), nn.ELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, ACTIONS))

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        """(rows, observed) -> the action."""
        return (self.layers(((observation - self.mean) / self.deviation).clamp(-CLIP, CLIP)),)


Module = Callable[[], nn.Module]
POLICIES: dict[str, tuple[Module, tuple[str, ...]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), ("h", "c")),
    "mlp": (Perceptron, ()),
    "gru": (lambda: Recurrent(nn.GRU), ("h",)),
    "lstm-linear": (LinearLstm, ("h", "c")),
}
"""What makes the module, and the names of its states."""


NETWORK = "xlstm"
"""A policy of the networks here: that of the tests with four blocks, 64 wide. It observes 204 values, aims at a return,
and is told its rewards, all 0 here. It runs one row, and not in PyTorch."""
NETWORK_CHECKPOINT = BENCHMARKS.parent / "tests" / "golden" / "state_ms" / "model.zip"
NETWORK_TASK = TaskSpec("custom", "state", 204, "continuous", 8, 0.0, 1.0, "observed")


def make_policy(name: str) -> StepPolicy:
    """A module by its name, with the same random weights every time."""
    module, states = POLICIES[name]
    torch.manual_seed(0)
    return StepPolicy(module().eval(), observation=OBSERVED, action=ACTIONS, state=dict.fromkeys(states, WIDTH))


def observations(name: str, batch: int) -> Floats:
    """(steps, rows, observed) for a policy, the same for everyone."""
    steps = INPUT_STEPS if batch == 1 else FLEET_INPUT_STEPS
    observed = NETWORK_TASK.observation_dim if name == NETWORK else OBSERVED
    return np.random.default_rng(2).standard_normal((steps, batch, observed or 0), np.float32)


@dataclass(frozen=True)
class Window:
    """Steps that do not count, then timed ones, fewer if both take longer than ``seconds``."""

    warm_up: int
    steps: int
    seconds: float


class Contender(Protocol):
    """What takes turns."""

    name: str
    precision: str

    @property
    def action(self) -> Floats:
        """(rows, actions) of its last step."""

    def window(self, window: Window) -> list[int]:
        """Nanoseconds of every timed step."""


class InProcess(ABC):
    """A contender in this process."""

    def __init__(self, name: str, precision: str, observations: Floats) -> None:
        self.name, self.precision = name, precision
        self._observations, self._next = observations, 0

    @property
    @abstractmethod
    def action(self) -> Floats:
        """See :class:`Contender`."""

    @abstractmethod
    def _step(self, observation: Floats) -> int:
        """Take one step; the nanoseconds it took."""

    def window(self, window: Window) -> list[int]:
        """See :class:`Contender`."""
        end, found = time.perf_counter() + window.seconds, list[int]()
        for _ in range(window.warm_up):
            self._one()
            if time.perf_counter() > end:
                break
        while len(found) < window.steps:
            found.append(self._one())
            if time.perf_counter() > end:
                break
        return found

    def _one(self) -> int:
        self._next += 1
        return self._step(self._observations[(self._next - 1) % len(self._observations)])


class Acting(InProcess):
    """The step API: `Policy.act` of one row."""

    def __init__(self, name: str, precision: str, observations: Floats, policy: Policy) -> None:
        super().__init__(name, precision, observations[:, 0])
        self._policy = policy
        self._told = () if policy.spec.input("reward") is None else (0.0,)
        self._action: Floats = np.zeros(0, np.float32)

    @property
    def action(self) -> Floats:
        """See :class:`Contender`."""
        return self._action[None]

    def _step(self, observation: Floats) -> int:
        act, told = self._policy.act, self._told
        start = time.perf_counter_ns()
        action = act(observation, *told)
        elapsed = time.perf_counter_ns() - start
        self._action = np.asarray(action, np.float32)
        return elapsed


class RuntimeStep(InProcess):
    """What lies below the step API: `Runtime.step`."""

    def __init__(self, name: str, precision: str, observations: Floats, policy: Policy) -> None:
        super().__init__(name, precision, observations)
        self._runtime, self._is_first = policy.runtime, np.ones(policy.spec.batch_size, np.float32)
        self._output: Any = None

    @property
    def action(self) -> Floats:
        """See :class:`Contender`."""
        action: Floats = self._output.action
        return action

    def _step(self, observation: Floats) -> int:
        step = self._runtime.step
        start = time.perf_counter_ns()
        self._output = step(observation, self._is_first)
        elapsed = time.perf_counter_ns() - start
        self._is_first.fill(0)
        return elapsed


class Session(InProcess):
    """A session of ONNX Runtime: even steps read the first set of states and write the second, odd ones the other way
    round."""

    def __init__(self, name: str, precision: str, observations: Floats, session: Any) -> None:
        super().__init__(name, precision, observations)
        self._session, self._current = session, 0
        self._inputs = {port.name: np.zeros(port.shape, np.float32) for port in session.get_inputs()}
        self._outputs = {port.name: np.zeros(port.shape, np.float32) for port in session.get_outputs()}
        states = [name for name in self._inputs if next_name(name) in self._outputs]
        sets = [{name: np.zeros_like(self._inputs[name]) for name in states} for _ in range(2)]
        self._bindings = [self._bind(sets[i], sets[1 - i]) for i in range(2)]
        self._is_first = self._inputs.get("is_first", np.zeros(0, np.float32))
        self._is_first.fill(1)

    def _bind(self, source: dict[str, Floats], destination: dict[str, Floats]) -> Any:
        binding = self._session.io_binding()
        written = {next_name(name): array for name, array in destination.items()}
        for name, array in {**self._inputs, **source}.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in {**self._outputs, **written}.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding, source, destination  # which keep the memory

    @property
    def action(self) -> Floats:
        """See :class:`Contender`."""
        return self._outputs["action"]

    def _step(self, observation: Floats) -> int:
        np.copyto(self._inputs["observation"], observation)
        run, binding = self._session.run_with_iobinding, self._bindings[self._current][0]
        start = time.perf_counter_ns()
        run(binding)
        elapsed = time.perf_counter_ns() - start
        self._current = 1 - self._current
        self._is_first.fill(0)
        return elapsed


class InTorch(InProcess):
    """The module, or what was compiled of it, at float32."""

    def __init__(self, name: str, observations: Floats, step: Callable[..., Any], state: Sequence[Tensor]) -> None:
        super().__init__(name, "fp32", observations)
        self._call, self._state, self._action = step, tuple(state), torch.zeros(0)

    @property
    def action(self) -> Floats:
        """See :class:`Contender`."""
        action: Floats = self._action.numpy()
        return action

    def _step(self, observation: Floats) -> int:
        call, given, state = self._call, torch.from_numpy(observation), self._state
        start = time.perf_counter_ns()
        found = call(given, *state)
        elapsed = time.perf_counter_ns() - start
        self._action, *after = found
        self._state = tuple(after)
        return elapsed


class FromC:
    """The program `step_time` in a process of its own, which waits, asleep, while it is not asked."""

    def __init__(self, name: str, precision: str, line: Sequence[str | Path]) -> None:
        self.name, self.precision = name, precision
        self._action: Floats = np.zeros(0, np.float32)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(list(map(str, line)), stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def window(self, window: Window) -> list[int]:
        """See :class:`Contender`."""
        commands, answers, errors = self._process.stdin, self._process.stdout, self._process.stderr
        assert commands is not None and answers is not None and errors is not None
        try:
            commands.write(f"{window.warm_up} {window.steps} {round(1e9 * window.seconds)}\n")
            commands.flush()
        except BrokenPipeError:
            answer = ""
        else:
            answer = answers.readline()
        if not answer:
            raise LramError(f"{self.name}: {errors.read().strip() or 'the program ended'}")
        found = json.loads(answer)
        self._action = np.array(found["action"], np.float32)[None]
        nanoseconds: list[int] = found["nanoseconds"]
        return nanoseconds

    @property
    def action(self) -> Floats:
        """See :class:`Contender`."""
        return self._action

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def build_step_time() -> Path:
    """Compile the engine and the program beside this file; the program's path.

    Raises:
        UsageError: a compiler is missing.
        LramError: it does not compile; with the compiler's first error.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    found = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    for name, path in (("cmake", found), (compiler[0], shutil.which(compiler[0]))):
        if path is None:
            raise UsageError(f"'{NATIVE_C}' needs '{name}', which is not there; install it, or leave out the target")
    cmake, program = str(found), BUILD / "step_time"
    BUILD.mkdir(parents=True, exist_ok=True)
    command(cmake, "-S", ENGINE, "-B", BUILD, "-DLRAM_SHARED=OFF", "-DCMAKE_BUILD_TYPE=Release")
    command(cmake, "--build", BUILD, "--target", "lram_static", "--parallel", physical_cores())
    source, library = BENCHMARKS / "step_time.c", BUILD / "liblram.a"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-I", ENGINE / "include"]
    command(*compiler, *flags, source, library, "-lstdc++", "-lm", "-lpthread", "-o", program)
    return program


def command(*line: object) -> str:
    """Run what must succeed; its standard output. Raises LramError with the first line that speaks of an error."""
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    if done.returncode != 0:
        said = [text.strip() for text in (done.stderr + done.stdout).splitlines() if text.strip()]
        first = next((text for text in said if "error" in text.lower()), said[-1] if said else "no word why")
        raise LramError(f"{Path(str(line[0])).name}: failed: {first}")
    return done.stdout


def open_session(model: Path, threads: int, rows: int = 1) -> Any:
    """A session with ONNX Runtime's defaults but for its threads. ``rows`` is what a graph for any number of rows is
    prepared for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    options.add_free_dimension_override_by_name(ROWS, rows)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def torch_graph(policy: StepPolicy, batch: int, path: Path) -> None:
    """The graph that `torch.onnx.export` makes of the module itself, with the names that a bundle has."""
    from lram_export.step_module.tracing import quietly

    states = [f"state.{name}" for name in policy.state]
    given = (torch.zeros(batch, OBSERVED), *state_tensors(policy, batch))
    with quietly(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            policy.module,
            given,
            path,
            dynamo=True,
            external_data=False,
            input_names=["observation", *states],
            output_names=["action", *map(next_name, states)],
            verbose=False,
        )


def state_tensors(policy: StepPolicy, batch: int) -> list[Tensor]:
    """The states at the start of an episode."""
    return [torch.zeros(batch, *field.shape) for field in policy.state.values()]


def compiled(policy: StepPolicy, batch: int) -> Callable[..., Any]:
    """The module by `torch.compile`, one static graph of it.

    Raises:
        LramError: no compiler, or it cannot be compiled.
    """
    import torch._dynamo
    import torch._inductor.config

    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        raise LramError(f"no C++ compiler ('{compiler[0]}'), which torch.compile needs")
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = True
    settings: Any = torch._inductor.config
    settings.compile_threads = 1  # in this process, not in others that stay
    settings.freezing = settings.cpp_wrapper = True  # the fastest for one row, and no slower for many
    step: Callable[..., Any] = torch.compile(policy.module, fullgraph=True, dynamic=False)
    try:
        with torch.inference_mode():
            step(torch.zeros(batch, OBSERVED), *state_tensors(policy, batch))
    except Exception as error:  # a compiler, and torch's own, raise whatever they like
        raise LramError(f"torch.compile failed: {describe(error)[:200]}") from None
    return step


def set_threads(threads: int) -> None:
    """Of PyTorch, before anything is compiled for them."""
    torch.set_num_threads(threads)


def in_inference_mode() -> AbstractContextManager[None]:
    """The mode in which contenders step."""
    return torch.inference_mode()

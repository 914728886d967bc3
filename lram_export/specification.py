"""Names, shapes, dtypes and initial values of everything that enters or leaves one environment step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lram_export.config import ModelConfig
from lram_export.tasks import TaskSpec

MAX_FLOAT32 = float.fromhex("0x1.fffffep127")
"""The largest float32 number."""

SLSTM_INITIAL_M = -1e30
"""Initial stabilizer of an sLSTM block: makes the first step take m = i, as the original's branch does."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor.

    ``initial`` is the value every element has at the start of an episode (state only). ``limit`` is the largest
    magnitude with which the step's arithmetic stays within float32 (float32 inputs only); None: not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    initial: float | None = None
    limit: float | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``initial`` and ``limit`` only where there is one."""
        data: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        optional = {"initial": self.initial, "limit": self.limit}
        return {**data, **{name: value for name, value in optional.items() if value is not None}}


@dataclass(frozen=True)
class StepSpec:
    """The interface of one step graph.

    ``inputs`` are ``observation``, ``return_to_go``, ``reward`` and ``is_first``; ``outputs`` are ``action``
    and ``action_logits``; ``states`` are named ``state.<block>.<part>`` and come out again, in the same order
    and shape, as ``next_state.<block>.<part>``. All have a leading batch dimension of ``batch_size`` rows.
    """

    batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all graph inputs, in order."""
        return tuple(t.name for t in (*self.inputs, *self.states))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all graph outputs, in order."""
        return tuple(t.name for t in self.outputs) + tuple(next_name(t.name) for t in self.states)

    @property
    def limits(self) -> dict[str, float]:
        """Name of an input -> its ``limit``, of those that have one."""
        return {t.name: t.limit for t in self.inputs if t.limit is not None}

    def with_limits(self, limits: Mapping[str, float]) -> StepSpec:
        """The same with these limits of inputs."""
        inputs = tuple(dataclasses.replace(t, limit=limits.get(t.name)) for t in self.inputs)
        return dataclasses.replace(self, inputs=inputs)

    @property
    def state_bytes(self) -> int:
        """Size of the recurrent state of the whole batch in bytes (float32)."""
        return 4 * sum(t.size for t in self.states)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest holds them."""
        return {
            "batch_size": self.batch_size,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "state": [t.to_json() for t in self.states],
        }


def next_name(state_name: str) -> str:
    """Name of the output that carries a state tensor out: ``state.0.C`` -> ``next_state.0.C``."""
    return f"next_{state_name}"


def state_name(block: int, part: str) -> str:
    """Name of a state tensor: ``state.<block>.<part>``."""
    return f"state.{block}.{part}"


def step_spec(config: ModelConfig, task: TaskSpec, batch_size: int = 1) -> StepSpec:
    """The interface of a model's step for a task.

    Raises:
        ValueError: the task asks for an encoder or an action the model does not have; the message names
            both sides.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    return StepSpec(
        batch_size=batch_size,
        inputs=(
            _observation(config, task, batch_size),
            TensorSpec("return_to_go", (batch_size,), "float32"),
            TensorSpec("reward", (batch_size,), "float32"),
            TensorSpec("is_first", (batch_size,), "float32"),
        ),
        outputs=_outputs(config, task, batch_size),
        states=tuple(state_specs(config, batch_size)),
    )


def _observation(config: ModelConfig, task: TaskSpec, batch_size: int) -> TensorSpec:
    if task.observation == "image":
        if config.image_shape is None:
            raise ValueError("observation: the task needs images, but the checkpoint has no image encoder")
        return TensorSpec("observation", (batch_size, *config.image_shape), "uint8")
    if config.state_dim is None:
        raise ValueError("observation: the task needs a state, but the checkpoint has no state encoder")
    assert task.observation_dim is not None
    if task.observation_dim > config.state_dim:
        raise ValueError(
            f"observation_dim: the task has {task.observation_dim}, the model takes at most {config.state_dim}"
        )
    return TensorSpec("observation", (batch_size, task.observation_dim), "float32")


def _outputs(config: ModelConfig, task: TaskSpec, batch_size: int) -> tuple[TensorSpec, ...]:
    if task.action == "discrete":
        if config.discrete_actions < 1:
            raise ValueError("action: the task is discrete, but the model has no discrete actions")
        return (
            TensorSpec("action", (batch_size, 1), "int64"),
            TensorSpec("action_logits", (batch_size, config.discrete_actions), "float32"),
        )
    if task.action_dim > config.act_dim:
        raise ValueError(f"action_dim: the task has {task.action_dim}, the model gives {config.act_dim}")
    return (
        TensorSpec("action", (batch_size, task.action_dim), "float32"),
        TensorSpec("action_logits", (batch_size, task.action_dim, config.num_actions), "float32"),
    )


def state_specs(config: ModelConfig, batch_size: int) -> list[TensorSpec]:
    """Recurrent state of every block: ``conv`` holds the last inputs of the causal convolution, oldest first."""
    specs: list[TensorSpec] = []
    window = config.conv_kernel_size - 1
    for block in range(config.num_blocks):
        if block in config.slstm_at:
            hidden = (batch_size, config.hidden_size)
            parts: Mapping[str, tuple[tuple[int, ...], float]] = {
                "conv": ((batch_size, window, config.hidden_size), 0.0),
                "y": (hidden, 0.0),
                "c": (hidden, 0.0),
                "n": (hidden, 0.0),
                "m": (hidden, SLSTM_INITIAL_M),
            }
        else:
            heads, width = config.num_heads, config.head_dim
            parts = {
                "conv": ((batch_size, window, config.inner_size), 0.0),
                "C": ((batch_size, heads, width, width), 0.0),
                "n": ((batch_size, heads, width), 0.0),
                "m": ((batch_size, heads), 0.0),
            }
        specs += [
            TensorSpec(state_name(block, part), shape, "float32", initial) for part, (shape, initial) in parts.items()
        ]
    return specs

"""The interface of a model's step for a task."""

from __future__ import annotations

from lram_export.backbones.xlstm.config import state_specs
from lram_export.model.config import ModelConfig
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, TensorSpec


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


def bin_width(config: ModelConfig, task: TaskSpec) -> float:
    """Distance of two neighbouring values of a continuous action; 0 where actions are discrete."""
    return 0.0 if task.action == "discrete" else 2.0 / config.action_channels

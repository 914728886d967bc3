"""The interface of a model's step for a task."""

from __future__ import annotations

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
    zero = {token.input for token in config.tokens.tokens if token.zero}
    given = (encoder for encoder in config.encoders_of(task) if encoder.input not in zero)
    embedded = sorted(given, key=lambda e: (e.input != "observation", config.encoders.index(e)))
    return StepSpec(
        batch_size=batch_size,
        inputs=(
            *(encoder.tensor(task, batch_size) for encoder in embedded),
            TensorSpec("is_first", (batch_size,), "float32"),
        ),
        outputs=config.head.outputs(task, batch_size),
        states=tuple(config.backbone.states(batch_size, len(config.tokens))),
    )

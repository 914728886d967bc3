"""How large a model is at a precision, from its config and its task alone."""

from __future__ import annotations

import math
import re

from lram_export.backbones.xlstm.config import state_specs
from lram_export.model.config import ModelConfig, expected_shapes
from lram_export.model.matrices import QUANTIZED
from lram_export.spec.precision import FORMATS, GROUP, PRECISIONS
from lram_export.spec.tasks import TaskSpec

_MATRICES = re.compile("|".join(re.escape(k.checkpoint_key).replace(r"\{block\}", r"\d+") for k in QUANTIZED))


def used_shapes(config: ModelConfig, task: TaskSpec | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights a step reads: one encoder, of the state only the columns the task has, and the rows of the
    head its actions come from. Without a task: the state encoder, where there is one, and the whole head."""
    shapes = expected_shapes(config)
    state = config.state_dim is not None if task is None else task.observation == "state"
    shapes = {n: s for n, s in shapes.items() if not n.startswith("embed_image." if state else "embed_state.")}
    if task is None:
        return shapes
    rows = config.discrete_actions if task.action == "discrete" else task.action_dim * config.num_actions
    shapes["action_net.0.weight"], shapes["action_net.0.bias"] = (rows, config.hidden_size), (rows,)
    if task.observation_dim is not None:
        shapes["embed_state.weight"] = (config.hidden_size, task.observation_dim)
    return shapes


def weight_bytes(config: ModelConfig, precision: str, task: TaskSpec | None = None) -> int:
    """Bytes of the weights of :func:`used_shapes` at a precision of
    :data:`~lram_export.spec.precision.PRECISIONS`: codes, scales and the rest."""
    stored = PRECISIONS[precision].weights
    total = 0
    for name, shape in used_shapes(config, task).items():
        if stored in FORMATS and _MATRICES.fullmatch(name):
            rows, columns = shape
            description = FORMATS[stored]
            groups = 0 if not description.largest else math.ceil(columns / GROUP) if description.grouped else 1
            total += rows * columns * description.bits // 8 + 4 * rows * groups
        else:
            total += 4 * math.prod(shape)
    return total


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one row's recurrent state, float32."""
    return 4 * sum(tensor.size for tensor in state_specs(config, 1))


def moved_bytes(config: ModelConfig, precision: str, task: TaskSpec | None = None) -> int:
    """What a step of one row reads and writes: every weight once, every state tensor once in and once out."""
    return weight_bytes(config, precision, task) + 2 * state_bytes(config)

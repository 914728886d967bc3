"""The step graph: one environment step as a pure function of named tensors, all tokens as one chunk.

Where ``is_first`` is 1, a row starts an episode inside the graph: every state begins with its initial value, and the
tokens that are skipped there are not seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.registry import backbone_module
from lram_export.model.encoder_modules import step_module
from lram_export.model.graph import Graph
from lram_export.model.head_modules import chosen_actions, head_modules
from lram_export.model.interface_stage import InterfaceStage
from lram_export.model.limits import input_limits
from lram_export.model.reference import ReferenceModel, zeros
from lram_export.model.specification import step_spec
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import Floats
from lram_export.spec.tokens import TokenLayout

BACKBONE = "backbone."
"""What the paths of a backbone's modules begin with; the names of its matrices leave it out."""


class StepGraph(Graph):
    """The pure function (inputs, is_first, state) -> (action, logits, next state).

    Only what the task needs is kept: one encoder of the observation, the columns of it that the task fills, and the
    rows of the head that its actions read. Encoders are called ``embed_<token>``. ``values`` is what an action can be,
    (1, action_dim, num_actions), where an interface scales or clamps it.
    """

    values: Tensor | None

    def __init__(
        self, model: ReferenceModel, task: TaskSpec, batch_size: int = 1, interface: Interface | None = None
    ) -> None:
        """Lower a model for a task; weights are shared with the model where they are used whole.

        Raises:
            ValueError: model and task do not fit (see :func:`~lram_export.model.specification.step_spec`), or the
                encoders leave float32 with ordinary inputs (:func:`~lram_export.model.limits.input_limits`).
        """
        super().__init__()
        config = self.config = model.config
        self.task = task
        spec = step_spec(config, task, batch_size)
        limits = input_limits(dict(model.named_parameters()), config.encoders_of(task), task)
        interface = Interface() if interface is None else interface
        self._stage = InterfaceStage(interface, spec.with_limits(limits))
        self.spec = self._stage.spec
        self.register_buffer("values", chosen_actions(config.head, task, interface), persistent=False)
        names = [tensor.name for tensor in spec.inputs]
        self._sources = [None if token.zero else names.index(token.input) for token in config.tokens.tokens]
        for token, encoder in zip(config.tokens.tokens, config.encoders_of(task), strict=True):
            module = step_module(encoder, model.get_submodule(encoder.name), task)
            self.add_module(_embedding(token.name), module)
        self.embed_norm = model.embed_ln
        stack = backbone_module(config.backbone.kind, "step")
        self.backbone: Any = stack.build(model.backbone, config.tokens, self._padding())
        self._head_modules = head_modules(config.head)
        self.head = self._head_modules.step(config.head, model.action_net, task)
        self.eval().requires_grad_(False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of ``spec.input_names``, out in the order of ``spec.output_names``."""
        count = len(self.spec.inputs)
        *inputs, is_first = tensors[:count]
        embedded = self.embed(*inputs)
        first, present = episode_masks(is_first, self.config.tokens)
        hidden, *state = self.backbone(embedded, first, present, *tensors[count:])
        return (*self.decide(hidden), *state)

    def embed(self, *inputs: Tensor) -> Tensor:
        """The tokens of a step, normalized: (B, T, hidden); inputs in the order of ``spec.inputs``."""
        tokens, weight = [], self.embed_norm.weight
        inputs = self._stage.before(inputs)
        for token, source in zip(self.config.tokens.tokens, self._sources, strict=True):
            values = weight.new_zeros(len(inputs[0])) if source is None else inputs[source]
            tokens.append(self.get_submodule(_embedding(token.name))(values))
        normalized: Tensor = self.embed_norm(torch.stack(tokens, dim=1))
        return normalized

    def normalization(self) -> dict[str, Floats]:
        """What the observation is normalized by, one number per element, and ``clip`` alone; {} where it is not."""
        return self._stage.normalization(self.spec.inputs[0].name)

    @torch.no_grad()
    def _padding(self) -> Tensor:
        """The tokens of a step in which every input is 0: (T, hidden)."""
        return self.embed(*(zeros(tensor, self.embed_norm.weight) for tensor in self.spec.inputs[:-1]))[0]

    def decide(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Action and action logits from what the backbone left, (B, hidden)."""
        logits = self._head_modules.shape(self.head(hidden), self.config.head, self.task)
        return self._head_modules.decode(logits, self.config.head, self.task, self.values), logits

    def initial_tensors(self) -> dict[str, Tensor]:
        """The states that start as a tensor, each for one row; see :class:`~lram_export.spec.tensors.StateSpec`."""
        return dict(self.backbone.initial_tensors())

    def layers(self) -> dict[str, nn.Linear]:
        """Every linear layer under its name: its path in the graph, in the backbone without that word."""
        return {
            path.removeprefix(BACKBONE): module
            for path, module in self.named_modules()
            if isinstance(module, nn.Linear)
        }


def _embedding(token: str) -> str:
    return f"embed_{token}"


def episode_masks(is_first: Tensor, tokens: TokenLayout) -> tuple[Tensor, Tensor]:
    """What a backbone takes of ``is_first`` (B,): rows that start an episode, (B,) bool, and ``present`` (B, T): 0 for
    the tokens that such a row skips, else 1."""
    skipped = (1.0 - is_first)[:, None]
    if tokens.skipped != 1:
        skipped = skipped.repeat(1, tokens.skipped)
    present = F.pad(skipped, (0, len(tokens) - tokens.skipped), value=1.0)
    return is_first > 0, present

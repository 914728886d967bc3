"""The reference model: the policy network as the training code computes it, float32, token by token.

It is the oracle of every check, so it stays as close to the original code as it can. Only what the original leaves to
its caller is added: rows of a batch may start an episode independently (``is_first``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.backbones.protocol import State, Weights
from lram_export.backbones.registry import backbone_module
from lram_export.backbones.state import initial_state, select_rows
from lram_export.model.config import ModelConfig
from lram_export.model.encoder_modules import reference_module
from lram_export.model.head_modules import head_modules
from lram_export.model.interface_stage import Normalize
from lram_export.model.specification import step_spec
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import TensorSpec
from lram_export.system.machine import threads_beside_others


class ReferenceModel(nn.Module):
    """The whole policy network. Parameter names are those of the original checkpoint.

    ``context_length`` is the longest sequence, in tokens, that ``backbone`` takes in parallel; training needs it,
    :meth:`step` does not.
    """

    def __init__(self, config: ModelConfig, context_length: int = 1) -> None:
        super().__init__()
        self.config = config
        hidden = config.backbone.hidden_size
        for encoder in config.encoders:
            self.add_module(encoder.name, reference_module(encoder, hidden))
        self.embed_ln = nn.LayerNorm(hidden)
        reference = backbone_module(config.backbone.kind, "reference")
        self.encoder = reference.build(config.backbone, context_length)
        self.action_net = head_modules(config.head).reference(config.head, hidden)
        self.normalize: nn.Module = nn.Identity()

    @staticmethod
    def from_weights(config: ModelConfig, weights: Weights, normalize: nn.Module | None = None) -> ReferenceModel:
        """Build the model around a checkpoint's weights; they are shared, not copied.

        ``normalize`` is what the training code does to observations of numbers; behind padding, as there.
        """
        with torch.device("meta"):
            model = ReferenceModel(config)
        model.load_state_dict(weights, strict=True, assign=True)
        for module in model.modules():
            if "causal_mask" in module._buffers:  # not a weight; only the parallel form reads it
                module.causal_mask = torch.ones(1, 1, dtype=torch.bool)
        model.normalize = nn.Identity() if normalize is None else normalize
        return model.eval().requires_grad_(False)

    @property
    def backbone(self) -> Any:
        """The backbone as the training code has it."""
        return self.encoder

    def initial_tensors(self, task: TaskSpec) -> dict[str, Tensor]:
        """The states that start as a tensor, each for one row; see :class:`~lram_export.spec.tensors.StateSpec`."""
        inputs = {tensor.name: zeros(tensor, self.embed_ln.weight) for tensor in step_spec(self.config, task).inputs}
        return dict(self.backbone.initial_tensors(self.padding(inputs)))

    def initial_state(self, batch_size: int, task: TaskSpec) -> State:
        """The state at the start of an episode."""
        states = self.config.backbone.states(batch_size, len(self.config.tokens))
        return initial_state(states, self.initial_tensors(task))

    @torch.no_grad()
    def padding(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The tokens of a step like this in which every input is 0, as :meth:`embed` gives them: (T, hidden)."""
        return self.embed({name: torch.zeros_like(values[:1]) for name, values in inputs.items()})[0]

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed the tokens of an environment step.

        Args:
            inputs: by name. ``observation``: (B, n) float32 with n <= the encoder's width (zero-padded as in
                training), or (B, C, H, W) uint8; others: (B,) float32, scaled.

        Returns:
            (B, T, hidden_size), after ``embed_ln``.
        """
        kind = "image" if inputs["observation"].dim() == 4 else "state"
        inputs = {**inputs, "observation": self.normalize(inputs["observation"])}
        tokens = []
        for token in self.config.tokens.tokens:
            of_input = [encoder for encoder in self.config.encoders if encoder.input == token.input]
            encoder = next(e for e in of_input if token.input != "observation" or e.kind == kind)
            values = inputs["is_first"] * 0 if token.zero else inputs[token.input]
            tokens.append(self.get_submodule(encoder.name)(values))
        embedded: Tensor = self.embed_ln(torch.stack(tokens, dim=1))
        return embedded

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """One environment step, as the training code takes it.

        Args:
            inputs: see :meth:`embed`; and ``is_first`` (B,) float32, 1 where a row starts an episode: its state is
                initial, and tokens that are skipped there are not seen.
            state: named tensors as the specification lists them.

        Returns:
            All logits of the head, and the next state; ``state`` is not changed.
        """
        backbone, layout = self.backbone, self.config.tokens
        tokens, first = self.embed(inputs), inputs["is_first"] > 0
        if first.any():
            padding = self.padding(inputs)
            states = self.config.backbone.states(len(first), len(layout))
            state = select_rows(first, initial_state(states, backbone.initial_tensors(padding)), state)
            skipped = first[:, None] & (torch.arange(len(layout)) < layout.skipped)
            tokens = torch.where(skipped[..., None], padding, tokens)
        read, nested = backbone.step(tokens, first, layout, backbone.nest(state))
        logits: Tensor = self.action_net(read)
        return logits, backbone.flatten(nested)


def reference_model(config: ModelConfig, weights: Weights, task: TaskSpec, interface: Interface) -> ReferenceModel:
    """The model around a checkpoint's weights, normalizing the observations of a task as an interface says."""
    observation = step_spec(config, task).inputs[0]
    normalization = interface.normalizations.get(observation.name)
    normalize = None if normalization is None else Normalize(normalization, observation)
    return ReferenceModel.from_weights(config, weights, normalize)


def zeros(tensor: TensorSpec, like: Tensor) -> Tensor:
    """An input of zeros, for one row; of numbers in the precision of ``like``, and where that is."""
    dtype = like.dtype if tensor.dtype == "float32" else getattr(torch, tensor.dtype)
    return torch.zeros((1, *tensor.shape[1:]), dtype=dtype, device=like.device)


@contextmanager
def oracle_threads(parameters: int) -> Iterator[None]:
    """Give torch the threads that suit a reference model of so many weights, as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_beside_others(parameters))
    try:
        yield
    finally:
        torch.set_num_threads(before)

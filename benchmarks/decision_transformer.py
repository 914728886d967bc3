"""A Decision Transformer of the published sizes with a key-value cache: the package's GPT-2, the LRAM's embeddings.

`context_length.py` times it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.checkpoints.random import preset_config
from lram_export.errors import LramError
from lram_export.spec.parity import TOLERANCES
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tokens import LRAM

TOKENS = len(LRAM)
TRANSFORMERS = {"16m": (4, 8), "48m": (6, 12), "110m": (8, 16), "206m": (10, 20)}
"""Layers and heads of the published counterparts (github.com/ml-jku/LRAM: dt_medium_64, dt_mediumplus_64,
dt_largeplus_64, dt_huge); the hidden size is the LRAM's."""

CACHES = ("dynamic", "in-place")
"""The package's `DynamicCache`; one that is written in place."""


def transformer_name(kind: str) -> str:
    """The contender's name."""
    return f"transformer, {kind} cache"


class DecisionTransformer:
    """The weights of a Decision Transformer, and its step. ``positions`` is the longest context in tokens."""

    def __init__(self, preset: str, task: TaskSpec, positions: int) -> None:
        import torch
        from transformers import DecisionTransformerConfig, DecisionTransformerGPT2Model

        self.model, self.task = preset_config(preset), task
        hidden, (layers, heads) = self.model.backbone.hidden_size, TRANSFORMERS[preset]
        self.config = DecisionTransformerConfig(
            hidden_size=hidden, n_layer=layers, n_head=heads, n_positions=positions,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.backbone = DecisionTransformerGPT2Model(self.config).eval().requires_grad_(False)
        parameters = inspect.signature(self.backbone.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5
        layer = torch.nn.Linear
        self.outer = torch.nn.ModuleDict(
            {
                "reward": layer(1, hidden),
                "observation": layer(task.observation_dim or 0, hidden),
                "return_to_go": layer(1, hidden),
                "norm": torch.nn.LayerNorm(hidden),
                "head": layer(hidden, task.action_dim * self.model.head.num_actions),
            }
        ).requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Weights without the position table, whose size is that of the context."""
        table = self.backbone.wpe.weight.numel()
        return sum(p.numel() for m in (self.backbone, self.outer) for p in m.parameters()) - table

    def cache_bytes(self, batch: int, length: int) -> int:
        """Keys and values of a context of ``length`` environment steps."""
        return 4 * 2 * self.config.n_layer * batch * self.config.hidden_size * TOKENS * length

    def weight_bytes(self, length: int) -> int:
        """The weights that steps of such an episode read."""
        return 4 * (self.parameters + self.config.hidden_size * TOKENS * length)

    def embed(self, observation: NDArray[np.float32], return_to_go: NDArray[np.float32], reward: Any) -> Any:
        """(B, n), (B,), (B,) float32 arrays -> (B, 3, hidden): the tokens of one environment step."""
        import torch

        tokens = [
            self.outer["reward"](torch.from_numpy(reward)[:, None]),
            self.outer["observation"](torch.from_numpy(observation)),
            self.outer["return_to_go"](torch.from_numpy(return_to_go)[:, None]),
        ]
        return self.outer["norm"](torch.stack(tokens, dim=1))

    def hidden(self, tokens: Any, cache: Any) -> Any:
        """(B, T, hidden) after the T tokens that follow what is in the cache (None: nothing is, nor will be)."""
        caching = {self._cache_argument: cache, "use_cache": True} if cache is not None else {"use_cache": False}
        return self.backbone(inputs_embeds=tokens, **caching).last_hidden_state

    def act(
        self,
        observation: NDArray[np.float32],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        cache: Any,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions (B, action_dim) and logits (B, action_dim, 274) as numpy arrays, as an LRAM gives them."""
        from lram_export.model.head_modules import head_modules

        last = self.hidden(self.embed(observation, return_to_go, reward), cache)[:, -1]
        logits = self.outer["head"](last).view(len(last), self.task.action_dim, self.model.head.num_actions)
        return head_modules(self.model.head).decode(logits, self.model.head, self.task).numpy(), logits.numpy()

    def check(self, kind: str) -> None:
        """Raise LramError unless steps with a cache give what one pass over the whole sequence gives."""
        import torch

        steps = 4
        tokens = torch.randn(2, steps * TOKENS, self.config.hidden_size)
        cache = self.new_cache(kind, 2, steps * TOKENS)
        parts = [self.hidden(part, cache) for part in tokens.split(TOKENS, dim=1)]
        error = float((torch.cat(parts, dim=1) - self.hidden(tokens, None)).abs().max())
        if not error <= TOLERANCES["fp32"].logit:
            raise LramError(f"{transformer_name(kind)}: off by {error:.2g} from a pass without cache; not timed")

    def new_cache(self, kind: str, batch: int, capacity: int) -> Any:
        """An empty cache; one that is written in place has room for ``capacity`` tokens."""
        import torch
        from transformers.cache_utils import Cache, DynamicCache

        if kind == "dynamic":
            return DynamicCache(config=self.config)
        heads = self.config.n_head
        shape = (batch, heads, capacity, self.config.hidden_size // heads)
        layer = in_place_layer()
        return Cache(layers=[layer(torch.zeros(shape), torch.zeros(shape)) for _ in range(self.config.n_layer)])

    def fill(self, cache: Any, batch: int, tokens: int) -> None:
        """Put random keys and values into an empty cache; the same block everywhere, drawing is slow."""
        import torch

        heads = self.config.n_head
        block = torch.randn(1, heads, tokens, self.config.hidden_size // heads).expand(batch, -1, -1, -1)
        for layer in range(self.config.n_layer):
            # clones: an empty layer may keep what it is given
            cache.update(block.clone(), block.clone(), layer)


def in_place_layer() -> Any:
    """The class of one layer of a cache that never copies what it holds."""
    from transformers.cache_utils import DynamicLayer

    class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values are views of two buffers, (batch, heads, capacity, width)."""

        def __init__(self, keys: Any, values: Any) -> None:
            super().__init__()
            self._buffers = (keys, values)
            self.keys, self.values = keys[:, :, :0], values[:, :, :0]
            self.is_initialized = True

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Append; all keys and values so far."""
            start = self.keys.shape[-2]
            stop = start + key_states.shape[-2]
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:stop] = new
            self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
            return self.keys, self.values

    return InPlaceLayer

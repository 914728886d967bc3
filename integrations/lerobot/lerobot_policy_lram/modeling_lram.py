"""The policy of type `lram`: a bundle, which keeps the recurrent state of every row itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Never

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_lram.configuration_lram import NO_TRAINING, LramConfig
from lram_export.bundle.bundle import Bundle
from lram_export.conversion.copying import copy_bundle
from lram_export.errors import UsageError
from lram_export.integrations.lerobot import (
    ACTION,
    POLICY,
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    PROGRAM,
    STATE,
    image_keys,
    inputs_of,
)
from lram_export.integrations.robot_policy import BUNDLE_FOLDER, RobotPolicy

WRITTEN_BY = "expected the folder that `lram-export convert BUNDLE --to lerobot -o FOLDER` writes"


class LramPolicy(PreTrainedPolicy):
    """Acts for as many rows as come: the rows of the first observation after :meth:`reset` are those of the episode."""

    config_class = LramConfig
    name = POLICY

    def __init__(self, config: LramConfig, folder: str | Path | None = None, **_: Any) -> None:
        """Load the bundle of a policy's folder.

        Args:
            config: of the folder.
            folder: default: the one that the configuration was read from.

        Raises:
            UsageError: no such folder, or a bundle that LeRobot cannot run, or of other features than the
                configuration's.
            BundleError: the bundle is damaged.
        """
        super().__init__(config)
        place = folder or config.pretrained_path
        if place is None:
            raise UsageError(f"lram: a policy is not made anew; {WRITTEN_BY}, as --policy.path")
        self._folder = Path(place)
        if not (self._folder / BUNDLE_FOLDER).is_dir():
            raise UsageError(f"{self._folder}: no {BUNDLE_FOLDER} in it; {WRITTEN_BY}")
        self._policy = self._loaded(1)
        self._first = True
        self._check_features()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: dict[str, str] | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> LramPolicy:
        """Load a policy from its folder, or from a repository of the Hugging Face Hub, which is fetched as a whole."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        found = PreTrainedConfig.from_pretrained(folder) if config is None else config
        if not isinstance(found, LramConfig):
            raise UsageError(f"{folder}: expected a policy of type '{POLICY}', got '{found.type}'")
        policy = cls(found, folder, **kwargs)
        policy.eval()
        return policy

    def reset(self) -> None:
        """Start an episode with the next observation, in all rows."""
        self._first = True

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """One step of every row: (rows, n) float32, on the device of what was observed.

        Args:
            batch: ``observation.state`` (rows, n), and ``observation.images.NAME`` (rows, 3, H, W) from 0 to 1, or of
                uint8.

        Raises:
            ValueError: naming the key, what was expected and what came; nothing has changed then.
            StepError: the results are not finite.
        """
        given = {key: self._given(batch, key) for key in inputs_of(self._policy.fields)}
        first = next(iter(given))
        self._fit_rows(len(given[first]), first)
        images = {
            name: self._policy.prepared(name, _pixels(given[key], key), layout="nchw")
            for key, name in image_keys(self._policy.fields).items()
        }
        state = given[STATE].detach().cpu().numpy() if STATE in given else None
        found = self._policy.step(state, images, first=self._first)
        self._first = False
        return torch.from_numpy(found).to(given[first].device)

    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """A chunk of one action, (rows, 1, n): the step is taken."""
        return self.select_action(batch, **kwargs).unsqueeze(1)

    def forward(self, batch: dict[str, Tensor]) -> Never:
        """Raise UsageError: there is no loss."""
        raise UsageError(NO_TRAINING)

    def get_optim_params(self) -> Never:
        """Raise UsageError: there are no parameters."""
        raise UsageError(NO_TRAINING)

    def push_model_to_hub(self, *_: Any, **__: Any) -> Never:
        """Raise UsageError: LeRobot uploads JSON, YAML, Markdown and safetensors alone, not all of a bundle."""
        raise UsageError(
            f"lram: push_model_to_hub would leave out most of the bundle; upload the whole folder: "
            f"hf upload OWNER/NAME {self._folder}"
        )

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the whole folder: configuration, bundle, processors."""
        self.config._save_pretrained(save_directory)
        copy_bundle(Bundle.open(self._folder / BUNDLE_FOLDER), save_directory)
        for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
            shutil.copyfile(self._folder / name, save_directory / name)

    def _loaded(self, rows: int) -> RobotPolicy:
        return RobotPolicy(self._folder / BUNDLE_FOLDER, PROGRAM, self.config.target, self.config.threads, rows)

    def _fit_rows(self, rows: int, key: str) -> None:
        """Load the bundle for as many rows as there are, at the start of an episode."""
        if rows == self._policy.rows:
            return
        if not self._first:
            raise ValueError(
                f"{key}: expected {self._policy.rows} rows, as where the episode began, got {rows}; call reset() first"
            )
        self._policy.close()
        self._policy = self._loaded(rows)

    def _given(self, batch: dict[str, Tensor], key: str) -> Tensor:
        """What came under a key; raises ValueError where that is no tensor with rows."""
        value = batch.get(key)
        if isinstance(value, Tensor) and value.ndim > 1 and len(value):
            return value
        what = "nothing" if value is None else str(tuple(getattr(value, "shape", ())) or type(value).__name__)
        raise ValueError(
            f"{key}: expected a tensor with rows, got {what}; this policy takes "
            f"{', '.join(inputs_of(self._policy.fields))} (rename_map gives an observation another name)"
        )

    def _check_features(self) -> None:
        """The shapes in the configuration are the bundle's; raises UsageError."""
        fields, config = self._policy.fields, self.config
        own: dict[str, tuple[int, ...]] = {STATE: (fields.state_size,)} if fields.state else {}
        for key, name in image_keys(fields).items():
            image = fields.images[name]
            own[key] = (image.channels, image.height, image.width)
        own[ACTION] = (fields.action_size,)
        said = {
            key: tuple(of.shape)
            for key, of in {**(config.input_features or {}), **(config.output_features or {})}.items()
        }
        for key in own:
            if said.get(key) != own[key]:
                raise UsageError(f"{key}: the bundle has shape {own[key]}, and this says {said.get(key)}; {WRITTEN_BY}")


def _pixels(images: Tensor, key: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(rows, C, H, W) of uint8: LeRobot divides by 255, and this is its inverse, exactly."""
    if images.dtype != torch.uint8:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{key}: expected numbers from 0 to 1, got {low:g} to {high:g}")
        images = (images * 255).round().to(torch.uint8)
    return np.ascontiguousarray(images.detach().cpu().numpy())

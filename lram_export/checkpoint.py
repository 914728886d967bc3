"""Reads and writes checkpoints: the original training code's `model.zip`, and our own format.

Our own format is a folder with ``config.json`` (the model's sizes) and ``model.safetensors`` (float32
weights under the original code's names, without prefixes, sLSTM kernels in the `vanilla` layout).

Nothing is ever unpickled freely: weights in a zip are read with ``torch.load(weights_only=True)``. Of the
zip's other entries only ``pytorch_variables.pth`` is looked at, in the same way.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lram_export.atomic import atomic_directory, check_space
from lram_export.config import IMPALA_CHANNELS, ModelConfig, expected_shapes
from lram_export.errors import CheckpointError, UsageError, describe
from lram_export.foreign import POLICY, refuse_foreign, refuse_nested, refuse_prefixed
from lram_export.hashing import file_sha256
from lram_export.hydra import read_hydra_config
from lram_export.json_fields import read_json

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "lram-export-checkpoint"
SCHEMA_VERSION = 1
KEY_PREFIXES = ("_orig_mod.", "module.")
SKIPPED_PREFIXES = ("predict_", "embed_action_disc.", "embed_timestep.")
"""Weights of the training code that acting does not need."""
PUBLISHED_NUM_ACTIONS, PUBLISHED_DISCRETE_ACTIONS = 274, 18
PUBLISHED_IMAGE_SIZE = 64
_BLOCKS = "encoder.layers.blocks."
_KERNEL, _BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: every weight the config needs, nothing else, finite, float32.

    ``skipped`` lists weights in the file that acting does not need; ``assumptions`` what was taken from the
    published models because neither a config nor the weights say it; ``sha256`` is that of the weight file.
    """

    path: Path
    config: ModelConfig
    weights: Weights
    sha256: str
    skipped: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights that acting needs (all encoders the checkpoint has included)."""
        return sum(w.numel() for w in self.weights.values())


@dataclass(frozen=True)
class Hints:
    """What a user says about a zip without a config; None leaves it to inference."""

    act_dim: int | None = None
    discrete_actions: int | None = None
    image_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is and how to read it: the arguments of :func:`load_checkpoint`."""

    path: Path
    config_file: Path | None = None
    hints: Hints | None = None

    def load(self) -> Checkpoint:
        """Load and check it."""
        return load_checkpoint(self.path, self.config_file, self.hints)


def load_checkpoint(path: Path, config_file: Path | None = None, hints: Hints | None = None) -> Checkpoint:
    """Load and check a checkpoint of either format.

    Args:
        path: a `model.zip` of the training code, or a folder in our own format.
        config_file: the training config of a zip; default: ``.hydra/config.yaml`` beside it, if it exists.
        hints: sizes that cannot be inferred from the weights of a zip without a config.

    Raises:
        UsageError: the path does not exist, or something must be given that cannot be inferred.
        CheckpointError: anything wrong with the content, naming file, key, expected and actual.
    """
    hints = hints or Hints()
    if not path.exists():
        raise UsageError(f"{path}: no such checkpoint; expected a model.zip or a folder with {CONFIG_FILE}")
    if path.is_dir():
        if config_file is not None:
            raise UsageError("--config: only for a model.zip; a checkpoint folder holds its own config.json")
        if hints != Hints():
            raise UsageError(
                f"--act-dim, --discrete-actions, --image-shape: only for a zip without a config; {path} has its own"
            )
        return load_folder(path)
    return _load_zip(path, config_file, hints)


def save_checkpoint(checkpoint: Checkpoint, directory: Path, *, force: bool = False) -> None:
    """Write our own format, whole or not at all.

    Raises:
        UsageError: ``directory`` exists and ``force`` is not set.
        LramError: the disk has no space for it.
    """
    with atomic_directory(directory, marker=CONFIG_FILE, force=force) as temporary:
        check_space(directory, sum(weight.nbytes for weight in checkpoint.weights.values()))
        write_checkpoint(checkpoint, temporary)


def write_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write our own format's two files into an existing folder."""
    from safetensors.numpy import save_file  # that of torch refuses tied weights, which share memory

    save_file({k: w.contiguous().numpy() for k, w in checkpoint.weights.items()}, directory / WEIGHTS_FILE)
    (directory / WEIGHTS_FILE).chmod(0o644)  # safetensors writes it for the owner alone
    document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "model": checkpoint.config.to_json()}
    (directory / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_folder(path: Path, supplied: Weights | None = None) -> Checkpoint:
    """Load and check a folder in our own format; weights that it does not hold are ``supplied``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    for file in (config_path, weights_path):
        if not file.is_file():
            raise CheckpointError(
                f"{path}: {file.name} is missing; expected {CONFIG_FILE} and {WEIGHTS_FILE}{_meant(path)}"
            )
    try:
        document = read_json(config_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f'{config_path}: format: expected "{FORMAT}"; is this an lram-export checkpoint?')
    if document.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{config_path}: schema_version: expected {SCHEMA_VERSION}, got "
            f"{document.get('schema_version')!r}; update lram-export to read it"
        )
    try:
        config = ModelConfig.from_json(document.get("model"))
    except ValueError as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    try:
        weights = {**load_file(weights_path), **(supplied or {})}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights_path}: not a readable safetensors file ({error})") from None
    return Checkpoint(path, config, _checked(weights, config, weights_path), file_sha256(weights_path))


def _meant(path: Path) -> str:
    """What a folder that is no checkpoint was probably meant to be."""
    if (path / "model.zip").is_file():
        return f"; did you mean {path / 'model.zip'}?"
    if (path / "manifest.json").is_file():
        return "; this is a bundle, which was exported from a checkpoint"
    return ""


def _load_zip(path: Path, config_file: Path | None, hints: Hints) -> Checkpoint:
    if config_file is not None and not config_file.is_file():
        raise UsageError(f"--config: {config_file}: no such file")
    refuse_foreign(path)
    raw = _read_tensors(path, POLICY)
    _refuse_normalization(path)
    weights, skipped = _strip(raw, path)
    refuse_prefixed(list(weights), f"{path}: {POLICY}")
    beside = path.parent / ".hydra" / "config.yaml"
    assumptions: tuple[str, ...] = ()
    if config_file is not None or beside.is_file():
        if hints != Hints():
            raise UsageError(
                "--act-dim, --discrete-actions, --image-shape: only for a zip without a config; "
                f"{config_file or beside} already says it"
            )
        head = weights.get("action_net.0.weight")
        config = read_hydra_config(config_file or beside, 0 if head is None else head.shape[0])
    else:
        config, assumptions = infer_config(weights, path, hints, raw_num_actions(raw))
    weights = _vanilla_layout(weights)
    checked = _checked(weights, config, path)
    return Checkpoint(path, config, checked, file_sha256(path), tuple(skipped), assumptions)


def _refuse_normalization(path: Path) -> None:
    """The original agent normalizes observations when these are set, outside of the weights we export."""
    with zipfile.ZipFile(path) as archive:
        if "pytorch_variables.pth" not in archive.namelist():
            return
    variables = _load_entry(path, "pytorch_variables.pth")
    for name in ("state_mean", "state_std"):
        if isinstance(variables, dict) and variables.get(name) is not None:
            raise CheckpointError(
                f"{path}: pytorch_variables.pth: {name} is set, so the training run normalized its observations; "
                f"this is not supported. Fold mean and deviation into embed_state, and set {name} to None"
            )


def _read_tensors(path: Path, entry: str) -> Weights:
    import torch

    raw = _load_entry(path, entry)
    refuse_nested(raw, f"{path}: {entry}")
    if not isinstance(raw, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in raw.items()):
        raise CheckpointError(f"{path}: {entry}: expected a dictionary of named tensors")
    return raw


def _load_entry(path: Path, entry: str) -> object:
    """What an entry of the zip holds, read without running anything."""
    import pickle

    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if entry not in archive.namelist():
                raise CheckpointError(f"{path}: the zip holds no {entry}; is this an LRAM model.zip?")
            content = io.BytesIO(archive.read(entry))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not a complete zip file ({error})") from None
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: {entry} holds more than weights (a pickle that wants to run code?); refused, nothing ran"
        ) from None
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{path}: {entry} is damaged ({describe(error)})") from None


def _strip(raw: Weights, path: Path) -> tuple[Weights, list[str]]:
    """Remove key prefixes of compiled and distributed models, and weights that acting does not need."""
    weights: Weights = {}
    skipped: list[str] = []
    for key, tensor in raw.items():
        name = _without_prefixes(key)
        if name.startswith(SKIPPED_PREFIXES):
            skipped.append(name)
        elif name in weights:
            raise CheckpointError(f"{path}: {name}: appears twice, with different prefixes")
        else:
            weights[name] = tensor
    return weights, sorted(skipped)


def _without_prefixes(key: str) -> str:
    while key.startswith(KEY_PREFIXES):
        key = key.removeprefix("_orig_mod.").removeprefix("module.")
    return key


def raw_num_actions(raw: Weights) -> int | None:
    """Action tokens per dimension, read off the (otherwise skipped) action embedding: rows less one padding."""
    for key, tensor in raw.items():
        if _without_prefixes(key) == "embed_action_disc.weight":
            return int(tensor.shape[0]) - 1
    return None


def _vanilla_layout(weights: Weights) -> Weights:
    """Convert sLSTM kernels of the `cuda` backend, which the kernel's shape gives away.

    `cuda`: kernel (heads, head_dim, 4 * head_dim), bias ordered (heads, 4, head_dim);
    `vanilla`: kernel (heads, 4 * head_dim, head_dim), bias (4, heads, head_dim).
    """
    converted = dict(weights)
    for key, kernel in weights.items():
        if not key.endswith(_KERNEL) or kernel.dim() != 3 or kernel.shape[2] != 4 * kernel.shape[1]:
            continue
        heads, width, _ = kernel.shape
        bias_key = key.removesuffix(_KERNEL) + _BIAS
        kernel = kernel.reshape(heads, width, 4, width).permute(0, 2, 3, 1)
        converted[key] = kernel.reshape(heads, 4 * width, width)
        if bias_key in weights and weights[bias_key].numel() == 4 * heads * width:
            converted[bias_key] = weights[bias_key].reshape(heads, 4, width).transpose(0, 1).reshape(-1)
    return converted


def _checked(weights: Weights, config: ModelConfig, file: Path) -> Weights:
    """Compare names and shapes with what the config needs; return float32 weights in the config's order."""
    import torch

    expected = expected_shapes(config)
    missing = [k for k in expected if k not in weights]
    unknown = sorted(set(weights) - set(expected))
    if missing:
        raise CheckpointError(
            f"{file}: {missing[0]}: missing (expected shape {expected[missing[0]]})" + _and_more(missing)
        )
    if unknown:
        raise CheckpointError(
            f"{file}: {unknown[0]}: unknown weight of shape {tuple(weights[unknown[0]].shape)}; "
            f"the config has no place for it" + _and_more(unknown)
        )
    wrong = [k for k, shape in expected.items() if tuple(weights[k].shape) != shape]
    if wrong:
        raise CheckpointError(
            f"{file}: {wrong[0]}: the config expects shape {expected[wrong[0]]}, "
            f"the weights have {tuple(weights[wrong[0]].shape)}" + _and_more(wrong)
        )
    checked: Weights = {}
    for key in expected:
        tensor = weights[key]
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {key}: expected floating-point weights, got {tensor.dtype}")
        tensor = tensor.detach().to(torch.float32)
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            count = int((~finite).sum())
            raise CheckpointError(f"{file}: {key}: {count} of {tensor.numel()} weights are NaN or infinite")
        checked[key] = tensor
    return checked


def _and_more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def infer_config(
    weights: Weights, path: Path, hints: Hints, num_actions: int | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Infer every size from the weights alone.

    Args:
        weights: named weights without prefixes, sLSTM kernels in either layout.
        path: the file, for messages.
        hints: sizes given by the user.
        num_actions: action tokens per dimension where the action embedding shows them.

    Returns:
        The config, and what was taken from the published models because weights cannot show it.

    Raises:
        CheckpointError: a weight that every LRAM has is missing.
        UsageError: something that cannot be inferred, naming the option that says it.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise CheckpointError(f"{path}: {name}: missing; is this an LRAM checkpoint?")
        return tuple(weights[name].shape)

    hidden = shape("embed_ln.weight")[0]
    blocks = sorted({int(k[len(_BLOCKS) :].split(".")[0]) for k in weights if k.startswith(_BLOCKS)})
    if not blocks or blocks != list(range(len(blocks))):
        raise CheckpointError(f"{path}: {_BLOCKS}: expected blocks 0, 1, 2, ..., got {blocks}")
    slstm_at = tuple(i for i in blocks if f"{_BLOCKS}{i}.xlstm.{_KERNEL}" in weights)
    mlstm_at = [i for i in blocks if i not in slstm_at]
    assumptions = ["tokens (reward, state, return-to-go), no time embeddings, as in the published models"]
    sizes: dict[str, Any] = {"num_heads": 4, "inner_size": 2 * hidden}
    if mlstm_at:
        layer = f"{_BLOCKS}{mlstm_at[0]}.xlstm"
        sizes = {
            "num_heads": shape(f"{layer}.mlstm_cell.igate.weight")[0],
            "inner_size": shape(f"{layer}.learnable_skip")[0],
            "qkv_block_size": shape(f"{layer}.q_proj.weight")[-1],
        }
    if slstm_at:
        block = f"{_BLOCKS}{slstm_at[0]}"
        sizes["slstm_num_heads"] = shape(f"{block}.xlstm.{_KERNEL}")[0]
        sizes["ffn_size"] = shape(f"{block}.ffn.proj_down.weight")[-1]
        assumptions.append("feed-forward activation gelu, as in the published models")
    sizes["conv_kernel_size"] = shape(f"{_BLOCKS}0.xlstm.conv1d.conv.weight")[-1]
    sizes |= _infer_actions(shape("action_net.0.weight")[0], hints, num_actions, assumptions)
    state_dim = shape("embed_state.weight")[-1] if "embed_state.weight" in weights else None
    image_shape = None
    if "embed_image.linear.0.weight" in weights:
        image_shape = _infer_image_shape(
            shape("embed_image.cnn.0.conv.weight")[1],
            shape("embed_image.linear.0.weight")[1],
            hints,
            assumptions,
        )
    try:
        config = ModelConfig(
            hidden_size=hidden,
            num_blocks=len(blocks),
            slstm_at=slstm_at,
            state_dim=state_dim,
            image_shape=image_shape,
            **sizes,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return config, tuple(assumptions)


def _infer_actions(rows: int, hints: Hints, num_actions: int | None, assumptions: list[str]) -> dict[str, int]:
    if hints.act_dim is not None:
        num_actions = rows // hints.act_dim
    if num_actions is None:
        raise UsageError(
            f"--act-dim: the weights do not show how the {rows} rows of the head divide into action "
            f"dimensions; add --act-dim (8 in the published models), or --config"
        )
    if num_actions < 1 or rows % num_actions:
        raise UsageError(f"--act-dim: {rows} rows of the head do not divide by it")
    discrete = hints.discrete_actions
    if discrete is None:
        if num_actions != PUBLISHED_NUM_ACTIONS:
            raise UsageError(
                f"--discrete-actions: the weights do not show how many of the {num_actions} action tokens are "
                f"discrete actions; add --discrete-actions (18 in the published models), or --config"
            )
        discrete = PUBLISHED_DISCRETE_ACTIONS
        assumptions.append(f"{discrete} discrete actions and {num_actions - discrete} bins, as in the published models")
    if not 0 <= discrete < num_actions:
        raise UsageError(f"--discrete-actions: expected 0 to {num_actions - 1}, got {discrete}")
    return {
        "act_dim": rows // num_actions,
        "action_channels": num_actions - discrete,
        "discrete_actions": discrete,
    }


def _infer_image_shape(channels: int, features: int, hints: Hints, assumptions: list[str]) -> tuple[int, int, int]:
    if hints.image_shape is not None:
        return hints.image_shape
    published = PUBLISHED_IMAGE_SIZE
    if features == IMPALA_CHANNELS[-1] * (published // 8) ** 2:
        assumptions.append(f"images of {published}x{published}, as in the published models")
        return (channels, published, published)
    raise UsageError(
        f"--image-shape: the weights do not show the size of the images ({features} features could be "
        f"several); add --image-shape CHANNELS,HEIGHT,WIDTH, or --config"
    )

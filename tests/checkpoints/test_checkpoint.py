"""Reading checkpoints: formats, prefixes, layouts, inference, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from xlstm import xLSTMBlockStackConfig
from xlstm.blocks.mlstm.block import mLSTMBlockConfig
from xlstm.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm.blocks.slstm.block import sLSTMBlockConfig
from xlstm.blocks.slstm.layer import sLSTMLayerConfig
from xlstm.components.feedforward import FeedForwardConfig

from lram_export.backbones.registry import BACKBONES
from lram_export.backbones.xlstm import original as xlstm
from lram_export.checkpoints import training_config as hydra
from lram_export.checkpoints.checkpoint import Checkpoint, Hints
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.errors import CheckpointError, UsageError
from lram_export.lowering import lower
from lram_export.spec.interface import Normalization
from lram_export.spec.tasks import resolve_task
from tests.conftest import GOLDEN, GOLDEN_NAMES, Golden, load_golden
from tests.models import lram

Weights = dict[str, torch.Tensor]
SIZES = {
    **{name: name for name in ("num_heads", "slstm_at", "dt_rank", "bias", "conv_bias", "rms_norm")},
    "d_inner": "inner_size",
    "d_state": "state_size",
    "d_conv": "conv_kernel_size",
}
"""What recipes of the traces say of a backbone -> what its config calls it."""


def read_weights(checkpoint: Path) -> Weights:
    with zipfile.ZipFile(checkpoint) as archive:
        return torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)


def write_statistics(model: Path, mean: torch.Tensor | None, deviation: torch.Tensor | None) -> None:
    """Put them where the original agent leaves them."""
    content = io.BytesIO()
    torch.save({"state_mean": mean, "state_std": deviation}, content)
    with zipfile.ZipFile(model) as archive:
        policy = archive.read("policy.pth")
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("policy.pth", policy)
        archive.writestr("pytorch_variables.pth", content.getvalue())


def write_zip(path: Path, policy: object, entry: str = "policy.pth") -> Path:
    content = io.BytesIO()
    torch.save(policy, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, content.getvalue())
        archive.writestr("data", json.dumps({"policy": "not read"}))
    return path


@pytest.fixture
def state_m(tmp_path: Path) -> Path:
    """A copy of a golden checkpoint with its config, to be changed."""
    shutil.copytree(GOLDEN / "state_m", tmp_path / "state_m")
    return tmp_path / "state_m" / "model.zip"


@pytest.fixture
def state_ms(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "state_ms", tmp_path / "state_ms")
    return tmp_path / "state_ms" / "model.zip"


def change_weights(checkpoint: Path, change: Callable[[Weights], Any]) -> Path:
    weights = read_weights(checkpoint)
    change(weights)
    return write_zip(checkpoint, weights)


def change_config(checkpoint: Path, section: str, **values: object) -> Path:
    path = checkpoint.parent / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    node = config
    for name in section.split("."):
        node = node.setdefault(name, {})
    for name, value in values.items():
        if value is ...:
            del node[name]
        else:
            node[name] = value
    path.write_text(yaml.safe_dump(config))
    return checkpoint


class TestReading:
    def test_sizes_are_those_of_the_training_run(self, golden: Golden) -> None:
        config = load_checkpoint(golden.checkpoint).config
        meta = golden.meta
        assert (config.backbone.hidden_size, config.backbone.num_blocks) == (meta["hidden_size"], meta["num_blocks"])
        sizes = config.backbone.to_json()
        own = {name: sizes[size] for name, size in SIZES.items() if name in meta}
        assert own and own == {name: meta[name] for name in own}
        assert (config.head.act_dim, config.head.num_actions) == (8, 274)

    def test_every_weight_is_used_or_listed_as_skipped(self, golden: Golden) -> None:
        checkpoint = load_checkpoint(golden.checkpoint)
        total = sum(w.numel() for w in read_weights(golden.checkpoint).values())
        assert total == golden.meta["parameters"]
        prefix = golden.meta["key_prefix"]
        skipped = sum(read_weights(golden.checkpoint)[prefix + name].numel() for name in checkpoint.skipped)
        if "n_positions" in golden.meta:  # of the positions the window's are kept
            unused = golden.meta["n_positions"] - 3 * golden.meta["context_length"]
            skipped += unused * golden.meta["hidden_size"]
        assert checkpoint.parameters + skipped == total
        assert "embed_action_disc.weight" in checkpoint.skipped

    @pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_compiled_and_distributed_models_go(self, state_m: Path, prefix: str) -> None:
        before = load_checkpoint(state_m)
        write_zip(state_m, {prefix + k: w for k, w in read_weights(state_m).items()})
        assert_same(load_checkpoint(state_m), before)

    def test_both_slstm_layouts_give_the_same_weights(self, state_ms: Path) -> None:
        """Writes the golden's `cuda` layout as `vanilla`, by the index and not by our code."""
        before = load_checkpoint(state_ms)

        def to_vanilla(weights: Weights) -> None:
            cell = "_orig_mod.module.encoder.layers.blocks.1.xlstm.slstm_cell."
            kernel, bias = weights[cell + "_recurrent_kernel_"], weights[cell + "_bias_"]
            heads, width, _ = kernel.shape
            vanilla, vanilla_bias = torch.empty(heads, 4 * width, width), torch.empty(4 * heads * width)
            for head in range(heads):
                for gate in range(4):
                    for out in range(width):
                        vanilla[head, gate * width + out] = kernel[head, :, gate * width + out]
                        position = gate * heads * width + head * width + out
                        vanilla_bias[position] = bias[head * 4 * width + gate * width + out]
            weights[cell + "_recurrent_kernel_"] = vanilla
            weights[cell + "_bias_"] = vanilla_bias

        assert_same(load_checkpoint(change_weights(state_ms, to_vanilla)), before)

    def test_half_precision_weights_become_float32(self, state_m: Path) -> None:
        before = load_checkpoint(state_m)
        loaded = load_checkpoint(change_weights(state_m, lambda w: w.update({k: v.bfloat16() for k, v in w.items()})))
        key = "embed_state.weight"
        assert loaded.weights[key].dtype == torch.float32
        assert torch.equal(loaded.weights[key], before.weights[key].bfloat16().float())

    def test_unresolvable_paths_in_the_config_do_not_matter(self, state_m: Path) -> None:
        before = load_checkpoint(state_m).config
        change_config(state_m, "agent_params.data_paths.mt40_v2", base="${no_such.interpolation}/metaworld")
        assert load_checkpoint(state_m).config == before

    def test_own_format_round_trip(self, golden: Golden, tmp_path: Path) -> None:
        original = load_checkpoint(golden.checkpoint)
        save_checkpoint(original, tmp_path / "own")
        assert sorted(p.name for p in (tmp_path / "own").iterdir()) == ["config.json", "model.safetensors"]
        assert_same(load_checkpoint(tmp_path / "own"), original)

    def test_an_explicit_config_wins(self, state_m: Path, tmp_path: Path) -> None:
        config = tmp_path / "elsewhere.yaml"
        shutil.move(state_m.parent / ".hydra" / "config.yaml", config)
        assert load_checkpoint(state_m, config).assumptions == ()


class TestInference:
    @pytest.mark.parametrize("name", GOLDEN_NAMES)
    def test_without_a_config_the_weights_tell(self, name: str, tmp_path: Path) -> None:
        golden = load_golden(name)
        alone = shutil.copy(golden.checkpoint, tmp_path / "model.zip")
        sizes = (golden.meta["num_heads"], golden.meta["context_length"]) if "n_positions" in golden.meta else ()
        inferred = load_checkpoint(Path(alone), hints=Hints(None, None, None, *sizes))
        known = load_checkpoint(golden.checkpoint)
        assert inferred.config == known.config
        assert any("18 discrete actions" in a for a in inferred.assumptions)

    def test_unusual_sizes_are_inferred_too(self, tmp_path: Path) -> None:
        config = preset_config("16m", slstm_at=(0, 3))
        checkpoint = random_checkpoint(config, tmp_path)
        policy = write_zip(tmp_path / "model.zip", checkpoint.weights)
        assert load_checkpoint(policy, hints=Hints(act_dim=8)).config == config

    def test_what_the_weights_do_not_show_is_asked_for(self, state_m: Path) -> None:
        shutil.rmtree(state_m.parent / ".hydra")
        change_weights(state_m, lambda w: w.pop("embed_action_disc.weight"))
        with pytest.raises(UsageError, match="--act-dim"):
            load_checkpoint(state_m)
        with pytest.raises(UsageError, match="--discrete-actions"):
            load_checkpoint(state_m, hints=Hints(act_dim=4))
        config = load_checkpoint(state_m, hints=Hints(act_dim=4, discrete_actions=36)).config
        assert (config.head.act_dim, config.head.discrete_actions, config.head.action_channels) == (4, 36, 512)

    def test_a_folder_takes_no_sizes_since_it_has_them(self, tmp_path: Path) -> None:
        save_checkpoint(load_checkpoint(load_golden("state_m").checkpoint), tmp_path / "policy")
        with pytest.raises(UsageError, match=r"--act-dim, .*--image-shape, .*: only for weights"):
            load_checkpoint(tmp_path / "policy", hints=Hints(act_dim=8))

    def test_an_unusual_image_size_is_asked_for(self, tmp_path: Path) -> None:
        config = lram(512, 1, 4, 1024, image_shape=(3, 84, 84))
        policy = write_zip(tmp_path / "model.zip", random_checkpoint(config, tmp_path).weights)
        with pytest.raises(UsageError, match="--image-shape"):
            load_checkpoint(policy, hints=Hints(act_dim=8))
        assert load_checkpoint(policy, hints=Hints(act_dim=8, image_shape=(3, 84, 84))).config == config


class Malicious:
    """A pickle that would create a file when it is loaded freely."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


class TestDamage:
    def test_a_pickle_that_wants_to_run_code_does_not_run(self, tmp_path: Path) -> None:
        proof = tmp_path / "ran"
        policy = write_zip(tmp_path / "model.zip", {"embed_ln.weight": Malicious(str(proof))})
        with pytest.raises(CheckpointError, match=r"model\.zip: policy\.pth holds more than weights.*refused"):
            load_checkpoint(policy)
        assert not proof.exists()
        with zipfile.ZipFile(policy) as archive:  # guards the guard: the pickle does run when loaded freely
            torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=False)
        assert proof.exists()

    def test_a_malicious_data_entry_is_not_even_read(self, state_m: Path, tmp_path: Path) -> None:
        import pickle

        before = load_checkpoint(state_m)
        with zipfile.ZipFile(state_m, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("data", pickle.dumps(Malicious(str(tmp_path / "ran"))))
        assert_same(load_checkpoint(state_m), before)
        assert not (tmp_path / "ran").exists()

    def test_nested_and_prefixed_weights_in_a_zip_are_found(self, state_m: Path) -> None:
        before = load_checkpoint(state_m)
        weights = read_weights(state_m)
        write_zip(state_m, {"policy": weights})
        assert_same(load_checkpoint(state_m), before)
        write_zip(state_m, {f"agent.model.{k}": w for k, w in weights.items()})
        assert_same(load_checkpoint(state_m), before)

    def test_a_folder_that_is_none_is_told_what_was_meant(self, state_m: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=rf"config\.json is missing; .*; did you mean {state_m}\?"):
            load_checkpoint(state_m.parent)
        (tmp_path / "manifest.json").touch()
        with pytest.raises(CheckpointError, match=r"config\.json is missing; .*; this is a bundle"):
            load_checkpoint(tmp_path)

    @pytest.mark.parametrize("keep", [100, 0.5, 0.99])
    def test_a_truncated_zip(self, state_m: Path, keep: float) -> None:
        content = state_m.read_bytes()
        state_m.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
        with pytest.raises(CheckpointError, match=r"model\.zip: not a complete zip file"):
            load_checkpoint(state_m)

    def test_damaged_weights_inside_a_good_zip(self, state_m: Path) -> None:
        with zipfile.ZipFile(state_m) as archive:
            content = archive.read("policy.pth")
        with zipfile.ZipFile(state_m, "w") as archive:
            archive.writestr("policy.pth", content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=r"policy\.pth is damaged"):
            load_checkpoint(state_m)

    def test_not_a_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "model.zip"
        path.write_text("hello")
        with pytest.raises(CheckpointError, match=r"model\.zip: not a complete zip file"):
            load_checkpoint(path)

    def test_a_zip_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds no policy\.pth"):
            load_checkpoint(write_zip(tmp_path / "model.zip", {}, entry="other.pth"))

    @pytest.mark.parametrize(
        ("mean", "deviation", "message"),
        [
            (torch.ones(39), None, "state_std: expected a vector of floats, one for every number of a state, got None"),
            (None, torch.ones(39), "state_mean: expected a vector of floats"),
            (torch.ones(39), torch.ones(38), "state_std: expected 39 numbers, as in state_mean, got 38"),
            (torch.ones(39), torch.zeros(39), "state_std: expected positive numbers, got 0"),
            (torch.full((39,), torch.nan), torch.ones(39), "state_mean: expected finite numbers"),
            (torch.ones(3, 64, 64), torch.ones(3, 64, 64), r"got torch.float32 of shape \(3, 64, 64\)"),
        ],
    )
    def test_statistics_of_observations_that_are_none(
        self, state_m: Path, mean: torch.Tensor | None, deviation: torch.Tensor | None, message: str
    ) -> None:
        write_statistics(state_m, mean, deviation)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(state_m)

    @pytest.mark.parametrize(
        ("count", "message"),
        [
            (20, "state_mean: expected statistics of the task's observation, 39 numbers, got 20"),
            (204, "state_mean: expected 0 where the task's 39 numbers are padded, got 1"),
        ],
    )
    def test_statistics_of_other_observations(self, state_m: Path, count: int, message: str) -> None:
        write_statistics(state_m, torch.ones(count), torch.ones(count))
        with pytest.raises(CheckpointError, match=message):
            lower(load_checkpoint(state_m), resolve_task("metaworld/reach-v2"), name="policy")

    def test_statistics_of_observations_are_kept_by_our_own_format(self, state_m: Path, tmp_path: Path) -> None:
        write_statistics(state_m, torch.arange(39.0), torch.arange(1.0, 40.0))
        save_checkpoint(load_checkpoint(state_m), tmp_path / "own")
        found = load_checkpoint(tmp_path / "own").normalization
        assert found == Normalization(tuple(map(float, range(39))), tuple(map(float, range(1, 40))))

    def test_not_tensors(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="it holds no named weights"):
            load_checkpoint(write_zip(tmp_path / "model.zip", {"a": 1}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w.pop("embed_ln.bias"), r"embed_ln\.bias: missing \(expected shape \(64,\)\)"),
            (lambda w: w.update(surprise=torch.ones(3)), r"surprise: unknown weight of shape \(3,\)"),
            (
                lambda w: w.update({"embed_state.weight": torch.ones(64, 39)}),
                r"embed_state\.weight: the config expects shape \(64, 204\), the weights have \(64, 39\)",
            ),
            (lambda w: w["embed_state.weight"].fill_(torch.nan), r"embed_state\.weight: 13056 of 13056 .* NaN"),
            (
                lambda w: w["encoder.layers.blocks.2.xlstm.proj_up.weight"][0].fill_(torch.inf),
                r"proj_up\.weight: 64 of 16384 weights are NaN, infinite or beyond float32",
            ),
            (
                lambda w: w.update({"embed_ln.bias": torch.ones(64, dtype=torch.int32)}),
                "embed_ln.bias: expected floating-point weights, got torch.int32",
            ),
            (lambda w: w.update({"module.embed_ln.bias": torch.ones(64)}), "embed_ln.bias: appears twice"),
        ],
    )
    def test_weights_that_do_not_match(self, state_m: Path, change: Callable[[Weights], Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(change_weights(state_m, change))

    @pytest.mark.parametrize(
        ("section", "values", "message"),
        [
            ("agent_params.model_kwargs", {"use_time_embds": True}, r"use_time_embds = True is not supported"),
            ("agent_params.model_kwargs", {"use_time_embds": ...}, r"use_time_embds = True \(the default"),
            ("agent_params.model_kwargs", {"action_condition": True}, "action_condition = True"),
            ("agent_params.model_kwargs", {"reward_condition": False}, "reward_condition = False"),
            ("agent_params.model_kwargs", {"patch_size": 14}, "patch_size = 14"),
            ("agent_params.model_kwargs", {"tokenize_s": True}, "tokenize_s = True"),
            ("agent_params.model_kwargs", {"separate_ln": True}, "separate_ln = True"),
            ("agent_params.model_kwargs", {"num_task_heads": 3}, r"num_task_heads = 3 .*supported: 1"),
            ("agent_params.model_kwargs", {"symlog_transform": True}, "symlog_transform = True"),
            ("agent_params.model_kwargs", {"a_tok_kwargs": {"kind": "mu_law"}}, "a_tok_kwargs = "),
            ("agent_params.model_kwargs", {"brand_new": 1}, "brand_new = 1 is not supported"),
            ("agent_params", {"kind": "DDT"}, "kind = 'DDT'.*supported: 'MDDXLSTM', 'MDDMamba', 'MDDT'"),
            ("agent_params", {"stochastic_policy": True}, "stochastic_policy = True"),
            ("agent_params", {"s_proj_dim": 64}, "s_proj_dim = 64"),
            ("agent_params", {"a_sample_kwargs": {"temperature": 0.7}}, "a_sample_kwargs = "),
            ("env_params", {"norm_obs": True}, r"env_params\.norm_obs = True is not supported"),
            ("agent_params", {"target_reward": 1}, "target_reward = 1"),
            ("env_params", {"norm_reward": True}, r"env_params\.norm_reward = True is not supported"),
            ("env_params", {"frame_stack": 4}, r"env_params\.frame_stack = 4 is not supported"),
            ("agent_params", {"target_return_type": "infer"}, "target_return_type = 'infer' is not supported"),
            (
                "agent_params",
                {"target_return_mult": 2},
                r"target_return_mult = 2 .*supported: 1; set it to 1 in a copy",
            ),
            ("agent_params", {"reset_inf_cache_freq": 50}, "reset_inf_cache_freq = 50 is not supported"),
            ("agent_params", {"persist_context": True}, "persist_context = True is not supported"),
            ("agent_params", {"augment_params": {"p": 1}}, "augment_params = {'p': 1} is not supported"),
            ("agent_params", {"brand_new": 1}, r"agent_params\.brand_new = 1 is not supported: .* is not known"),
            ("agent_params", {"brand_new": "${no.where}"}, "brand_new = a reference that cannot be resolved is not"),
            ("agent_params.huggingface", {"brand_new_dropout": 0.5}, "brand_new_dropout = 0.5 is not supported"),
            ("agent_params.huggingface.xlstm_config", {"brand_new": 1}, r"xlstm_config\.brand_new = 1 is not"),
            *(
                (f"agent_params.huggingface.xlstm_config.{section}", {"brand_new": 1}, rf"{section}\.brand_new = 1")
                for section in ("mlstm_block", "mlstm_block.mlstm", "slstm_block.slstm", "slstm_block.feedforward")
            ),
            ("agent_params.huggingface", {"ln_bias": True}, "ln_bias = True"),
            ("agent_params.huggingface", {"rms_norm": True}, "rms_norm = True"),
            ("agent_params.huggingface.xlstm_config", {"bias": True}, "bias = True"),
            ("agent_params.huggingface.xlstm_config", {"num_blocks": 5}, r"blocks\.4\.xlstm_norm\.weight: missing"),
            ("agent_params.huggingface.xlstm_config", {"num_blocks": "four"}, "num_blocks: expected an integer"),
            ("agent_params.huggingface.xlstm_config", {"slstm_at": [9]}, "slstm_at: expected distinct blocks"),
            ("agent_params.huggingface.xlstm_config", {"embedding_dim": "${nowhere}"}, "cannot be resolved"),
        ],
    )
    def test_options_that_are_not_supported(
        self, state_m: Path, section: str, values: dict[str, object], message: str
    ) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(change_config(state_m, section, **values))

    def test_options_that_do_not_matter_may_have_any_value(self, state_ms: Path) -> None:
        before = load_checkpoint(state_ms).config
        sections = {
            "agent_params": hydra.INERT_AGENT,
            "agent_params.model_kwargs": hydra.INERT_OPTIONS,
            "agent_params.huggingface": xlstm.INERT_HUGGINGFACE,
            "agent_params.huggingface.xlstm_config": xlstm.INERT_STACK,
            "agent_params.huggingface.xlstm_config.mlstm_block.mlstm": xlstm.INERT_MLSTM,
            "agent_params.huggingface.xlstm_config.slstm_block.slstm": xlstm.INERT_SLSTM,
            "agent_params.huggingface.xlstm_config.slstm_block.feedforward": xlstm.INERT_FEEDFORWARD,
        }
        for section, reasons in sections.items():
            # what other sections refer to keeps its value
            names = [n for names in reasons.values() for n in names if n not in ("hidden_size", "n_layer", "n_head")]
            change_config(state_ms, section, **dict.fromkeys(names, "any"))
        assert load_checkpoint(state_ms).config == before

    def test_every_field_of_the_xlstm_package_is_on_a_list(self) -> None:
        lists = (
            (xLSTMBlockStackConfig, xlstm.INERT_STACK, xlstm.SUPPORTED_STACK, xlstm.SIZES_STACK),
            (mLSTMBlockConfig, xlstm.INERT_BLOCK, ("mlstm",)),
            (sLSTMBlockConfig, xlstm.INERT_BLOCK, ("slstm", "feedforward")),
            (mLSTMLayerConfig, xlstm.INERT_MLSTM, xlstm.SIZES_MLSTM),
            (sLSTMLayerConfig, xlstm.INERT_SLSTM, xlstm.SUPPORTED_SLSTM, xlstm.SIZES_SLSTM),
            (FeedForwardConfig, xlstm.INERT_FEEDFORWARD, xlstm.SUPPORTED_FEEDFORWARD, xlstm.SIZES_FEEDFORWARD),
        )
        for kind, inert, *others in lists:
            known = {name for names in (*inert.values(), *others) for name in names}
            assert {f.name for f in dataclasses.fields(kind)} == known, kind

    def test_a_config_that_is_no_yaml(self, state_m: Path) -> None:
        (state_m.parent / ".hydra" / "config.yaml").write_text("a: [1\nb: }")
        with pytest.raises(CheckpointError, match=r"config\.yaml: not a readable YAML config"):
            load_checkpoint(state_m)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(format="other"), "format: expected"),
            (lambda d: d.update(schema_version=99), r"schema_version: expected 1 to 3, got 99; update"),
            (
                lambda d: d["model"]["backbone"].update(hidden_size="big"),
                "model.backbone.hidden_size: expected an integer",
            ),
            (lambda d: d["model"]["backbone"].update(num_heads=3), "num_heads: 3 does not divide"),
            (lambda d: d["model"]["backbone"].pop("num_blocks"), "model.backbone.num_blocks: missing"),
            (lambda d: d["model"].update(extra=1), "model.extra: unknown field"),
            (lambda d: d["model"]["backbone"].update(num_blocks=3), r"blocks\.3\.\S+: unknown weight"),
        ],
    )
    def test_own_format_with_a_wrong_config(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
    ) -> None:
        save_checkpoint(load_checkpoint(GOLDEN / "state_m" / "model.zip"), tmp_path / "own")
        path = tmp_path / "own" / "config.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "own")

    def test_own_format_with_damaged_weights(self, tmp_path: Path) -> None:
        save_checkpoint(load_checkpoint(GOLDEN / "state_m" / "model.zip"), tmp_path / "own")
        path = tmp_path / "own" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            load_checkpoint(tmp_path / "own")


class TestPresets:
    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("preset", ["16m", "48m", "110m", "206m", "408m"])
    def test_sizes_are_near_their_names(self, preset: str, backbone: str) -> None:
        """The names count all weights of the training code; acting needs a few less."""
        weights = preset_config(preset, backbone, image=True).parameters
        assert 0.8 <= weights / (1e6 * int(preset[:-1])) <= 1.1

    @pytest.mark.parametrize(("backbone", "choices"), [("xlstm", {"slstm_at": (1,)}), ("mamba", {})])
    def test_no_weight_is_trivial(self, backbone: str, choices: dict[str, Any], tmp_path: Path) -> None:
        checkpoint = random_checkpoint(preset_config("16m", backbone, image=True, **choices), tmp_path)
        for name, weight in checkpoint.weights.items():
            assert torch.isfinite(weight).all(), name
            assert 1e-4 < weight.std() < 3, name


def assert_same(actual: Checkpoint, expected: Checkpoint) -> None:
    assert actual.config == expected.config
    assert list(actual.weights) == list(expected.weights)
    for name, weight in expected.weights.items():
        assert torch.equal(actual.weights[name], weight), name

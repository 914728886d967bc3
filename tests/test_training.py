"""The example's training: it learns, survives an interruption, and leaves what the ordinary loader reads."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from collect import NOISES, TASKS, Episodes, collect, collect_task, play
from policies import POLICIES, Trained
from train import (
    NOT_LEARNED,
    TOKENS,
    Recipe,
    Run,
    Sampler,
    Windows,
    fold_normalization,
    label_tokens,
    load_episodes,
    loss_of,
    padded_part,
)

from lram_export.backbones.decision_transformer.config import DecisionTransformerConfig
from lram_export.backbones.mamba.config import MambaConfig
from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.model.head_modules import MODULES
from lram_export.model.reference import ReferenceModel
from lram_export.rollouts.environments import open_environment
from lram_export.spec.tasks import TaskSpec, resolve_task
from tests.conftest import succeed
from tests.models import lram_inputs, reference_model

HEAD = MODULES["action_bins"]
TINY = {
    "xlstm": Trained(
        XLSTMConfig(hidden_size=32, num_blocks=2, num_heads=4, inner_size=64, slstm_at=(1,), ffn_size=64),
    ),
    "mamba": Trained(MambaConfig(hidden_size=32, num_blocks=2, inner_size=64, state_size=8, dt_rank=2)),
    "decision_transformer": Trained(
        DecisionTransformerConfig(hidden_size=32, num_blocks=2, num_heads=4, ffn_size=64, context_length=10),
        padded=True,
    ),
}
XLSTM = TINY["xlstm"]
RECIPE = Recipe(batches=30, batch_size=8, context=10, learning_rate=3e-3, warmup=5)


@pytest.fixture(scope="module")
def episodes() -> dict[str, Episodes]:
    return {task: collect_task(task, 3) for task in ("drawer-close-v3", "reach-v3")}


def run_to_the_end(episodes: dict[str, Episodes], folder: Path, policy: Trained = XLSTM) -> Run:
    run = Run(episodes, folder, RECIPE, policy)
    for _ in run.train():
        pass
    return run


@pytest.fixture(scope="module")
def trained(episodes: dict[str, Episodes], tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return run_to_the_end(episodes, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", params=TINY)
def each(
    request: pytest.FixtureRequest,
    trained: Run,
    episodes: dict[str, Episodes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run of every backbone."""
    policy = TINY[request.param]
    return trained if policy == XLSTM else run_to_the_end(episodes, tmp_path_factory.mktemp("run"), policy)


class TestEpisodes:
    def test_they_are_the_experts_and_successful(self, episodes: dict[str, Episodes]) -> None:
        for collected in episodes.values():
            assert collected.observations.shape == (3, 200, 39)
            assert collected.actions.shape == (3, 200, 4)
            assert np.abs(collected.actions).max() <= 1
            assert (collected.success >= 0).all()

    def test_an_episode_is_repeatable_and_the_noise_is_not_in_its_labels(self) -> None:
        first, again, quiet = (play("drawer-close-v3", 5, noise) for noise in (0.3, 0.3, 0.0))
        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1][0], quiet[1][0])
        assert not np.array_equal(first[0][5], quiet[0][5])

    def test_collecting_goes_on_where_it_was(self, tmp_path: Path, episodes: dict[str, Episodes]) -> None:
        episodes["reach-v3"].save(tmp_path / "reach-v3.npz")
        made = dict(collect(tmp_path, ("reach-v3", "drawer-close-v3"), 1, 1))
        assert list(made) == ["drawer-close-v3"]
        loaded = load_episodes(tmp_path)
        assert sorted(loaded) == ["drawer-close-v3", "reach-v3"]
        assert np.array_equal(loaded["reach-v3"].observations, episodes["reach-v3"].observations)

    def test_training_without_episodes_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(click.UsageError, match=r"holds no episodes; run collect\.py first"):
            load_episodes(tmp_path)

    def test_all_tasks_exist(self) -> None:
        assert len(TASKS) == 10
        assert {"reach-v3", "push-v3", "hammer-v3"} <= set(TASKS)
        assert NOISES[0] == 0
        for task in TASKS:
            open_environment(f"metaworld/{task}").close()


class TestTraining:
    def test_the_loss_falls(self, each: Run) -> None:
        assert len(each.losses) == RECIPE.batches
        assert np.mean(each.losses[-5:]) < 0.8 * np.mean(each.losses[:5])

    def test_what_is_trained_is_of_about_the_same_size(self) -> None:
        sizes = [trained.config.parameters for trained in POLICIES.values()]
        assert max(sizes) < 1.1 * min(sizes)

    def test_an_interrupted_run_ends_as_if_it_had_not_been(
        self, trained: Run, episodes: dict[str, Episodes], tmp_path: Path
    ) -> None:
        run = Run(episodes, tmp_path, RECIPE, XLSTM)
        steps = run.train()
        for _ in range(12):
            next(steps)
        steps.close()  # what Ctrl-C does: the generator's `finally` saves
        resumed = Run(episodes, tmp_path, RECIPE, XLSTM)
        resumed.resume()
        assert resumed.batch == 12
        for _ in resumed.train():
            pass
        assert resumed.losses == trained.losses
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, trained.model.state_dict()[name]), name

    def test_two_processes_compute_what_one_computes(
        self, trained: Run, episodes: dict[str, Episodes], tmp_path: Path
    ) -> None:
        run = Run(episodes, tmp_path, RECIPE, XLSTM, processes=2)
        steps = run.train()
        for _ in range(8):
            next(steps)
        steps.close()
        assert run.losses == trained.losses[:8]
        assert not multiprocessing.active_children()

    def test_another_recipe_does_not_go_on_with_it(self, trained: Run, episodes: dict[str, Episodes]) -> None:
        other = Run(episodes, trained.folder, dataclasses.replace(RECIPE, seed=1), XLSTM)
        with pytest.raises(click.UsageError, match="another recipe"):
            other.resume()

    def test_another_policy_does_not_go_on_with_it(self, trained: Run, episodes: dict[str, Episodes]) -> None:
        other = Run(episodes, trained.folder, RECIPE, TINY["mamba"])
        with pytest.raises(click.UsageError, match="another policy"):
            other.resume()

    def test_the_checkpoint_loads_exports_and_acts(self, each: Run, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(each.folder / "model.zip")
        assert checkpoint.config == each.model.config
        bundle = tmp_path / "tiny.lram"
        succeed(
            *("export", each.folder / "model.zip", "-o", bundle, "--task", "metaworld/reach-v2"),
            *("--target", "pytorch", "--target", "onnxruntime", "-q", "--no-report"),
        )
        succeed("evaluate", bundle, "--env", "metaworld/reach-v3", "--episodes", "1", "--no-reference", "-q")

    def test_the_checkpoint_takes_raw_observations(self, trained: Run, episodes: dict[str, Episodes]) -> None:
        raw = torch.from_numpy(episodes["reach-v3"].observations[0, :40])
        mean, deviation = torch.from_numpy(trained.mean).float(), torch.from_numpy(trained.deviation).float()
        folded = reference_model(load_checkpoint(trained.folder / "model.zip"))
        nothing = torch.zeros(40)
        with torch.no_grad():
            expected = trained.model.embed(lram_inputs((raw - mean) / deviation, nothing, nothing))
            assert torch.allclose(folded.embed(lram_inputs(raw, nothing, nothing)), expected, atol=1e-4)

    def test_folding_is_exact_in_exact_arithmetic(self) -> None:
        rng = np.random.default_rng(0)
        weights = {"embed_state.weight": torch.randn(8, 39), "embed_state.bias": torch.randn(8), "other": torch.ones(1)}
        mean, deviation = rng.normal(size=39), rng.uniform(0.02, 2.0, 39)
        folded = fold_normalization(weights, mean, deviation)
        x = rng.normal(size=39)
        expected = weights["embed_state.weight"].double().numpy() @ ((x - mean) / deviation)
        expected += weights["embed_state.bias"].double().numpy()
        actual = folded["embed_state.weight"].double().numpy() @ x + folded["embed_state.bias"].double().numpy()
        assert np.allclose(actual, expected, rtol=1e-4, atol=1e-4)
        assert folded["other"] is weights["other"]


class TestSequences:
    def test_the_parallel_form_trains_what_steps_compute(self, each: Run) -> None:
        """The loss of a sequence is that of the logits which the reference model gives step by step. A step that sees
        a window sees what the last step of a sequence sees."""
        checkpoint, context = load_checkpoint(each.folder / "model.zip"), RECIPE.context
        model = ReferenceModel(checkpoint.config, context_length=context * TOKENS).eval()
        model.load_state_dict(checkpoint.weights)
        windows = each.sampler.draw(np.random.default_rng(0))
        padding = (windows.labels == NOT_LEARNED).all(dim=2).sum(dim=1)
        assert bool(padding.any()) == each.sampler.padded
        row = int(padding.argmax())
        one, began = Windows(*(tensor[row : row + 1] for tensor in vars(windows).values())), int(padding[row])
        compared = range(context - 1, context) if each.sampler.padded else range(context)
        one.labels[:, : compared.start] = NOT_LEARNED
        with torch.no_grad():
            expected = loss_of(model, one).item()
        task = TaskSpec("custom", "state", 39, "continuous", 4, 1.0, 1.0)
        state, losses = model.initial_state(1, task), []
        for step in range(began, context):
            is_first = torch.tensor([float(step == began)])
            inputs = (one.observations[:, step], one.return_to_go[:, step], one.rewards[:, step])
            logits, state = model.step(lram_inputs(*inputs, is_first), state)
            if step in compared:
                losses.append(torch.nn.functional.cross_entropy(logits.view(4, -1), one.labels[0, step]).item())
        assert np.mean(losses) == pytest.approx(expected, rel=1e-4)

    def test_padding_stands_before_the_first_step(self) -> None:
        values = np.arange(1.0, 7.0).reshape(3, 2)
        assert np.array_equal(padded_part(values, -2, 3), [[0, 0], [0, 0], [1, 2]])
        assert np.array_equal(padded_part(values, 1, 2, -1.0), values[1:])

    def test_a_label_decodes_to_the_nearest_action_there_is(self) -> None:
        task = resolve_task("metaworld/reach-v2")
        actions = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
        tokens = torch.from_numpy(label_tokens(actions, XLSTM.config))
        logits = torch.nn.functional.one_hot(tokens, XLSTM.config.head.num_actions).float().flatten(1)
        decoded = HEAD.decode(HEAD.select(logits, XLSTM.config.head, task), XLSTM.config.head, task).numpy()
        assert np.abs(decoded - actions).max() <= 1 / 256 + 1e-6 or actions.max() > 1 - 1 / 256
        assert label_tokens(np.array([-1.0, 1.0], np.float32), XLSTM.config).tolist() == [18, 273]

    def test_windows_show_every_kind_of_return_to_go_and_reward(self, episodes: dict[str, Episodes]) -> None:
        sampler = Sampler(episodes, dataclasses.replace(RECIPE, batch_size=200), XLSTM.config, padded=False)
        windows = sampler.draw(np.random.default_rng(1))
        silent = (windows.rewards == 0).all(dim=1)
        constant = (windows.return_to_go == windows.return_to_go[:, :1]).all(dim=1)
        for share in (silent.float().mean(), constant.float().mean()):
            assert 0.35 < share < 0.65
        assert (silent & ~constant).any()
        assert (constant & ~silent).any()


def test_the_model_card_tells_what_was_measured(each: Run, tmp_path: Path) -> None:
    """All three in one card; what the cache costs is counted episode by episode."""
    from card import main as write_card
    from click.testing import CliRunner
    from measure import PRECISIONS, TARGETS, ways

    (tmp_path / "measured").mkdir()
    for backbone in POLICIES:
        (tmp_path / backbone).symlink_to(each.folder)
    for way in ways():
        succeeded = [True, way.context != "cache"]
        episodes = [{"seed": 3 + i, "success": s, "episode_return": 1000.0 + s} for i, s in enumerate(succeeded)]
        result = {"success": {"value": 0.5, "low": 0.25, "high": 0.75}, "episodes": episodes}
        slower = 4.0 if way.context == "window" else 1.0
        timed = [
            {"target": target, "p50_ms": slower, "threads": 2, "size": 2_000_000, "peak_memory": None}
            for target in TARGETS
        ]
        parts = {"played": dict.fromkeys(TASKS, result), "timed": {"cpu": "A processor", "results": timed}}
        for precision, (part, document) in itertools.product(PRECISIONS, parts.items()):
            file = tmp_path / "measured" / f"{way.name}-{precision}-{part}.json"
            file.write_text(json.dumps(document), encoding="utf-8")
    done = CliRunner().invoke(write_card, [str(tmp_path), str(tmp_path)])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `reach-v3` | 50% (25 to 75) | 50% (25 to 75) | 50% (25 to 75) | 50% (25 to 75) |" in card
    assert "| Mamba | `fp32` | 100.0% (83.9 to 100.0) | 1001 (1001 to 1001) |" in card
    assert "| Transformer, cache | `int8` | 50.0% (" in card
    assert "6 successful episodes" in card
    assert "2 episodes per task, seeds 3 to 4" in card
    assert "30 batches of 8 windows of 10 steps" in card
    assert (
        "the same 20 episodes at `fp32`: 10 that succeed with the window fail with the cache, 0 the other way" in card
    )
    assert "4.0 times as fast on `native`" in card
    assert "Measured on: A processor, 2 threads." in card

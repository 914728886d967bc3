"""The example's training: it learns, survives an interruption, and leaves what the ordinary loader reads."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from collect import NOISES, TASKS, Episodes, collect, collect_task, play
from train import Recipe, Run, Sampler, Windows, fold_normalization, label_tokens, load_episodes, loss_of

from lram_export.checkpoints.loading import load_checkpoint
from lram_export.model.head_modules import MODULES
from lram_export.rollouts.environments import open_environment
from lram_export.spec.tasks import TaskSpec, resolve_task
from tests.conftest import succeed
from tests.models import lram, lram_inputs, reference_model

HEAD = MODULES["action_bins"]
TINY = lram(
    hidden_size=32,
    num_blocks=2,
    num_heads=4,
    inner_size=64,
    slstm_at=(1,),
    ffn_size=64,
    state_dim=39,
    image_shape=None,
    act_dim=4,
)
RECIPE = Recipe(batches=30, batch_size=8, context=10, learning_rate=3e-3, warmup=5)


@pytest.fixture(scope="module")
def episodes() -> dict[str, Episodes]:
    return {task: collect_task(task, 3) for task in ("drawer-close-v3", "reach-v3")}


def run_to_the_end(episodes: dict[str, Episodes], folder: Path, recipe: Recipe = RECIPE) -> Run:
    run = Run(episodes, folder, recipe, TINY)
    for _ in run.train():
        pass
    return run


@pytest.fixture(scope="module")
def trained(episodes: dict[str, Episodes], tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return run_to_the_end(episodes, tmp_path_factory.mktemp("run"))


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
    def test_the_loss_falls(self, trained: Run) -> None:
        assert len(trained.losses) == RECIPE.batches
        assert np.mean(trained.losses[-5:]) < 0.8 * np.mean(trained.losses[:5])

    def test_an_interrupted_run_ends_as_if_it_had_not_been(
        self, trained: Run, episodes: dict[str, Episodes], tmp_path: Path
    ) -> None:
        run = Run(episodes, tmp_path, RECIPE, TINY)
        steps = run.train()
        for _ in range(12):
            next(steps)
        steps.close()  # what Ctrl-C does: the generator's `finally` saves
        resumed = Run(episodes, tmp_path, RECIPE, TINY)
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
        run = Run(episodes, tmp_path, RECIPE, TINY, processes=2)
        steps = run.train()
        for _ in range(8):
            next(steps)
        steps.close()
        assert run.losses == trained.losses[:8]
        assert not multiprocessing.active_children()

    def test_another_recipe_does_not_go_on_with_it(self, trained: Run, episodes: dict[str, Episodes]) -> None:
        other = Run(episodes, trained.folder, dataclasses.replace(RECIPE, seed=1), TINY)
        with pytest.raises(click.UsageError, match="another recipe"):
            other.resume()

    def test_the_checkpoint_loads_exports_and_acts(self, trained: Run, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(trained.folder / "model.zip")
        assert checkpoint.config == TINY
        bundle = tmp_path / "tiny.lram"
        succeed(
            "export", trained.folder / "model.zip", "-o", bundle, "--task", "metaworld/reach-v2", "-q", "--no-report"
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
    def test_the_parallel_form_trains_what_steps_compute(self, trained: Run) -> None:
        """The loss of a sequence is that of the logits which the reference model gives step by step."""
        windows = trained.sampler.draw(np.random.default_rng(0))
        one = Windows(*(tensor[:1] for tensor in vars(windows).values()))
        with torch.no_grad():
            expected = loss_of(trained.model, one).item()
        trained.model.eval()
        task = TaskSpec("custom", "state", 39, "continuous", 4, 1.0, 1.0)
        state, losses = trained.model.initial_state(1, task), []
        for step in range(RECIPE.context):
            is_first = torch.tensor([float(step == 0)])
            inputs = (one.observations[:, step], one.return_to_go[:, step], one.rewards[:, step])
            logits, state = trained.model.step(lram_inputs(*inputs, is_first), state)
            chosen = logits.view(4, -1)
            losses.append(torch.nn.functional.cross_entropy(chosen, one.labels[0, step]).item())
        assert np.mean(losses) == pytest.approx(expected, rel=1e-4)

    def test_a_label_decodes_to_the_nearest_action_there_is(self) -> None:
        task = resolve_task("metaworld/reach-v2")
        actions = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
        tokens = torch.from_numpy(label_tokens(actions, TINY))
        logits = torch.nn.functional.one_hot(tokens, TINY.head.num_actions).float().flatten(1)
        decoded = HEAD.decode(HEAD.select(logits, TINY.head, task), TINY.head, task).numpy()
        assert np.abs(decoded - actions).max() <= 1 / 256 + 1e-6 or actions.max() > 1 - 1 / 256
        assert label_tokens(np.array([-1.0, 1.0], np.float32), TINY).tolist() == [18, 273]

    def test_windows_show_every_kind_of_return_to_go_and_reward(self, episodes: dict[str, Episodes]) -> None:
        sampler = Sampler(episodes, dataclasses.replace(RECIPE, batch_size=200))
        windows = sampler.draw(np.random.default_rng(1))
        silent = (windows.rewards == 0).all(dim=1)
        constant = (windows.return_to_go == windows.return_to_go[:, :1]).all(dim=1)
        for share in (silent.float().mean(), constant.float().mean()):
            assert 0.35 < share < 0.65
        assert (silent & ~constant).any()
        assert (constant & ~silent).any()


def test_the_model_card_tells_what_was_measured(trained: Run, episodes: dict[str, Episodes], tmp_path: Path) -> None:
    from card import main as write_card
    from click.testing import CliRunner

    (tmp_path / "episodes").mkdir()
    for task, collected in episodes.items():
        collected.save(tmp_path / "episodes" / f"{task}.npz")
    (tmp_path / "run").symlink_to(trained.folder)
    result = {
        "environment": "metaworld/reach-v3",
        "policy": "reference",
        "success": {"value": 0.5, "low": 0.25, "high": 0.75},
        "return": {"value": 1000.4, "low": 900.0, "high": 1100.0},
        "episodes": [{"seed": 3}, {"seed": 4}],
    }
    (tmp_path / "evaluation-1.json").write_text(json.dumps({"results": [result]}), encoding="utf-8")
    done = CliRunner().invoke(write_card, [str(tmp_path), str(tmp_path)])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `reach-v3` | 3 | 50% (25 to 75) | 1000 (900 to 1100) |" in card
    assert "6 successful episodes" in card
    assert "2 episodes per task, seeds 3 to 4" in card
    assert "30 batches of 8 windows of 10 steps" in card

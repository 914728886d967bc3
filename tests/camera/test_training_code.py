"""The images of ``camera`` are those of the original training code, ml-jku/LRAM, and of our own Atari games.

The truth is the functions that the training code calls, in its order: OpenCV's, the emulator's, and the wrappers of
stable-baselines3 that it is built on. docs/cameras.md says in which of its files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv, WarpFrame
from stable_baselines3.common.vec_env import VecTransposeImage

from lram_export.camera import ATARI, ATARI_EVALUATION, PROCGEN, prepare
from lram_export.rollouts.environments import open_environment
from lram_export.spec.images import ImageSpec

GAMES = ("Pong", "Breakout", "Seaquest", "MsPacman", "Qbert", "Enduro", "SpaceInvaders", "BankHeist")
SIZES = [(210, 160), (64, 64), (84, 84), (480, 640), (211, 161), (97, 63), (33, 47), (65, 64)]


def area(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))


def repeated(grey: np.ndarray) -> np.ndarray:
    """(H, W) -> (3, H, W)."""
    return np.repeat(grey[None], 3, axis=0)


def game_of(name: str) -> gymnasium.Env[Any, Any]:
    gymnasium.register_envs(ale_py)
    return gymnasium.make(f"ALE/{name}-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=True)


def played(name: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every fifth frame of a game played at random, in colour (210, 160, 3) and grey (210, 160), from the emulator."""
    game, actions = game_of(name), np.random.default_rng(0)
    game.reset(seed=0)
    emulator = game.unwrapped.ale  # type: ignore[attr-defined]
    for step in range(5 * count):
        *_, terminated, truncated, _ = game.step(int(actions.integers(18)))
        if terminated or truncated:
            game.reset()
        if step % 5 == 0:
            yield emulator.getScreenRGB(), emulator.getScreenGrayscale()


def random_frames() -> Iterator[np.ndarray]:
    for i, (height, width) in enumerate(SIZES):
        yield np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", GAMES)
def test_atari_is_the_training_data(name: str) -> None:
    for rgb, grey in played(name, 50):
        stored = area(grey, 84)  # an image of the DQN Replay Dataset
        expected = repeated(area(stored, 64))
        assert np.array_equal(prepare(rgb, ATARI), expected)
        assert np.array_equal(prepare(grey, ATARI), expected)
        assert np.array_equal(prepare(stored, ATARI), expected)


@pytest.mark.parametrize("name", GAMES)
def test_atari_evaluation_is_the_wrapper_that_the_training_code_evaluates_with(name: str) -> None:
    warp = WarpFrame(game_of(name), 64, 64)
    for rgb, grey in played(name, 50):
        expected = repeated(warp.observation(rgb)[..., 0])
        assert np.array_equal(prepare(rgb, ATARI_EVALUATION), expected)
        assert np.array_equal(prepare(grey, ATARI_EVALUATION), expected)


def test_atari_of_any_size_goes_the_same_way() -> None:
    for frame in random_frames():
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        assert np.array_equal(prepare(frame, ATARI), repeated(area(area(grey, 84), 64)))
        assert np.array_equal(prepare(frame, ATARI_EVALUATION), repeated(area(grey, 64)))


def test_the_two_differ() -> None:
    rgb, _ = next(played("MsPacman", 1))
    assert not np.array_equal(prepare(rgb, ATARI), prepare(rgb, ATARI_EVALUATION))


def test_the_emulators_grey_is_opencvs_for_every_colour_of_an_atari() -> None:
    """The palette lies in the emulator's library, as pairs of a colour and its grey, from black and the first greys."""
    start = struct.pack("<5I", 0x000000, 0x000000, 0x4A4A4A, 0x4A4A4A, 0x6F6F6F)
    (library,) = Path(ale_py.__file__).parent.glob("_ale_py*.so")
    content = library.read_bytes()
    assert content.count(start) == 1, "the palette has moved"
    pairs = np.frombuffer(content, "<u4", 256, content.index(start)).reshape(128, 2)
    colours = np.stack([pairs[:, 0] >> 16, pairs[:, 0] >> 8, pairs[:, 0]], axis=-1).astype(np.uint8)
    assert len(np.unique(colours, axis=0)) == 128
    assert np.array_equal(cv2.cvtColor(colours[None], cv2.COLOR_RGB2GRAY)[0], pairs[:, 1] & 255)
    assert np.array_equal(
        prepare(colours[None], ImageSpec(1, 128, "hwc", "grey"), layout="hwc")[0, :, 0], pairs[:, 1] & 255
    )


@pytest.mark.parametrize("name", ["pong", "breakout", "ms-pacman", "space-invaders"])
def test_our_own_atari_games_are_the_maximum_of_two_frames_prepared(name: str) -> None:
    environment = open_environment(f"atari/{name}")
    game: Any = environment.unwrapped
    screens: list[np.ndarray] = []
    step = game.step

    def recorded(action: int) -> Any:
        result = step(action)
        screens.append(game.ale.getScreenGrayscale())
        return result

    game.step = recorded
    environment.reset(seed=0)
    actions = np.random.default_rng(0)
    compared = 0
    for _ in range(100):
        screens.clear()
        observation, _, terminated, truncated, _ = environment.step(int(actions.integers(18)))
        if terminated or truncated:  # such a step may have had fewer frames, and its picture leads to nothing
            environment.reset()
            continue
        assert len(screens) == 4
        assert np.array_equal(prepare(np.maximum(*screens[-2:]), ATARI_EVALUATION), observation)
        compared += 1
    assert compared > 90


def test_gymnasiums_preprocessing_of_single_frames_is_prepare() -> None:
    game = game_of("Seaquest")
    frames = gymnasium.wrappers.AtariPreprocessing(game, noop_max=0, frame_skip=1, screen_size=64)
    frames.reset(seed=0)
    actions = np.random.default_rng(0)
    for _ in range(300):
        observation, _, terminated, truncated, _ = frames.step(int(actions.integers(18)))
        if terminated or truncated:
            frames.reset()
            continue
        rgb = game.unwrapped.ale.getScreenRGB()  # type: ignore[attr-defined]
        assert np.array_equal(prepare(rgb, ATARI_EVALUATION), repeated(observation))


def test_the_maximum_of_two_frames_is_taken_of_colours_in_evaluation() -> None:
    """As stable-baselines3 does it; it is not always the maximum of their greys, which the training data has."""
    game = game_of("Seaquest")
    warped = WarpFrame(MaxAndSkipEnv(game, skip=2), 64, 64)
    inner: Any = game.unwrapped
    screens: list[np.ndarray] = []
    step = inner.step

    def recorded(action: int) -> Any:
        result = step(action)
        screens.append(result[0])
        return result

    inner.step = recorded
    warped.reset(seed=0)
    for action in np.random.default_rng(0).integers(18, size=100):
        screens.clear()
        observation, _, terminated, truncated, _ = warped.step(int(action))
        if terminated or truncated:
            break
        assert np.array_equal(prepare(np.maximum(*screens), ATARI_EVALUATION), repeated(observation[..., 0]))


def test_procgen_is_channels_first_and_nothing_else() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    expected = VecTransposeImage.transpose_image(batch)
    assert np.array_equal(prepare(batch, PROCGEN), expected)
    assert np.array_equal(prepare(batch[7], PROCGEN), expected[7])
    assert np.array_equal(prepare(batch[..., ::-1], PROCGEN, colour="bgr"), expected)
    assert np.array_equal(prepare(expected, PROCGEN), expected)


def test_pictures_of_mimicgen_shrink_by_area_in_colour() -> None:
    image = ImageSpec(64, 64, "chw", "rgb", interpolation="opencv-area")
    for frame in random_frames():
        assert np.array_equal(prepare(frame, image), area(frame, 64).transpose(2, 0, 1))

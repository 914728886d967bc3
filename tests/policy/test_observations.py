"""What an observation may be: anything that is plainly these numbers; and what is said of the rest."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, Policy, export_bundle, load_policy
from tests.conftest import ExportFunction
from tests.step_module.modules import POLICIES

WHOLE = np.arange(204) % 7 - 3


@pytest.fixture
def policy(exported: ExportFunction) -> Iterator[Policy]:
    with load_policy(exported("state_ms", targets=("onnxruntime",)), threads=1) as policy:
        yield policy


@pytest.fixture
def game(exported: ExportFunction) -> Iterator[Policy]:
    with load_policy(exported("image_m", targets=("onnxruntime",)), threads=1) as policy:
        yield policy


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeing") / "seeing.lram"
    return export_bundle(POLICIES["seeing"](), None, path, ExportOptions(("onnxruntime",), report=False)).path


class Foreign:
    """An array of another library."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return WHOLE.astype(np.float32)


@pytest.mark.parametrize(
    "observation",
    [
        WHOLE.tolist(),
        tuple(WHOLE.astype(float)),
        [np.float16(value) for value in WHOLE],
        collections.deque(WHOLE.tolist()),
        [[*WHOLE]],
        WHOLE.astype(np.int8),
        WHOLE.astype(np.int64)[None],
        WHOLE.astype(np.float16),
        WHOLE.astype(np.longdouble),
        WHOLE.astype(">f4"),
        WHOLE.astype(object),
        [Fraction(int(value)) for value in WHOLE],
        np.repeat(WHOLE.astype(np.float32), 2)[::2],
        np.ma.masked_array(WHOLE.astype(np.float32), WHOLE > 2),
        torch.tensor(WHOLE),
        torch.tensor(WHOLE, dtype=torch.float64)[None],
        [torch.tensor(int(value)) for value in WHOLE],
        memoryview(WHOLE.astype(np.float32)),
        Foreign(),
        {"observation": WHOLE.tolist()},
        {"observation": {"observation": torch.tensor(WHOLE)}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_are_taken_in_whatever_they_come(policy: Policy, observation: Any) -> None:
    policy.act(WHOLE.astype(np.float32))
    expected = policy.action_logits
    policy.reset()
    action = policy.act(observation)
    np.testing.assert_array_equal(policy.action_logits, expected)
    inner = observation
    while isinstance(inner, dict):
        inner = inner["observation"]
    assert np.asarray(action).ndim == np.asarray(inner).ndim


def test_booleans_are_0_and_1_and_large_whole_numbers_are_rounded(policy: Policy) -> None:
    for given in (WHOLE > 0, [2**53 + 1, *[0] * 203], np.full(204, 2**40 + 1, np.uint64)):
        policy.reset()
        policy.act(given)
        found = policy.action_logits
        policy.reset()
        policy.act(np.asarray(given).astype(np.float32))
        np.testing.assert_array_equal(policy.action_logits, found)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (WHOLE[:39], "expected float32 of shape (204,) or (1, 204), got int64 of shape (39,)"),
        (0.5, "expected float32 of shape (204,) or (1, 204), got float64 of shape ()"),
        (None, "expected float32 of shape (204,) or (1, 204), got None"),
        ({1, 2}, "expected float32 of shape (204,) or (1, 204), got {1, 2}"),
        ([[1.0], [1.0, 2.0]], "expected an array, got a list whose parts differ in length"),
        (["0.5"] * 204, "expected float32 of shape (204,) or (1, 204), got <U3 of shape (204,)"),
        ("0.5", "expected numbers, got '0.5'"),
        (b"\0" * 204, "expected numbers, got b'"),
        (bytearray(204), "expected numbers, got bytearray("),
        (WHOLE * 1j, "expected float32 of shape (204,) or (1, 204), got complex128 of shape (204,)"),
        (WHOLE.astype("m8[s]"), "expected float32 of shape (204,) or (1, 204), got timedelta64[s] of shape (204,)"),
        ([*WHOLE[:203], object()], "expected numbers, got <object object at"),
        ([*[0] * 203, None], "expected numbers, got None at [203]"),
        ([*[0] * 203, 10**39], "expected finite values of magnitude up to"),
        (torch.zeros(204, requires_grad=True), "got a tensor that requires grad; pass its .detach()"),
        ([torch.zeros(204, requires_grad=True)], "got a tensor that requires grad; pass its .detach()"),
        (torch.zeros(204, device="meta"), "got a tensor on meta; pass its .cpu()"),
        ({"observation": {"camera": WHOLE}}, "expected an array, or a mapping with 'observation' alone, got {'camera'"),
        ({"observations": WHOLE}, "missing"),
        ({"observation": WHOLE, "goal": WHOLE}, "goal: unknown; this policy takes observation"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_such_observation_is_named(policy: Policy, observation: Any, message: str) -> None:
    pattern = re.escape(message if message.startswith("goal") else f"observation: {message}").replace(
        "got\\ a\\ t", ".*a t"
    )
    if "tensor" in message:
        pattern = rf"^observation: expected numbers that numpy can read, {re.escape(message)}$"
    for act in (policy.act, policy.step):
        with pytest.raises(ValueError, match=pattern) as caught:
            act(observation)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_a_tensor_of_a_gpu_that_requires_grad_is_told_both(policy: Policy) -> None:
    class Tensor:
        """As PyTorch's is where there is such a device."""

        requires_grad, device = True, "cuda:0"

        def cpu(self) -> None: ...
        def detach(self) -> None: ...
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    message = r"got a tensor that requires grad and on cuda:0; pass its \.detach\(\)\.cpu\(\)$"
    with pytest.raises(ValueError, match=message):
        policy.act(Tensor())  # type: ignore[arg-type]


def test_a_list_that_holds_itself_is_refused(policy: Policy) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"^observation: "):
        policy.act(endless)


def test_a_value_that_no_step_takes_is_named_by_its_place_in_what_was_given(policy: Policy) -> None:
    values = WHOLE.astype(float).tolist()
    values[5] = float("nan")
    with pytest.raises(ValueError, match=r"^observation: expected finite values, got nan at \[5\]$"):
        policy.act(values)
    with pytest.raises(ValueError, match=r"got nan at \[0, 5\]$"):
        policy.act([np.float32(values)])


IMAGE = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


@pytest.mark.parametrize(
    "image",
    [IMAGE.astype(np.int64), IMAGE.astype(np.uint16)[None], IMAGE.tolist(), torch.tensor(IMAGE), IMAGE.astype(object)],
    ids=lambda value: type(value).__name__,
)
def test_pixels_are_whole_numbers_of_any_width(game: Policy, image: Any) -> None:
    game.act(IMAGE)
    expected = game.action_logits
    game.reset()
    game.act(image)
    np.testing.assert_array_equal(game.action_logits, expected)


HERE = "observation: expected uint8 of shape (3, 64, 64) or (1, 3, 64, 64), got"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.astype(int) + 1, "observation: expected values from 0 to 255, got 256 at ["),
        (-IMAGE.astype(int), "observation: expected values from 0 to 255, got -"),
        (IMAGE / 255, f"{HERE} float64; the values look like 0..1: pass (255 * image).round().astype(np.uint8)"),
        (IMAGE > 9, f"{HERE} bool; the values look like 0..1: pass (255 * image).round().astype(np.uint8)"),
        (IMAGE.astype(np.float32), f"{HERE} float32; the values look like 0..255: pass image.round().astype(np.uint8)"),
        (
            IMAGE / 127.5 - 1,
            f"{HERE} float64; the values, from -1 to 1, look like neither 0..1 nor 0..255: pass pixels",
        ),
        (IMAGE * np.nan, f"{HERE} float64; the values, from nan to nan, look like neither"),
        (
            IMAGE.transpose(1, 2, 0),
            f"{HERE} uint8 of shape (64, 64, 3); this looks like HWC: transpose it, or use lram_export.camera.prepare",
        ),
        (
            IMAGE.transpose(1, 2, 0)[None] / 255,
            f"{HERE} float64 of shape (1, 64, 64, 3); this looks like HWC: transpose",
        ),
        (IMAGE[:, :32], f"{HERE} uint8 of shape (3, 32, 64)"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else "",
)
def test_what_could_mean_two_things_says_which(game: Policy, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        game.act(image)
    assert "looks like" in message or "looks like" not in str(caught.value)


def test_images_with_the_channels_last_are_told_of_the_other_way_round(tmp_path: Path) -> None:
    from lram_export.observations import Observations
    from lram_export.spec.tensors import StepSpec, TensorSpec

    inputs = (TensorSpec("camera", (2, 64, 64, 3), "uint8"), TensorSpec("is_first", (2,), "float32"))
    read = Observations(StepSpec(2, inputs, (TensorSpec("action", (2, 1), "float32"),), ())).read
    read(np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"got uint8 of shape \(2, 3, 64, 64\); this looks like CHW: transpose it"):
        read(np.zeros((2, 3, 64, 64), np.uint8))


def test_fields_by_name_are_read_one_by_one(seeing: Path) -> None:
    with load_policy(seeing, threads=1) as policy:
        shapes = {t.name: t.shape[1:] for t in policy.spec.inputs[:-1]}
        proprio, camera = np.ones(shapes["proprio"]), np.full(shapes["camera"], 7)
        typed = {t.name: t.dtype for t in policy.spec.inputs}
        expected = policy.step({"proprio": proprio.astype(np.float32), "camera": camera.astype(typed["camera"])})
        policy.reset()
        found = policy.step({"camera": torch.tensor(camera), "proprio": {"proprio": proprio.tolist()}})
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        with pytest.raises(
            ValueError, match="observation: expected rows in all of proprio, camera, or in none of them"
        ):
            policy.step({"camera": [camera], "proprio": proprio})
        with pytest.raises(ValueError, match="observation: expected a mapping with proprio, camera, got list"):
            policy.step(proprio.tolist())
        history = {"camera": [camera] * 3, "proprio": [proprio] * 2}
        with pytest.raises(ValueError, match="camera: expected 2 steps, as in proprio, got 3"):
            policy.prime(history)


@pytest.mark.parametrize("missing", [None, float("nan"), [None], [float("nan")], np.inf])
def test_the_first_step_of_an_episode_has_no_reward(policy: Policy, missing: Any) -> None:
    policy.act(WHOLE, missing)
    target = policy.return_to_go
    policy.act(WHOLE, torch.tensor(1.0))
    assert policy.return_to_go < target
    if missing is not None:
        with pytest.raises(
            ValueError, match=r"^reward: expected finite values, got (nan in row 0, which is past|inf at)"
        ):
            policy.act(WHOLE, missing)
    with pytest.raises(ValueError, match=r"^reward: expected numbers .* requires grad; pass its \.detach\(\)"):
        policy.act(WHOLE, torch.ones(1, requires_grad=True))

"""What a camera gives becomes what the policy takes, however the frame is laid out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lram_export.camera import ATARI, PROCGEN, CameraNotInstalledError, image_of, prepare
from lram_export.spec.images import INTERPOLATIONS, Crop, ImageSpec, Resize
from tests.test_imports import BLOCK

ANY_SIZE = ImageSpec(64, 48, "hwc", "rgb", interpolation="opencv-area")
SIZES = [(210, 160), (480, 640), (97, 131), (64, 48), (33, 47), (1, 1), (64, 200), (7, 1030)]
"""Of frames: larger, smaller, as large, odd, and shrunk in one direction only."""
IMAGES = [
    dataclasses.replace(ANY_SIZE, layout=layout, colour=colour, repeated=repeated, interpolation=interpolation)
    for layout in ("chw", "hwc")
    for colour, repeated in (("rgb", False), ("bgr", False), ("grey", False), ("grey", True))
    for interpolation in ("opencv-area", "pillow-bilinear")
]


def frame_of(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def by_library(frame: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """The library's own function, written out once more."""
    if interpolation.startswith("pillow"):
        kinds = Image.Resampling
        resampling = {
            "pillow-bilinear": kinds.BILINEAR,
            "pillow-bicubic": kinds.BICUBIC,
            "pillow-lanczos": kinds.LANCZOS,
            "pillow-box": kinds.BOX,
            "pillow-hamming": kinds.HAMMING,
            "pillow-nearest": kinds.NEAREST,
        }[interpolation]
        return np.asarray(Image.fromarray(frame).resize((width, height), resampling))
    flag = {
        "opencv-area": cv2.INTER_AREA,
        "opencv-linear": cv2.INTER_LINEAR,
        "opencv-linear-exact": cv2.INTER_LINEAR_EXACT,
        "opencv-cubic": cv2.INTER_CUBIC,
        "opencv-lanczos4": cv2.INTER_LANCZOS4,
        "opencv-nearest": cv2.INTER_NEAREST,
        "opencv-nearest-exact": cv2.INTER_NEAREST_EXACT,
    }[interpolation]
    return np.asarray(cv2.resize(frame, (width, height), interpolation=flag))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_every_interpolation_is_its_librarys_own(
    interpolation: str, size: tuple[int, int], channels: tuple[int, ...]
) -> None:
    frame = frame_of(*size, *channels)
    image = ImageSpec(64, 48, "hwc", "rgb" if channels else "grey", interpolation=interpolation)
    expected = by_library(frame, 64, 48, interpolation)
    layout = "hwc" if channels else "hw"
    assert np.array_equal(prepare(frame, image, layout=layout), expected.reshape(image.shape))


def test_sizes_on_the_way_are_passed_through_in_order() -> None:
    frame = frame_of(210, 160, 3)
    way = (Resize(100, 90, "opencv-linear"), Resize(30, 20, "pillow-box"))
    image = dataclasses.replace(ANY_SIZE, through=way)
    first = by_library(frame, 100, 90, "opencv-linear")
    second = by_library(first, 30, 20, "pillow-box")
    assert np.array_equal(prepare(frame, image), by_library(second, 64, 48, "opencv-area"))


def all_colours() -> np.ndarray:
    """(4096, 4096, 3): every one there is."""
    packed = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    return np.stack([packed >> 16, packed >> 8, packed], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("grey", ["opencv", "pillow"])
def test_grey_is_the_librarys_own_for_every_colour(grey: str) -> None:
    for part in np.split(all_colours(), 4):  # an image has at most 1024 rows
        expected = (
            cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
            if grey == "opencv"
            else np.asarray(Image.fromarray(part).convert("L"))
        )
        for left in range(0, 4096, 1024):
            image = ImageSpec(1024, 1024, "hwc", "grey", grey=grey, crop=Crop(0, left, 1024, 1024))
            here = expected[:, left : left + 1024, None]
            assert np.array_equal(prepare(part, image), here)
            assert np.array_equal(prepare(part[..., ::-1], image, colour="bgr"), here)


@pytest.mark.parametrize("grey", ["opencv", "pillow"])
@pytest.mark.parametrize("interpolation", ["opencv-area", "pillow-bilinear"])
def test_a_frame_is_turned_to_grey_before_it_is_resized(grey: str, interpolation: str) -> None:
    frame = frame_of(210, 160, 3)
    library = (
        cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if grey == "opencv" else np.asarray(Image.fromarray(frame).convert("L"))
    )
    image = ImageSpec(64, 48, "hwc", "grey", grey=grey, interpolation=interpolation)
    assert np.array_equal(prepare(frame, image)[..., 0], by_library(library, 64, 48, interpolation))


def test_the_greys_differ() -> None:
    frame = frame_of(64, 48, 3)
    opencv, pillow = (prepare(frame, ImageSpec(64, 48, "hwc", "grey", grey=grey)) for grey in ("opencv", "pillow"))
    assert not np.array_equal(opencv, pillow)


def test_a_crop_is_taken_first() -> None:
    frame = frame_of(210, 160, 3)
    image = dataclasses.replace(ANY_SIZE, crop=Crop(34, 5, 160, 150))
    assert np.array_equal(prepare(frame, image), by_library(frame[34:194, 5:155].copy(), 64, 48, "opencv-area"))
    exact = ImageSpec(160, 150, "hwc", "rgb", crop=Crop(34, 5, 160, 150))
    assert np.array_equal(prepare(frame, exact), frame[34:194, 5:155])


frames = st.tuples(st.integers(5, 70), st.integers(5, 70), st.integers(0, 99))
"""Sides no channel count can be mistaken for, and a seed."""


@given(frames, st.sampled_from(IMAGES))
def test_channels_first_or_last_are_the_same_frame(frame: tuple[int, int, int], image: ImageSpec) -> None:
    height, width, seed = frame
    last = frame_of(height, width, 3, seed=seed)
    expected = prepare(last, image)
    first = last.transpose(2, 0, 1)
    assert np.array_equal(prepare(first, image), expected)
    assert np.array_equal(prepare(first.copy(), image), expected)
    assert np.array_equal(prepare(first.copy(), image, layout="chw"), expected)


@given(frames, st.sampled_from(IMAGES))
def test_red_or_blue_first_are_the_same_frame(frame: tuple[int, int, int], image: ImageSpec) -> None:
    height, width, seed = frame
    rgb = frame_of(height, width, 3, seed=seed)
    assert np.array_equal(prepare(rgb[..., ::-1].copy(), image, colour="bgr"), prepare(rgb, image))
    assert np.array_equal(prepare(rgb[..., ::-1], image, colour="bgr"), prepare(rgb, image))


@given(frames, st.sampled_from(IMAGES), st.integers(0, 4), st.sampled_from(["nhwc", "nchw"]))
def test_a_batch_is_its_frames(frame: tuple[int, int, int], image: ImageSpec, count: int, layout: str) -> None:
    height, width, seed = frame
    batch = np.stack([frame_of(height, width, 3, seed=seed + i) for i in range(count + 1)])[:count]
    given_batch = batch if layout == "nhwc" else batch.transpose(0, 3, 1, 2)
    expected = np.array([prepare(one, image) for one in batch], np.uint8).reshape(count, *image.shape)
    assert np.array_equal(prepare(given_batch, image), expected)
    assert np.array_equal(prepare(given_batch, image, layout=layout), expected)


@given(frames, st.booleans(), st.sampled_from(["chw", "hwc"]))
def test_grey_frames_may_have_a_channel_or_none(frame: tuple[int, int, int], repeated: bool, layout: str) -> None:
    height, width, seed = frame
    image = dataclasses.replace(ANY_SIZE, layout=layout, colour="grey", repeated=repeated)
    grey = frame_of(height, width, seed=seed)
    expected = prepare(grey, image)
    assert np.array_equal(prepare(grey[..., None], image), expected)
    assert np.array_equal(prepare(grey[None], image), expected)
    assert np.array_equal(prepare(np.stack([grey] * 5), image, layout="nhw"), np.stack([expected] * 5))
    assert np.array_equal(prepare(grey[None, ..., None], image), expected[None])
    in_colour = np.repeat(grey[..., None], 3, axis=2)  # every formula's weights add up to 1
    assert np.array_equal(prepare(in_colour, image), expected)


@given(frames, st.sampled_from(IMAGES))
def test_the_frame_is_not_changed_and_the_image_is_ones_own(frame: tuple[int, int, int], image: ImageSpec) -> None:
    height, width, seed = frame
    image = dataclasses.replace(image, height=height, width=width)  # nothing to resize: the frame may be handed out
    given_frame = frame_of(height, width, 3, seed=seed)
    given_frame.flags.writeable = False
    prepared = prepare(given_frame, image)
    assert (prepared.shape, prepared.dtype) == (image.shape, np.uint8)
    assert prepared.flags.c_contiguous and prepared.flags.writeable
    assert not np.shares_memory(prepared, given_frame)


def test_alpha_is_dropped_where_that_is_told() -> None:
    frame = frame_of(210, 160, 4)
    expected = prepare(frame[..., :3], ANY_SIZE)
    assert np.array_equal(prepare(frame, ANY_SIZE, drop_alpha=True), expected)
    assert np.array_equal(prepare(frame.transpose(2, 0, 1), ANY_SIZE, drop_alpha=True), expected)
    assert np.array_equal(prepare(frame[..., :3], ANY_SIZE, drop_alpha=True), expected)


def test_a_frame_whose_shape_says_little_is_told() -> None:
    frame = frame_of(3, 64, 3)
    assert np.array_equal(prepare(frame, ANY_SIZE, layout="hwc"), by_library(frame, 64, 48, "opencv-area"))
    chw = np.ascontiguousarray(frame.transpose(1, 2, 0))
    assert np.array_equal(prepare(frame, ANY_SIZE, layout="chw"), by_library(chw, 64, 48, "opencv-area"))


def interface(**images: object) -> Any:
    return SimpleNamespace(observation={name: SimpleNamespace(image=image) for name, image in images.items()})


def test_an_interface_says_what_its_one_image_is() -> None:
    frame = frame_of(210, 160, 3)
    robot = interface(joints=None, camera=ATARI)
    assert np.array_equal(prepare(frame, robot), prepare(frame, ATARI))
    assert np.array_equal(prepare(frame, robot.observation["camera"]), prepare(frame, ATARI))
    assert image_of(robot) is ATARI


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        (interface(joints=None), "interface: expected one that says what the image is, got one without an image"),
        (interface(), "interface: expected one that says what the image is, got one without an image"),
        (SimpleNamespace(image=None), "interface: expected one that says what the image is, got one without an image"),
        (
            interface(wrist=ATARI, front=PROCGEN),
            "interface: has the images wrist, front; give one of them, as interface.observation['wrist']",
        ),
        (interface(camera={"height": 64}), "interface: expected an ImageSpec, got dict"),
        ("atari", "interface: expected an interface or an ImageSpec, got str"),
        (None, "interface: expected an interface or an ImageSpec, got NoneType"),
        (ATARI.to_json(), "interface: expected an interface or an ImageSpec, got dict"),
    ],
)
def test_an_interface_without_one_image_is_refused(robot: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        prepare(frame_of(210, 160, 3), robot)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("frame", "image", "told", "message"),
    [
        ([[0]], ATARI, {}, "frame: expected a numpy array, got list"),
        (np.zeros((210, 160, 3), np.float32), ATARI, {}, "frame: expected uint8, got float32"),
        (np.zeros((210, 160, 3), np.int64), ATARI, {}, "frame: expected uint8, got int64"),
        (frame_of(210, 160, 3), ATARI, {"colour": "grey"}, "colour: expected one of rgb, bgr, got 'grey'"),
        (
            frame_of(210, 160, 3),
            ATARI,
            {"layout": "HWC"},
            "layout: expected one of hw, hwc, chw, nhw, nhwc, nchw, got 'HWC'",
        ),
        (
            frame_of(210, 160, 3),
            ATARI,
            {"layout": "nchw"},
            "frame: expected nchw, 4 dimensions, got shape (210, 160, 3)",
        ),
        (
            frame_of(210, 160, 2),
            ATARI,
            {},
            "frame: expected (H, W), (H, W, 3), (3, H, W) or a batch, got shape (210, 160, 2); "
            "a batch of grey frames needs layout='nhw'",
        ),
        (np.zeros(3, np.uint8), ATARI, {}, "frame: expected (H, W), (H, W, 3), (3, H, W) or a batch, got shape (3,)"),
        (
            np.zeros((2, 5, 64, 64), np.uint8),
            ATARI,
            {},
            "frame: expected (H, W), (H, W, 3), (3, H, W) or a batch, got shape (2, 5, 64, 64)",
        ),
        (frame_of(3, 64, 3), ATARI, {}, "frame: shape (3, 64, 3) may be hwc or chw; say which, layout='hwc'"),
        (
            np.zeros((8, 1, 64, 3), np.uint8),
            ATARI,
            {},
            "frame: shape (8, 1, 64, 3) may be nhwc or nchw; say which, layout='nhwc'",
        ),
        (frame_of(210, 160, 2), ATARI, {"layout": "hwc"}, "frame: expected 1 or 3 channels, got 2"),
        (
            frame_of(210, 160, 4),
            ATARI,
            {},
            "frame: expected 1 or 3 channels, got 4; drop_alpha=True leaves the fourth out",
        ),
        (
            frame_of(64, 64),
            PROCGEN,
            {},
            "frame: expected 3 channels, since the policy's image is rgb, got 1",
        ),
        (frame_of(0, 160, 3), ATARI, {}, "frame: expected 1 to 16384 rows and columns, got 0 and 160"),
        (
            np.zeros((16385, 1), np.uint8),
            ATARI,
            {},
            "frame: expected 1 to 16384 rows and columns, got 16385 and 1",
        ),
        (
            frame_of(480, 640, 3),
            PROCGEN,
            {},
            "frame: expected 64 x 64 pixels, since the policy's images were never resized, got 480 x 640",
        ),
        (
            frame_of(480, 640, 3),
            dataclasses.replace(ATARI, crop=Crop(400, 0, 100, 640)),
            {},
            "frame: expected at least 500 x 640 pixels, for the crop, got 480 x 640",
        ),
        (
            frame_of(480, 640, 3),
            dataclasses.replace(PROCGEN, crop=Crop(0, 0, 64, 65)),
            {},
            "frame: expected 64 x 64 pixels, since the policy's images were never resized, got 64 x 65",
        ),
    ],
)
def test_a_frame_that_cannot_be_meant_is_refused(
    frame: Any, image: ImageSpec, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        prepare(frame, image, **told)
    assert str(caught.value) == message


LIBRARIES = {"cv2": ("OpenCV", "opencv-area"), "PIL": ("Pillow", "pillow-bilinear")}


@pytest.mark.parametrize("blocked", LIBRARIES)
def test_a_library_that_is_missing_is_named_with_its_extra(blocked: str) -> None:
    package, interpolation = LIBRARIES[blocked]
    code = f"""
import numpy as np
from lram_export.camera import *
from lram_export.errors import UsageError
image = ImageSpec(64, 64, "chw", "grey", interpolation={interpolation!r})
frame = np.zeros((64, 64, 3), np.uint8)
try:
    prepare(np.zeros((210, 160, 3), np.uint8), image)
except UsageError as error:
    print(error)
"""
    program = BLOCK.format(blocked={blocked}) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        f"resizing this policy's images needs {package}, which is not installed. "
        f"Install it with: pip install 'lram-export[camera]'"
    )
    assert issubclass(CameraNotInstalledError, Exception)


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("lram_export.camera.import_module", broken)
    with pytest.raises(CameraNotInstalledError, match=r"OpenCV, which cannot be loaded \(libGL\.so\.1: cannot open"):
        prepare(frame_of(210, 160, 3), ATARI)


def test_numpy_is_enough_where_nothing_is_resized() -> None:
    code = """
import sys
import numpy as np
from lram_export.camera import *
frame = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
assert prepare(frame, PROCGEN).shape == (3, 64, 64)
assert prepare(frame, ATARI_EVALUATION).shape == (3, 64, 64)
assert prepare(frame, ImageSpec(64, 64, "chw", "grey")).shape == (1, 64, 64)
print([module for module in ("cv2", "PIL", "torch") if module in sys.modules])
"""
    program = BLOCK.format(blocked={"cv2", "PIL", "torch"}) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr

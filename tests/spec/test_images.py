"""What an image is, as JSON and as a person writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export.spec.images import (
    ATARI,
    ATARI_EVALUATION,
    COLOURS,
    GREYS,
    INTERPOLATIONS,
    LAYOUTS,
    PROCGEN,
    Crop,
    ImageSpec,
    Resize,
)
from lram_export.spec.json_fields import Fields, parse_json

BY_HAND: dict[str, Any] = {"height": 64, "width": 48, "layout": "chw", "colour": "rgb"}
GREY = {**BY_HAND, "colour": "grey"}
SIDES = st.integers(1, 1024)


@st.composite
def images(draw: st.DrawFn) -> ImageSpec:
    colour = draw(st.sampled_from(COLOURS))
    interpolation = draw(st.none() | st.sampled_from(INTERPOLATIONS))
    sizes = st.builds(Resize, SIDES, SIDES, st.sampled_from(INTERPOLATIONS))
    grey = colour == "grey"
    return ImageSpec(
        draw(SIDES),
        draw(SIDES),
        draw(st.sampled_from(LAYOUTS)),
        colour,
        repeated=draw(st.booleans()) if grey else False,
        grey=draw(st.none() | st.sampled_from(GREYS)) if grey else None,
        interpolation=interpolation,
        through=tuple(draw(st.lists(sizes, max_size=3))) if interpolation else (),
        crop=draw(st.none() | st.builds(Crop, st.integers(0, 99), st.integers(0, 99), SIDES, SIDES)),
    )


@given(images())
def test_an_image_comes_back_from_its_json(image: ImageSpec) -> None:
    assert ImageSpec.from_json(Fields(parse_json(json.dumps(image.to_json())))) == image


@pytest.mark.parametrize("image", [ATARI, ATARI_EVALUATION, PROCGEN])
def test_the_images_of_the_training_code_are_what_its_models_take(image: ImageSpec) -> None:
    assert image.shape == (3, 64, 64)
    assert ImageSpec.from_json(Fields(image.to_json())) == image


def test_four_fields_are_enough_for_a_person() -> None:
    assert ImageSpec.from_json(Fields(BY_HAND)) == ImageSpec(64, 48, "chw", "rgb")
    grey = ImageSpec.from_json(Fields({**GREY, "crop": None, "interpolation": None, "grey": None}))
    assert grey == ImageSpec(64, 48, "chw", "grey", grey="opencv")
    assert hash(grey) == hash(ImageSpec(64, 48, "chw", "grey"))


@pytest.mark.parametrize(
    ("image", "channels", "shape"),
    [
        (ImageSpec(64, 48, "chw", "rgb"), 3, (3, 64, 48)),
        (ImageSpec(64, 48, "hwc", "bgr"), 3, (64, 48, 3)),
        (ImageSpec(64, 48, "hwc", "grey"), 1, (64, 48, 1)),
        (ImageSpec(64, 48, "chw", "grey", repeated=True), 3, (3, 64, 48)),
    ],
)
def test_channels_follow_from_the_colour(image: ImageSpec, channels: int, shape: tuple[int, ...]) -> None:
    assert (image.channels, image.shape) == (channels, shape)
    assert ImageSpec.from_json(Fields({**image.to_json(), "channels": channels})) == image


def test_the_last_size_is_the_image_itself() -> None:
    assert ATARI.resizes == (Resize(84, 84, "opencv-area"), Resize(64, 64, "opencv-area"))
    assert PROCGEN.resizes == ()


AREA = {"height": 84, "width": 84, "interpolation": "opencv-area"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**BY_HAND, "size": 3}, "camera.size: unknown field; known: height, width, layout, colour, channels"),
        ({"height": 64, "width": 64, "layout": "chw"}, "camera.colour: missing"),
        ({**BY_HAND, "height": 0}, "camera.height: expected 1 to 1024, got 0"),
        ({**BY_HAND, "width": 1025}, "camera.width: expected 1 to 1024, got 1025"),
        ({**BY_HAND, "width": True}, "camera.width: expected an integer, got True"),
        ({**BY_HAND, "height": "64"}, "camera.height: expected an integer, got '64'"),
        ({**BY_HAND, "layout": "hw"}, "camera.layout: expected one of chw, hwc, got 'hw'"),
        ({**BY_HAND, "layout": ["chw"]}, "camera.layout: expected one of chw, hwc, got ['chw']"),
        ({**BY_HAND, "colour": "gray"}, "camera.colour: expected one of rgb, bgr, grey, got 'gray'"),
        ({**BY_HAND, "channels": 1}, "camera.channels: expected 3, got 1"),
        ({**GREY, "channels": 3}, "camera.channels: expected 1, got 3"),
        ({**GREY, "channels": 1.0}, "camera.channels: expected an integer, got 1.0"),
        ({**BY_HAND, "repeated": True}, "camera.repeated: only of a grey image, this one is rgb"),
        ({**GREY, "repeated": 1}, "camera.repeated: expected true or false, got 1"),
        ({**BY_HAND, "grey": "opencv"}, "camera.grey: only of a grey image, this one is rgb"),
        ({**GREY, "grey": "average"}, "camera.grey: expected one of opencv, pillow, got 'average'"),
        ({**BY_HAND, "interpolation": "area"}, "camera.interpolation: expected one of opencv-area, opencv-linear"),
        ({**BY_HAND, "through": [AREA]}, "camera.interpolation: missing; a frame that passes through other sizes"),
        ({**BY_HAND, "through": None}, "camera.through: expected a list, got None"),
        ({**BY_HAND, "through": [[84, 84]]}, "camera.through[0]: expected an object, got [84, 84]"),
        ({**BY_HAND, "through": [AREA, {}]}, "camera.through[1].height: missing"),
        ({**BY_HAND, "through": [{**AREA, "height": 0}]}, "camera.through[0].height: expected 1 to 16384, got 0"),
        ({**BY_HAND, "through": [{**AREA, "width": 2.0}]}, "camera.through[0].width: expected an integer, got 2.0"),
        (
            {**BY_HAND, "through": [{**AREA, "interpolation": "x"}]},
            "camera.through[0].interpolation: expected one of opencv-area",
        ),
        ({**BY_HAND, "through": [AREA] * 9}, "camera.through: expected at most 8, got 9"),
        ({**BY_HAND, "crop": [0, 0, 1, 1]}, "camera.crop: expected an object, got [0, 0, 1, 1]"),
        ({**BY_HAND, "crop": {"top": 0, "left": 0, "height": 1}}, "camera.crop.width: missing"),
        (
            {**BY_HAND, "crop": {"top": -1, "left": 0, "height": 1, "width": 1}},
            "camera.crop.top: expected 0 to 16384, got -1",
        ),
        (
            {**BY_HAND, "crop": {"top": 0, "left": 0, "height": 0, "width": 1}},
            "camera.crop.height: expected 1 to 16384, got 0",
        ),
    ],
)
def test_json_of_an_image_is_checked(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ImageSpec.from_json(Fields(data, "camera"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_sizes_on_the_way_are_counted() -> None:
    with pytest.raises(ValueError, match="through: expected at most 8 sizes, got 9"):
        ImageSpec(64, 64, "chw", "rgb", interpolation="opencv-area", through=(Resize(84, 84, "opencv-area"),) * 9)

"""What an image that a policy takes is, and how training made it from a camera's frame. Free of torch and numpy.

Words stand for exactly one function of one library, since no two libraries resize alike.
:mod:`lram_export.camera` does what is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lram_export.spec.bounds import IMAGE
from lram_export.spec.json_fields import Fields, shown, whole_number

LAYOUTS = ("chw", "hwc")
"""Channels first or last."""
COLOURS = ("rgb", "bgr", "grey")
"""Order of an image's channels."""
GREYS = ("opencv", "pillow")
"""How grey is made of red, green and blue, in whole numbers:

``opencv`` is ``cv2.cvtColor`` with ``COLOR_RGB2GRAY``: ``(9798 R + 19235 G + 3735 B + 2**14) >> 15``. For the 128
colours of an Atari 2600 it is also what the Arcade Learning Environment's ``getScreenGrayscale`` gives.
``pillow`` is ``PIL.Image.convert("L")``: ``(19595 R + 38470 G + 7471 B + 2**15) >> 16``.
"""
OPENCV, PILLOW = "opencv-", "pillow-"
INTERPOLATIONS = (
    *("opencv-area", "opencv-linear", "opencv-linear-exact", "opencv-cubic", "opencv-lanczos4"),
    *("opencv-nearest", "opencv-nearest-exact"),
    *("pillow-bilinear", "pillow-bicubic", "pillow-lanczos", "pillow-box", "pillow-hamming", "pillow-nearest"),
)
"""``opencv-area`` is ``cv2.resize`` with ``INTER_AREA``, ``pillow-bilinear`` is ``PIL.Image.resize`` with
``Resampling.BILINEAR``, and so on. Where an image shrinks, all of Pillow's but ``nearest`` average over what one pixel
covers; of OpenCV's only ``area`` does."""
MOST_SIDE = 1 << 14
"""Rows or columns of a camera's frame, and of the sizes on the way; OpenCV stops at 2**15."""
MOST_SIZES = 8
"""Sizes on the way."""

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Resize:
    """To a size in pixels, by one function of one library: one of :data:`INTERPOLATIONS`."""

    height: int
    width: int
    interpolation: str

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what no image is resized to, or by."""
        whole_number(self.height, "height", 1, MOST_SIDE)
        whole_number(self.width, "width", 1, MOST_SIDE)
        _check_one_of("interpolation", self.interpolation, INTERPOLATIONS)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"height": self.height, "width": self.width, "interpolation": self.interpolation}

    @staticmethod
    def from_json(fields: Fields) -> Resize:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        fields.only("height", "width", "interpolation")
        return _made(Resize, fields, fields.data)


@dataclass(frozen=True)
class Crop:
    """A part of the camera's frame, in the frame's pixels."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what is no part of any frame."""
        for name, low in (("top", 0), ("left", 0), ("height", 1), ("width", 1)):
            whole_number(getattr(self, name), name, low, MOST_SIDE)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"top": self.top, "left": self.left, "height": self.height, "width": self.width}

    @staticmethod
    def from_json(fields: Fields) -> Crop:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field."""
        fields.only("top", "left", "height", "width")
        return _made(Crop, fields, fields.data)


@dataclass(frozen=True)
class ImageSpec:
    """An image of uint8 pixels as a policy takes it, and how training made it of a frame: cropped, then turned to grey
    where ``colour`` is ``grey``, then resized, then the grey repeated.

    Attributes:
        height: of the image, pixels.
        width: of the image, pixels.
        layout: one of :data:`LAYOUTS`.
        colour: one of :data:`COLOURS`.
        repeated: whether a grey image has its one channel three times.
        grey: how colours became grey, one of :data:`GREYS`; None stands for the first, of a grey image.
        interpolation: how a frame of another size comes to this one, one of :data:`INTERPOLATIONS`; None: training
            did not resize, and a frame has to have this size.
        through: sizes that a frame passes through before.
        crop: the part of a frame that is used; None: all of it.
    """

    height: int
    width: int
    layout: str
    colour: str
    repeated: bool = False
    grey: str | None = None
    interpolation: str | None = None
    through: tuple[Resize, ...] = ()
    crop: Crop | None = None

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what is no image or contradicts itself."""
        _, height, width = IMAGE
        whole_number(self.height, "height", *height)
        whole_number(self.width, "width", *width)
        _check_one_of("layout", self.layout, LAYOUTS)
        _check_one_of("colour", self.colour, COLOURS)
        if self.colour != "grey":
            if self.repeated:
                raise ValueError(f"repeated: only of a grey image, this one is {self.colour}")
            if self.grey is not None:
                raise ValueError(f"grey: only of a grey image, this one is {self.colour}")
        elif self.grey is None:
            object.__setattr__(self, "grey", GREYS[0])  # so that equal images are equal
        else:
            _check_one_of("grey", self.grey, GREYS)
        if len(self.through) > MOST_SIZES:
            raise ValueError(f"through: expected at most {MOST_SIZES} sizes, got {len(self.through)}")
        if self.interpolation is not None:
            _check_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        elif self.through:
            raise ValueError("interpolation: missing; a frame that passes through other sizes has to leave them")

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.colour == "grey" and not self.repeated else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (channels, height, width), or (height, width, channels)."""
        if self.layout == "chw":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels

    @property
    def resizes(self) -> tuple[Resize, ...]:
        """All sizes in order, the image's own last; none where training did not resize."""
        if self.interpolation is None:
            return ()
        return (*self.through, Resize(self.height, self.width, self.interpolation))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; with ``channels``, for those who read them."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "layout": self.layout,
            "colour": self.colour,
            "repeated": self.repeated,
            "grey": self.grey,
            "interpolation": self.interpolation,
            "through": [size.to_json() for size in self.through],
            "crop": None if self.crop is None else self.crop.to_json(),
        }

    @staticmethod
    def from_json(fields: Fields) -> ImageSpec:
        """Read what :meth:`to_json` wrote, or what a person did: height, width, layout and colour at least.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        odd = sorted(set(map(str, fields.data)) - set(_KNOWN))
        if odd:
            raise ValueError(f"{fields.path(odd[0])}: unknown field; known: {', '.join(_KNOWN)}")
        given = {name: fields.get(name) for name in _REQUIRED}
        given |= {name: fields.data[name] for name in ("grey", "interpolation") if name in fields.data}
        if "repeated" in fields.data:
            given["repeated"] = fields.flag("repeated")
        if "through" in fields.data:
            entries = enumerate(fields.items("through", MOST_SIZES))
            given["through"] = tuple(
                Resize.from_json(Fields.of(entry, f"{fields.path('through')}[{i}]")) for i, entry in entries
            )
        if fields.data.get("crop") is not None:
            given["crop"] = Crop.from_json(fields.fields("crop"))
        image = _made(ImageSpec, fields, given)
        if "channels" in fields.data:
            fields.integer("channels", image.channels, image.channels)
        return image


_REQUIRED = ("height", "width", "layout", "colour")
_KNOWN = (*_REQUIRED, "channels", "repeated", "grey", "interpolation", "through", "crop")


def _made(kind: Callable[..., _Part], fields: Fields, values: dict[str, Any]) -> _Part:
    """One of a kind from JSON values; its errors name the place in the document."""
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(fields.path(str(error))) from None


def _check_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {shown(value)}")


AREA = "opencv-area"
ATARI = ImageSpec(64, 64, "chw", "grey", repeated=True, interpolation=AREA, through=(Resize(84, 84, AREA),))
"""The episodes of Atari games that the published action models were trained on. The DQN Replay Dataset has 84x84 grey
images, made by ``AtariPreprocessing._pool_and_resize`` of google/dopamine (``dopamine/discrete_domains/atari_lib.py``);
``resize_img_episode`` and ``save_episodes`` of ml-jku/LRAM (``src/data/atari/download_atari_datasets.py``, called as
the README beside it says) made them 64x64 and repeated them."""
ATARI_EVALUATION = ImageSpec(64, 64, "chw", "grey", repeated=True, interpolation=AREA)
"""Atari games in the evaluation of the same code, which does not pass through 84x84: ``WarpFrameCustom`` of ml-jku/LRAM
(``src/envs/atari_utils.py``) with ``screen_size: 64`` and ``to_rgb: True`` (``configs/env_params``)."""
PROCGEN = ImageSpec(64, 64, "chw", "rgb")
"""Procgen's own ``rgb`` of 64x64, channels first: ``get_procgen_constructor`` of ml-jku/LRAM
(``src/envs/procgen_utils.py``). Nothing is resized."""

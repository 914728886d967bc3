"""From a camera's frame to the image a policy was trained on, bit for bit: :func:`prepare`. Free of torch.

It needs OpenCV or Pillow (the extra ``camera``) where a frame is resized, and numpy alone where none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.spec.images import (
    ATARI,
    ATARI_EVALUATION,
    MOST_SIDE,
    OPENCV,
    PROCGEN,
    ImageSpec,
    Resize,
)
from lram_export.spec.json_fields import shown

__all__ = ["ATARI", "ATARI_EVALUATION", "PROCGEN", "CameraNotInstalledError", "ImageSpec", "prepare"]

Pixels = NDArray[np.uint8]

FRAME_COLOURS = ("rgb", "bgr")
"""Order of the channels of a frame in colour."""
FRAME_LAYOUTS = {"hw": "hw", "hwc": "hwc", "chw": "chw", "nhw": "hw", "nhwc": "hwc", "nchw": "chw"}
"""Order of the dimensions of a frame, or of a batch of them (``n``) -> that of one."""
_CHANNELS = (1, 3, 4)
_WEIGHTS = {"opencv": (9798, 19235, 3735, 15), "pillow": (19595, 38470, 7471, 16)}
"""Of red, green and blue in a grey, and the bits to shift: see :data:`~lram_export.spec.images.GREYS`."""


class CameraNotInstalledError(UsageError):
    """What resizes images is missing from this environment."""


class HasImage(Protocol):
    """A field of an interface."""

    @property
    def image(self) -> ImageSpec | None:
        """What its image is; None where it has none."""


class HasObservation(Protocol):
    """What a policy says of its robot, :class:`lram_export.spec.interface.Interface`."""

    @property
    def observation(self) -> Mapping[str, HasImage]:
        """Its observations by name."""


def prepare(
    frame: Pixels,
    interface: ImageSpec | HasImage | HasObservation,
    *,
    colour: str = "rgb",
    layout: str | None = None,
    drop_alpha: bool = False,
) -> Pixels:
    """A camera's frame as the policy takes it: cropped, turned to grey, resized and laid out as in training.

    Args:
        frame: uint8 of any size: ``(H, W)`` or ``(H, W, 1)`` grey, ``(H, W, 3)`` in colour, channels last or first;
            or a batch ``(N, ...)`` of such. It is not changed.
        interface: what the image is; of an interface the one image that its observations have.
        colour: order of a colour frame's channels, ``rgb`` or ``bgr`` (a camera that OpenCV opened).
        layout: order of the frame's dimensions, such as ``hwc``, ``chw`` or ``nhwc``; None: by its shape, where that
            can be meant in one way only. A batch of grey frames without channels, ``nhw``, has to be told.
        drop_alpha: leave the fourth channel of a frame out, rather than refuse the frame.

    Returns:
        The image, a new uint8 array of the shape ``ImageSpec.shape``, behind ``N`` for a batch.

    Raises:
        ValueError: a frame, or a word, that this cannot be done to; it names the argument.
        CameraNotInstalledError: the frame has to be resized, and OpenCV or Pillow is missing.
    """
    image = image_of(interface)
    if colour not in FRAME_COLOURS:
        raise ValueError(f"colour: expected one of {', '.join(FRAME_COLOURS)}, got {shown(colour)}")
    told = _layout(frame, layout)
    batched = told.startswith("n")
    frames = frame if batched else frame[None]
    if FRAME_LAYOUTS[told] == "chw":
        frames = frames.transpose(0, 2, 3, 1)
    elif FRAME_LAYOUTS[told] == "hw":
        frames = frames[..., None]
    frames = _cropped(_with_known_channels(frames, image, drop_alpha), image)
    resizes = _resizes(image, frames.shape[1], frames.shape[2])
    prepared = np.empty((len(frames), *image.shape), np.uint8)
    for one, place in zip(frames, prepared, strict=True):
        _prepare_one(one, image, resizes, colour, place if image.layout == "hwc" else place.transpose(1, 2, 0))
    return prepared if batched else prepared[0]


def image_of(interface: object) -> ImageSpec:
    """The image that is meant by what :func:`prepare` is given; raises ValueError where it is not exactly one."""
    if isinstance(interface, ImageSpec):
        return interface
    if hasattr(interface, "image"):
        images = {"image": interface.image}
    else:
        observations = getattr(interface, "observation", None)
        if not isinstance(observations, Mapping):
            raise ValueError(f"interface: expected an interface or an ImageSpec, got {type(interface).__name__}")
        images = {name: getattr(field, "image", None) for name, field in observations.items()}
    found = {name: image for name, image in images.items() if image is not None}
    if not found:
        raise ValueError("interface: expected one that says what the image is, got one without an image")
    if len(found) > 1:
        first = next(iter(found))
        raise ValueError(
            f"interface: has the images {', '.join(found)}; give one of them, as interface.observation[{first!r}]"
        )
    (image,) = found.values()
    if not isinstance(image, ImageSpec):
        raise ValueError(f"interface: expected an ImageSpec, got {type(image).__name__}")
    return image


def _layout(frame: Pixels, layout: str | None) -> str:
    """The order of a frame's dimensions: what is told, or what its shape says; raises ValueError."""
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"frame: expected a numpy array, got {type(frame).__name__}")
    if frame.dtype != np.uint8:
        raise ValueError(f"frame: expected uint8, got {frame.dtype}")
    if layout is not None:
        if layout not in FRAME_LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(FRAME_LAYOUTS)}, got {shown(layout)}")
        if frame.ndim != len(layout):
            raise ValueError(f"frame: expected {layout}, {len(layout)} dimensions, got shape {frame.shape}")
        return layout
    if frame.ndim == 2:
        return "hw"
    possible = [
        candidate
        for candidate in FRAME_LAYOUTS
        if len(candidate) == frame.ndim and "c" in candidate and frame.shape[candidate.index("c")] in _CHANNELS
    ]
    if not possible:
        hint = "; a batch of grey frames needs layout='nhw'" if frame.ndim == 3 else ""
        raise ValueError(f"frame: expected (H, W), (H, W, 3), (3, H, W) or a batch, got shape {frame.shape}{hint}")
    if len(possible) > 1:
        raise ValueError(
            f"frame: shape {frame.shape} may be {' or '.join(possible)}; say which, layout='{possible[0]}'"
        )
    return possible[0]


def _with_known_channels(frames: Pixels, image: ImageSpec, drop_alpha: bool) -> Pixels:
    """Frames (N, H, W, C) of one channel or three, of which the image can be made; raises ValueError."""
    _, height, width, channels = frames.shape
    if channels not in _CHANNELS:
        raise ValueError(f"frame: expected 1 or 3 channels, got {channels}")
    if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise ValueError(f"frame: expected 1 to {MOST_SIDE} rows and columns, got {height} and {width}")
    if channels == 4 and not drop_alpha:
        raise ValueError("frame: expected 1 or 3 channels, got 4; drop_alpha=True leaves the fourth out")
    if channels == 1 and image.colour != "grey":
        raise ValueError(f"frame: expected 3 channels, since the policy's image is {image.colour}, got 1")
    return frames[..., :3]


def _cropped(frames: Pixels, image: ImageSpec) -> Pixels:
    """The part of frames (N, H, W, C) that is used; raises ValueError where that is not all there, or of no use."""
    crop, (height, width) = image.crop, frames.shape[1:3]
    if crop is not None:
        bottom, right = crop.top + crop.height, crop.left + crop.width
        if height < bottom or width < right:
            raise ValueError(
                f"frame: expected at least {bottom} x {right} pixels, for the crop, got {height} x {width}"
            )
        frames = frames[:, crop.top : bottom, crop.left : right]
        height, width = crop.height, crop.width
    if not image.resizes and (height, width) != (image.height, image.width):
        raise ValueError(
            f"frame: expected {image.height} x {image.width} pixels, since the policy's images were never resized, "
            f"got {height} x {width}"
        )
    return frames


def _resizes(image: ImageSpec, height: int, width: int) -> list[Resize]:
    """The sizes on the way that change a frame of this one: to its own size every one of the functions copies."""
    found = []
    for size in image.resizes:
        if (size.height, size.width) != (height, width):
            found.append(size)
        height, width = size.height, size.width
    return found


def _prepare_one(frame: Pixels, image: ImageSpec, resizes: list[Resize], colour: str, place: Pixels) -> None:
    """Write the image (H, W, C) of a cropped frame (H, W, 1 or 3) into its place."""
    if frame.shape[2] == 1:
        frame = frame[..., 0]
    elif image.colour == "grey":
        frame = _grey(frame, image, resizes, colour)
    for size in resizes:
        frame = _resized(frame, size)
    if image.colour == "grey":
        place[...] = frame[..., None]  # into one channel, or three
    else:
        place[...] = frame if image.colour == colour else frame[..., ::-1]


def _grey(frame: Pixels, image: ImageSpec, resizes: list[Resize], colour: str) -> Pixels:
    """(H, W, 3) -> (H, W), the same numbers as the library's own."""
    if image.grey == "opencv" and any(size.interpolation.startswith(OPENCV) for size in resizes):
        cv2 = _library("cv2")  # is needed anyway, and is faster
        code = cv2.COLOR_RGB2GRAY if colour == "rgb" else cv2.COLOR_BGR2GRAY
        found: Pixels = cv2.cvtColor(np.ascontiguousarray(frame), code)
        return found
    assert image.grey is not None
    red, green, blue, bits = _WEIGHTS[image.grey]
    first, last = (red, blue) if colour == "rgb" else (blue, red)
    wide = frame.astype(np.uint32)
    total = wide[..., 0] * first + wide[..., 1] * green + wide[..., 2] * last + (1 << (bits - 1))
    return np.asarray(total >> bits, np.uint8)


def _resized(frame: Pixels, size: Resize) -> Pixels:
    """(H, W) or (H, W, 3) in another size, by the function that the size names."""
    library, _, kind = size.interpolation.partition("-")
    name = kind.upper().replace("-", "_")
    frame = np.ascontiguousarray(frame)
    if f"{library}-" == OPENCV:
        cv2 = _library("cv2")
        found: Pixels = cv2.resize(frame, (size.width, size.height), interpolation=getattr(cv2, f"INTER_{name}"))
        return found
    pillow = _library("PIL.Image")
    resampling = getattr(pillow.Resampling, name)
    resized: Pixels = np.asarray(pillow.fromarray(frame).resize((size.width, size.height), resampling))
    return resized


def _library(module: str) -> Any:
    """The module of OpenCV or Pillow; raises CameraNotInstalledError."""
    try:
        return import_module(module)
    except ImportError as error:
        package = {"cv2": "OpenCV", "PIL.Image": "Pillow"}[module]
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise CameraNotInstalledError(
            f"resizing this policy's images needs {package}, which {reason}. "
            f"Install it with: pip install 'lram-export[camera]'"
        ) from None

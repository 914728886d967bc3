"""Pictures without a screen: MuJoCo draws through EGL or OSMesa, whichever library is there."""

from __future__ import annotations

import ctypes.util
import os

from lram_export.errors import UsageError

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def choose_backend() -> None:
    """Set ``MUJOCO_GL``, which MuJoCo reads when it is imported, unless the user or a display has decided.

    Raises:
        UsageError: neither library is there; names the Debian packages.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen in ("disable", "disabled"):
        raise UsageError(f"--video: MUJOCO_GL={chosen} forbids drawing; unset it, or set it to egl or osmesa")
    if chosen or os.environ.get("DISPLAY"):
        return
    for backend, library in _LIBRARIES.items():
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return
    raise UsageError(
        "--video: drawing without a screen needs EGL or OSMesa; on Debian: apt-get install libegl1 libgl1-mesa-dri "
        "(or libosmesa6)"
    )

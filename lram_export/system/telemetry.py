"""Libraries that report their use to their makers are told not to.

A robot's program writes no file into its home, opens no connection, and warns of neither, unless its owner asks it to.
"""

from __future__ import annotations

import os
import sys


def switch_off() -> None:
    """Tell the libraries that this process loads from now on; what the environment or the program decided stays."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO reports that it was imported; it goes without where the package that does so is not installed
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

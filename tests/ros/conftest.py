"""What the tests of the ROS packages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lram_export import ExportOptions, export_bundle
from tests.ros.arms import arm


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arm's."""
    path = tmp_path_factory.mktemp("ros") / "arm.lram"
    export_bundle(arm(), None, path, ExportOptions(("onnxruntime",), report=False, reference_steps=20))
    return path

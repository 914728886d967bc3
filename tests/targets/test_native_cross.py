"""The engine compiled for another processor by the lines of `docs/native.md`, which takes a minute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.targets.test_native_install import MISSING, follow_the_page, run

COMPILER = "aarch64-linux-gnu-g++"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING) or shutil.which(COMPILER) is None, reason=f"not installed: cmake or {COMPILER}"),
]


def test_the_library_is_for_arm(tmp_path: Path) -> None:
    follow_the_page("build/lram-arm", tmp_path / "prefix")
    (library,) = (p for p in (tmp_path / "prefix-arm").glob("lib*/**/liblram.so*") if not p.is_symlink())
    assert "AArch64" in run("readelf", "-h", library)

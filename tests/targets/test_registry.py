"""Targets that cannot be loaded: why, and the way out, in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lram_export.errors import TargetNotInstalledError
from lram_export.runtimes import RUNTIMES, unavailable
from lram_export.targets.registry import TargetModule, load_target
from tests.conftest import fail, succeed

COMPILE = "pip install -v --no-cache-dir --force-reinstall --no-deps lram-export"
NOT_COMPILED = (
    "target 'native' needs an engine that could not be compiled when lram-export was installed. Install a C++17 "
    f"compiler (on Debian: apt-get install g++), then compile it: {COMPILE} (its log says what else is wrong)"
)


def test_an_engine_that_was_not_compiled_names_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lram_export._native", None)
    assert unavailable("native") == NOT_COMPILED
    golden = ("tests/golden/state_m/model.zip", "--task", "metaworld/reach-v2")
    assert fail("export", *golden, "-o", tmp_path / "p.lram", "--target", "native") == (2, f"error: {NOT_COMPILED}")
    assert "none: the target native is not installed" in succeed("doctor").output


def test_a_library_that_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As one that was compiled for another system."""
    (tmp_path / "lram_broken.py").write_text("raise ImportError('libstdc++.so.6: GLIBCXX_9 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = {"native": TargetModule("lram_broken", ("numpy",), "native", compiled=True)}
    expected = (
        "target 'native' is installed, but does not load (ImportError: libstdc++.so.6: GLIBCXX_9 not found). Install "
        f"it anew: {COMPILE}"
    )
    with pytest.raises(TargetNotInstalledError) as caught:
        load_target(broken, "native")
    assert str(caught.value) == expected
    monkeypatch.setitem(RUNTIMES, "native", broken["native"])
    assert unavailable("native") == expected
    assert json.loads(succeed("doctor", "--json").output)["targets"]["native"]["why_not"] == expected

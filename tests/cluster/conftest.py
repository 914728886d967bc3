"""One cluster of this machine alone for all tests; commands in this process use it, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from lram_export.cluster.connection import Connection, connected
from tests.conftest import ExportFunction
from tests.rollouts.line import OPTIONS, LineEnv

LINE = "LramClusterLine-v0"
NAMES: dict[str, dict[str, Any]] = {
    LINE: {},
    "LramClusterBreaks-v0": {"breaks_at": 5, "only_seed": 2},
    "LramClusterDies-v0": {"breaks_at": 5, "only_seed": 2, "dies": True},
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Connection]:
    """Started once."""
    with connected() as connection:
        yield connection


@pytest.fixture(autouse=True, scope="session")
def line_environments() -> Iterator[None]:
    """Known in this process only; one breaks on seed 2, one kills its process."""
    for name, arguments in NAMES.items():
        gymnasium.register(name, entry_point=LineEnv, kwargs=arguments)
    yield
    for name in NAMES:
        gymnasium.registry.pop(name)


@pytest.fixture(scope="session")
def line(exported: ExportFunction) -> Path:
    """A bundle that fits them."""
    return exported("state_m", targets=("onnxruntime", "pytorch"), options=OPTIONS)

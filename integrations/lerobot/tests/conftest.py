"""Where the policies lie that are played."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--cases FOLDER``."""
    parser.addoption("--cases", type=Path, required=True)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Path:
    """The folder of policies' folders."""
    found = request.config.getoption("--cases")
    assert isinstance(found, Path)
    return found

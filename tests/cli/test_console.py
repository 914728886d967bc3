"""What tables look like where a terminal is narrow, and how numbers stand with their nouns."""

from __future__ import annotations

import io

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lram_export.cli import console
from lram_export.describe import counted
from tests.conftest import succeed

WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=14)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_console", lambda: Console(width=80, highlight=False))


def test_doctor_breaks_no_name(narrow: None) -> None:
    text = succeed("doctor").output
    for target in ("pytorch", "onnxruntime", "openvino", "native", "tensorrt", "tvm"):
        assert target in text
    assert all(len(line) <= 80 for line in text.splitlines())


@given(
    rows=st.lists(st.lists(WORD, min_size=6, max_size=6), min_size=1, max_size=12),
    width=st.integers(40, 120),
    many=st.booleans(),
)
@settings(max_examples=60, deadline=None, phases=(Phase.generate,))
def test_no_word_of_a_table_is_broken(rows: list[list[str]], width: int, many: bool) -> None:
    columns = ["target", "precision", "size", "platform", "error", "tools"]
    with pytest.MonkeyPatch.context() as patch:
        text = io.StringIO()
        shown = Console(width=width, highlight=False, file=text)
        patch.setattr(console, "_console", lambda: shown)
        console.print_table("a table", columns, rows, many=many)
    words = set(text.getvalue().replace("│", " ").replace("┃", " ").split())
    assert words >= {word for row in rows for word in row} | set(columns)


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (12345, "12,345 steps")])
def test_numbers_agree_with_their_nouns(number: int, text: str) -> None:
    assert counted(number, "step") == text

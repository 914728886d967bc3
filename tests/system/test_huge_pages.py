"""What is read of the system's huge pages, and what a user is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lram_export.system.huge_pages import HugePages, huge_pages

FOLDER = "sys/kernel/mm/transparent_hugepage"
THERE = {f"{FOLDER}/enabled": "always [madvise] never\n", f"{FOLDER}/hpage_pmd_size": "2097152\n"}
STATUS = {"proc/self/status": "Name:\tpython\nTHP_enabled:\t1\nThreads:\t1\n"}


def system(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (THERE | STATUS, HugePages("madvise", 2**21)),
        (THERE | {"proc/self/status": "Name:\tpython\n"}, HugePages("madvise", 2**21)),
        (THERE | {"proc/self/status": "Name:\tx\nTHP_enabled:\t0\n"}, HugePages("madvise", 2**21, disabled=True)),
        (THERE | STATUS | {f"{FOLDER}/enabled": "[always] madvise never"}, HugePages("always", 2**21)),
        (THERE | STATUS | {f"{FOLDER}/enabled": "always madvise [never]"}, HugePages("never", 2**21)),
        (THERE | STATUS | {f"{FOLDER}/hpage_pmd_size": "536870912"}, HugePages("madvise", 2**29)),
        (THERE | STATUS | {f"{FOLDER}/enabled": "madvise"}, None),
        (THERE | STATUS | {f"{FOLDER}/hpage_pmd_size": "large"}, None),
        (THERE, None),
        (STATUS, None),
        ({}, None),
    ],
)
def test_the_setting_and_the_size_are_read(files: dict[str, str], expected: HugePages | None, tmp_path: Path) -> None:
    assert huge_pages(system(tmp_path, files)) == expected


def test_a_user_is_told_what_to_do_where_there_are_none() -> None:
    assert str(HugePages("madvise", 2**21)) == "2 MiB, madvise: the target native asks for them"
    assert "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in str(HugePages("never", 2**21))
    assert "switched off for this process (PR_SET_THP_DISABLE)" in str(HugePages("madvise", 2**21, disabled=True))

"""What `make test-site` finds: on a site of three pages, of which one is as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import CHROMIUM
from tests.site import broken_links, odd_pages

PAGE = """<!doctype html><html><head><link rel="icon" href="data:,"></head><body>
<script>document.body.dataset.theme = localStorage.theme</script><h1 id="top">A page</h1>
<p>It has some text, as pages of a documentation have, so that it is not taken for empty.</p>{}</body></html>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    pages = {
        "good": '<a href="bad.html#top">a</a><a href="#top">b</a><a href="https://example.org/x">c</a>',
        "bad": '<a href="none.html">a</a><a href="good.html#bottom">b</a><img src="none.png">',
        "wide": '<div style="width: 1100px">wide</div><script>console.error("a problem")</script>',
    }
    for name, inside in pages.items():
        (tmp_path / f"{name}.html").write_text(PAGE.format(inside))
    return tmp_path


def test_links_that_lead_nowhere_are_named(site: Path) -> None:
    assert sorted(broken_links(site)) == [
        "bad.html: good.html#bottom: nothing on that page is called so",
        "bad.html: none.html: no such file",
        "bad.html: none.png: no such file",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_finds_what_it_cannot_load_what_is_too_wide_and_what_the_console_says(site: Path) -> None:
    found = list(odd_pages(site))
    assert [line for line in found if "scrolls" in line] == [
        "400 pixels, dark: wide.html: scrolls sideways, 1108 pixels wide"
    ]
    assert [line.rpartition("/")[2] for line in found if "no picture" in line] == ["none.png"] * 2
    assert sum("a problem" in line for line in found) == 2
    assert not [line for line in found if "not drawn" in line or "good.html" in line]

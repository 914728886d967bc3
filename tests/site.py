"""The documentation's site as its readers meet it: ``python -m tests.site build/docs`` (`make test-site`).

Every link within it leads to a file and a heading that are there. Every page, in headless Chromium, 1280 pixels wide
and light, 400 and dark: nothing in the console, no picture that is missing, no page that scrolls sideways.
"""

from __future__ import annotations

import html
import json
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from tests.browser import CHROMIUM, opened

LOOKS = ((1280, "light"), (400, "dark"))
"""Pixels across and theme: both of either are seen once."""
HEIGHT = 900
FRAMES = "__frames__.html"
"""The page with all the others in it; the server makes it."""

LOOK = """
const found = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  found.push({
    name: frame.dataset.name, width: frame.clientWidth, wide: root.scrollWidth,
    text: page.body.innerText.length, theme: page.body.dataset.theme,
    missing: [...page.images].filter(image => !image.complete || image.naturalWidth === 0).map(image => image.src),
  });
}
document.body.innerHTML = "<pre id=found>" + JSON.stringify(found).replace(/</g, "&lt;") + "</pre>";
"""


class Links(HTMLParser):
    """Where a page leads to, and what can be led to on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """See the standard library."""
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(folder: Path) -> Iterator[str]:
    """Every link within the site that leads nowhere."""
    pages = {page.relative_to(folder).as_posix(): Links(page.read_text("utf-8")) for page in folder.rglob("*.html")}
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(urljoin(name, link))
            target, anchor = unquote(parts.path), unquote(parts.fragment)
            if parts.scheme or parts.netloc or (target == name and not anchor):
                continue
            if not (folder / target).is_file():
                yield f"{name}: {link}: no such file"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{name}: {link}: nothing on that page is called so"


class Site(SimpleHTTPRequestHandler):
    """The folder, and a page of frames; says nothing of what it is asked."""

    frames = ""

    def do_GET(self) -> None:
        """See the standard library."""
        if FRAMES not in self.path:
            return super().do_GET()
        content = self.frames.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Says nothing of a browser that has gone before it had all."""

    def handle_error(self, *_: Any) -> None:
        """See the standard library."""
        if not isinstance(sys.exception(), ConnectionError):
            raise


def frames(names: Sequence[str], width: int, theme: str) -> str:
    """A page with all others as frames of a width; what is found is in it when all have loaded."""
    inside = "".join(
        f'<iframe data-name="{html.escape(name)}" src="{html.escape(name)}" width="{width}" height="{HEIGHT}"></iframe>'
        for name in names
    )
    return (
        '<!doctype html><title>frames</title><link rel="icon" href="data:,"><style>iframe{border:0}</style>'
        f'<body><script>localStorage.theme = "{theme}"</script>'
        f"{inside}<script>addEventListener('load', () => {{{LOOK}}})</script></body>"
    )


def seen(folder: Path, names: Sequence[str], width: int, theme: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What the browser finds on every page, and what its console says."""
    handler = type("Framed", (Site,), {"frames": frames(names, width, theme)})
    with (
        Server(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{FRAMES}"
        done = opened(address, Path(profile), f"--window-size={width + 40},{HEIGHT}", "--dump-dom")
        server.shutdown()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser drew nothing:\n{done.stdout[:500]}\n{done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def odd_pages(folder: Path) -> Iterator[str]:
    """What a browser finds wrong."""
    names = sorted(page.relative_to(folder).as_posix() for page in folder.rglob("*.html"))
    for width, theme in LOOKS:
        pages, console = seen(folder, names, width, theme)
        where = f"{width} pixels, {theme}"
        yield from (f"{where}: {line}" for line in console)
        assert [page["name"] for page in pages] == names
        for page in pages:
            if page["text"] < 50 or page["theme"] != theme:
                yield f"{where}: {page['name']}: not drawn as a page of this site: {page}"
            if page["wide"] > page["width"]:
                yield f"{where}: {page['name']}: scrolls sideways, {page['wide']} pixels wide"
            yield from (f"{where}: {page['name']}: no picture {source}" for source in page["missing"])


def main(folder: Path) -> None:
    """Say all that is wrong; ends with 1 if anything is."""
    assert (folder / "index.html").is_file(), f"{folder}: no site; make docs"
    wrong = list(broken_links(folder))
    if CHROMIUM is None:
        print("no Chromium here: links were looked at, and nothing else", file=sys.stderr)
    else:
        wrong += odd_pages(folder)
    print("\n".join(wrong) or "every page is as it should be")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

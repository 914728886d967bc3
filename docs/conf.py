"""The documentation as a site: `make docs`. The pages are the ones that are read in the repository, as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lram_export.version import __version__

DOCS = Path(__file__).parent

project = "lram-export"
copyright = "the authors of lram-export"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
extensions += ["sphinx_gallery.gen_gallery"]
exclude_patterns = ["conf.py", "gallery/GALLERY_HEADER.rst"]

# scripts are run; one that fails fails the site, and one that has not changed since is not run again
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "ExampleTitleSortKey",
    "image_srcset": ["2x"],
    "notebook_extensions": set(),
    "capture_repr": (),
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 3600,  # seconds; how busy the machine was is nobody's concern
}

# headings are linked to as the repository's host names them
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring, napoleon_numpy_docstring = True, False

html_theme = "furo"
html_title = f"lram-export {release}"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"robot\$ |jetson\$ |\$ "
copybutton_prompt_is_regexp = True

OUTSIDE = {
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changes.md",
    "../examples/gallery": "gallery/index.rst",
}
"""Links to what lies beside this folder -> the page of the site that it is."""


def _inside(_app: Any, _page: str, content: list[str]) -> None:
    """Links that leave the folder, led to a page where there is one.

    A file can be had; a folder, or another text, is named and no more.
    """

    def led(match: re.Match[str]) -> str:
        text, path, anchor = match["text"], match["path"], match["anchor"] or ""
        if path in OUTSIDE:
            return f"[{text}]({OUTSIDE[path]}{anchor})"
        known = (DOCS / path).is_file() and not path.endswith(".md")
        return match[0] if known else text

    content[0] = re.sub(r"\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]*)(?P<anchor>#[^)\s]*)?\)", led, content[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _inside)

"""Do a tag, the version in every file that says it, and the changelog agree? `python -m wheels.version v0.2.0`.

The changelog is one of keepachangelog.com: a heading for each version, and in its section what changed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from wheels.matrix import WheelError

ROOT = Path(__file__).parent.parent
CHANGELOG = "CHANGELOG.md"
SAYS_VERSION = {
    "pyproject.toml": r'^version = "(.+)"$',
    "lram_export/version.py": r'^__version__ = "(.+)"$',
    "kernels/native/CMakeLists.txt": r"^project\(lram VERSION (\S+) ",
    "kernels/native/include/lram.h": r'^#define LRAM_VERSION "(.+?)"',
    "ros/lram_ros/setup.py": r'^    version="(.+)",$',
    "ros/lram_ros/package.xml": r"^  <version>(.+)</version>$",
    "ros/lram_ros_control/package.xml": r"^  <version>(.+)</version>$",
}
"""File -> how it says the version."""
UNRELEASED = "Unreleased"
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; says in one line what is wrong."""
    parser = argparse.ArgumentParser(prog="version", description="Check that a release says one version everywhere.")
    parser.add_argument("tag", help="of the release, e.g. v0.2.0")
    parser.add_argument("--notes", type=Path, help="write the version's section of the changelog there")
    options = parser.parse_args(arguments)
    try:
        notes = released(options.tag, ROOT)
    except WheelError as error:
        print(f"version: {error}", file=sys.stderr)
        return 1
    if options.notes is not None:
        options.notes.write_text(notes, encoding="utf-8")
    return 0


def released(tag: str, root: Path) -> str:
    """What the changelog says of a tag's version, which all files say; raises WheelError."""
    version = version_of(root)
    if tag != f"v{version}":
        raise WheelError(f"the tag is {tag}, the version {version}")
    found = sections(root)
    if not found.get(version):
        raise WheelError(f"{CHANGELOG}: expected a section '## [{version}] - YEAR-MONTH-DAY'")
    if found.get(UNRELEASED):
        raise WheelError(f"{CHANGELOG}: something is still under [{UNRELEASED}], which belongs to {version} or later")
    return found[version]


def version_of(root: Path) -> str:
    """The version, which every file says alike; raises WheelError naming one that does not."""
    said = {name: _said(root / name, pattern) for name, pattern in SAYS_VERSION.items()}
    expected = said["pyproject.toml"]
    for name, version in said.items():
        if version != expected:
            raise WheelError(f"{name}: says {version}, pyproject.toml {expected}")
    return expected


def _said(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise WheelError(f"{path}: says no version as {pattern}")
    return found[1]


def sections(root: Path) -> dict[str, str]:
    """Version -> its section of the changelog; raises WheelError for one without a date, or headings of no kind."""
    text = (root / CHANGELOG).read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    if len(headings) != len(re.findall("^## ", text, re.MULTILINE)):
        raise WheelError(f"{CHANGELOG}: a heading is neither '## [{UNRELEASED}]' nor '## [VERSION] - YEAR-MONTH-DAY'")
    found = {}
    for heading, after in zip(headings, [*headings[1:], None], strict=True):
        section = text[heading.end() : None if after is None else after.start()].strip()
        if (heading["date"] is None) != (heading["version"] == UNRELEASED):
            raise WheelError(f"{CHANGELOG}: {heading['version']}: expected a date, but for [{UNRELEASED}]")
        for kind in re.findall(r"^### (.*)$", section, re.MULTILINE):
            if kind not in KINDS:
                raise WheelError(f"{CHANGELOG}: {heading['version']}: '{kind}' is none of {', '.join(KINDS)}")
        found[heading["version"]] = section
    return found


if __name__ == "__main__":
    sys.exit(main())

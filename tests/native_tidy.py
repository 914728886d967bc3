"""clang-tidy on files of a build, less those in which it found nothing before.

    python -m tests.native_tidy BUILD FILE... [--jobs N]

A file is known by its text and that of everything of ours that it includes, the command that compiles it, the checks,
and the versions of clang-tidy and of the compiler, whose headers it reads. What nothing was found in is remembered in
`~/.cache/lram-export/tidy` (or under XDG_CACHE_HOME), so that a fresh clone of unchanged files takes seconds and not
minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lram-export" / "tidy"
TIDY = Path(sys.executable).with_name("clang-tidy")
GCC_ALONE = ("-fno-tree-pre",)
"""What no Clang knows."""


def commands(build: Path) -> dict[Path, tuple[list[str], Path]]:
    """File -> the command that compiles it, and where."""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return {
        Path(entry["file"]).resolve(): (shlex.split(entry["command"]), Path(entry["directory"])) for entry in entries
    }


def seen_of(command: Sequence[str], folder: Path, checks: str, root: Path) -> str:
    """What tells a file from all others, wherever the checkout lies.

    Args:
        command: what compiles it, in ``folder``.
        checks: what is looked for, and by which versions.
        root: of the checkout.
    """
    compiler = list(command[1:] if Path(command[0]).name == "ccache" else command)
    output = compiler.index("-o")
    del compiler[output : output + 2]
    compiler.remove("-c")
    rule = subprocess.run([*compiler, "-MM"], cwd=folder, capture_output=True, text=True, check=True).stdout
    read = [Path(name) for name in rule.replace("\\\n", " ").partition(":")[2].split()]
    digest = hashlib.sha256(json.dumps([checks, [word.replace(str(root), "") for word in compiler]]).encode())
    for path in read:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def tidy(file: Path, build: Path, seen: str) -> tuple[bool, str]:
    """Whether nothing was found, and what was said."""
    if (CACHE / seen).exists():
        return True, ""
    left_out = [f"--removed-arg={word}" for word in GCC_ALONE]
    done = subprocess.run([TIDY, "-p", build, "--quiet", *left_out, file], capture_output=True, text=True, check=False)
    if done.returncode == 0 and not done.stdout.strip():
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / seen).touch()
    return done.returncode == 0, done.stdout + (done.stderr if done.returncode else "")


def output_of(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """The command line; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="a folder of CMake, with compile_commands.json")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    options = parser.parse_args()
    known, root = commands(options.build), Path.cwd()
    compiler = next(iter(known.values()))[0]
    versions = output_of(TIDY, "--version") + output_of(*compiler[: 2 if "ccache" in compiler[0] else 1], "--version")

    def check(file: Path) -> tuple[bool, str]:
        command, folder = known[file.resolve()]
        checks = versions + output_of(TIDY, "-p", options.build, "--dump-config", file)
        return tidy(file, options.build, seen_of(command, folder, checks, root))

    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(check, options.files))
    print("".join(said for _, said in found), end="")
    return 0 if all(clean for clean, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Finds the Pythons of this machine, and checks that the headers of each fit what is compiled with them.

A wheel for aarch64 is compiled with the headers of the x86-64 Python of the same minor version. They are the same files
but for pyconfig.h, and of it Debian's builds of 3.11 for the two differ in four macros: two tell how an x87 unit is set
and one whether `wchar_t` is signed, which no header asks about on a 64-bit machine that is not compiling Python itself,
and one names the support tier. That all others hold on the other machine is checked by its compiler: fits.cpp.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from wheels.matrix import Build, WheelError

FITS = Path(__file__).parent / "fits.cpp"


def find_python(version: str) -> Path:
    """An interpreter of that minor version (``3.10``): on the path, or of pyenv; raises WheelError if there is none."""
    for candidate in candidates(version):
        # pyenv has a file of that name on the path that only says that it is not chosen
        done = subprocess.run([str(candidate), "-c", PRINT_VERSION], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    raise WheelError(f"no Python {version} here: put python{version} on the path, with its headers and venv")


PRINT_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def candidates(version: str) -> Iterator[Path]:
    """Where it may be."""
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def find_headers(python: Path, version: str) -> Path:
    """The folder with its Python.h; raises WheelError if there is none, or one of another version."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('include'))"]
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    found = version_of(folder)
    if found != version:
        raise WheelError(f"{folder}: expected the headers of Python {version}, found {found or 'none'}")
    return folder


def version_of(headers: Path) -> str | None:
    """The minor version that headers say they are of, ``3.10``; None if they are none."""
    try:
        text = (headers / "patchlevel.h").read_text(encoding="utf-8")
    except OSError:
        return None
    parts = [re.search(rf"^#define\s+PY_{part}_VERSION\s+(\d+)", text, re.MULTILINE) for part in ("MAJOR", "MINOR")]
    return ".".join(part[1] for part in parts if part) if all(parts) else None


def check_headers(headers: Path, build: Build, compiler: Path, environment: dict[str, str]) -> None:
    """Let the compiler for a machine check that what pyconfig.h says holds there; raises WheelError."""
    minor = f"-DLRAM_PYTHON_MINOR={build.python.partition('.')[2]}"
    with TemporaryDirectory() as folder:  # zig fails where it is asked for the syntax alone
        options = [f"-I{headers}", "-std=c++17", "-c", str(FITS), "-o", str(Path(folder) / "fits.o")]
        command = [str(compiler), f"--target={build.library.target}", minor, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
        raise WheelError(f"{headers}: do not fit {build.machine}: {errors[0] if errors else 'the compiler failed'}")

"""Looks at what is finished: is it what its name says, and fit for other machines than the one it was built on?"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from wheels import licences
from wheels.matrix import KERNELS, Build, Library, WheelError

LIBC = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")
"""What the library may need: parts of the C library, which every machine has."""
OLDEST = (2, 17)
"""The glibc that it may not be newer than."""


def check_wheel(path: Path, build: Build, places: Sequence[Path]) -> None:
    """Raises WheelError if it is not that build's, lacks kernels or licences, is not stripped, or names a place here.

    auditwheel has looked at the symbols and libraries it needs, when it gave the wheel its platform.
    """
    for problem in problems(path, build, places):
        raise WheelError(f"{path.name}: {problem}")


def check_library(installed: Path, library: Library, places: Sequence[Path]) -> None:
    """Raises WheelError if the shared library that was installed there is not fit for every such machine."""
    found = [path for path in installed.glob("lib/liblram.so.*") if not path.is_symlink()]
    if len(found) != 1:
        raise WheelError(f"{library}: expected one lib/liblram.so.VERSION, found {len(found)}")
    content = found[0].read_bytes()
    for problem in (*problems_of_engine(content, library.machine), *problems_of_links(content)):
        raise WheelError(f"{library}: {problem}")
    for path in installed.rglob("*"):
        for problem in named(path.name, path.read_bytes() if path.is_file() else b"", places):
            raise WheelError(f"{library}: {problem}")


def problems(path: Path, build: Build, places: Sequence[Path]) -> Iterator[str]:
    """What is wrong with it, in words."""
    expected = rf"lram_export-[^-]+-{build.tags}-.*\b{build.policy}\b.*\.whl"
    if not re.fullmatch(expected, path.name):
        yield f"expected a name with {build}"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    compiled = [name for name in content if name.endswith(".so") or ".so." in name]
    engine = f"lram_export/_native{build.suffix}"
    if compiled != [engine]:
        yield f"expected {engine} and no other library, found {', '.join(compiled) or 'none'}"
        return
    yield from problems_of_engine(content[engine], build.machine)
    for licence in (*licences.ZIG, *licences.PYTHON):
        if not [name for name in content if name.endswith(f".dist-info/licenses/{licence}.txt") and content[name]]:
            yield f"the licence of {licence} is not in it"
    for name, data in content.items():
        yield from named(name, data, places)


def named(name: str, content: bytes, places: Sequence[Path]) -> Iterator[str]:
    """Which folders of this machine a file names."""
    for place in places:
        if len(place.parts) > 1 and str(place).encode() in content:  # a home of / is in everything
            yield f"{name} names {place}, a place here"


def problems_of_engine(library: bytes, machine: str) -> Iterator[str]:
    """What is wrong with the engine."""
    from elftools.elf.elffile import ELFFile  # of auditwheel, in the environment that builds

    elf = ELFFile(io.BytesIO(library))
    found = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf["e_machine"], elf["e_machine"])
    if found != machine:
        yield f"its engine is for {found}"
    left = [s.name for s in elf.iter_sections() if s.name == ".symtab" or s.name.startswith(".debug")]
    if left:
        yield f"its engine is not stripped: {', '.join(left)}"
    missing = [name for name in KERNELS[machine] if name.encode() + b"\0" not in library]
    if missing:
        yield f"its engine lacks the kernels {', '.join(missing)}"


def problems_of_links(library: bytes) -> Iterator[str]:
    """What it needs that not every machine has, and what it shows that is not of lram.h."""
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(library))
    needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
    yield from (f"it needs {name}" for name in needed if name not in LIBC)
    versions = {
        version.name for _, used in elf.get_section_by_name(".gnu.version_r").iter_versions() for version in used
    }
    newer = [v for v in versions if v.startswith("GLIBC_") and _version(v) > OLDEST]
    yield from (f"it needs {version}" for version in newer)
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    shown = [s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] != "STB_LOCAL"]
    yield from (f"it shows {name}" for name in shown if not name.startswith("lram_"))


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.removeprefix("GLIBC_").split("."))

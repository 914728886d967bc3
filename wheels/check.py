"""Looks at a finished wheel: is it what its name says, and fit for other machines than the one it was built on?"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from wheels.matrix import KERNELS, Build, WheelError


def check_wheel(path: Path, build: Build, places: Sequence[Path]) -> None:
    """Raises WheelError if it is not that build's, lacks kernels, is not stripped, or names a place here.

    auditwheel has looked at the symbols and libraries it needs, when it gave the wheel its platform.
    """
    for problem in problems(path, build, places):
        raise WheelError(f"{path.name}: {problem}")


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
    yield from problems_of_engine(content[engine], build)
    for name, data in content.items():
        for place in places:
            if len(place.parts) > 1 and str(place).encode() in data:  # a home of / is in everything
                yield f"{name} names {place}, a place here"


def problems_of_engine(library: bytes, build: Build) -> Iterator[str]:
    """What is wrong with the engine."""
    from elftools.elf.elffile import ELFFile  # of auditwheel, in the environment that builds

    elf = ELFFile(io.BytesIO(library))
    machine = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf["e_machine"], elf["e_machine"])
    if machine != build.machine:
        yield f"its engine is for {machine}"
    left = [s.name for s in elf.iter_sections() if s.name == ".symtab" or s.name.startswith(".debug")]
    if left:
        yield f"its engine is not stripped: {', '.join(left)}"
    missing = [name for name in KERNELS[build.machine] if name.encode() + b"\0" not in library]
    if missing:
        yield f"its engine lacks the kernels {', '.join(missing)}"

"""Packs the installed lram-export into a wheel, so that a kit needs no index that has this package.

Without the compiled engine of the target `native` it is pure Python, for any machine; with it, for this Python and kind
of processor. Of the wheels that were built for other machines the one is found that serves a robot.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from lram_export.deploy.robot import Robot, glibcxx_of_abi
from lram_export.errors import UsageError

PACKAGES = ("lram_export", "lram_export.exporters", "lram_export.runtimes", "lram_export.kernels.tvm")
"""They lie side by side in a checkout and inside each other in an installation."""

LEFT_OUT = {".so", ".pyd", ".pyc", ".cpp", ".h", ".a"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file


ENGINE = "lram_export._native"
"""The compiled engine's module."""

PURE = "py3-none-any"


@dataclass(frozen=True)
class WheelTags:
    """What a wheel's file name says it runs on; ``cp311``, ``cp311``, ``linux_x86_64``; ``py3``, ``none``, ``any``."""

    python: str
    abi: str
    platform: str

    @staticmethod
    def of(path: Path) -> WheelTags:
        """Read them from ``NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl``; raises UsageError for another name."""
        parts = path.name.removesuffix(".whl").split("-")
        if path.suffix != ".whl" or len(parts) not in (5, 6):
            raise UsageError(
                f"{path}: expected the name of a wheel, NAME-VERSION-PYTHON-ABI-PLATFORM.whl, got '{path.name}'"
            )
        return WheelTags(*parts[-3:])

    def __str__(self) -> str:
        return f"{self.python}-{self.abi}-{self.platform}"

    @property
    def version(self) -> str:
        """The Python it is for, ``3.11``; ``3.12+`` for that and later ones; ``3`` for any."""
        found = re.fullmatch(r"cp(\d)(\d+)", self.python)
        return f"{found[1]}.{found[2]}{'+' if self.abi == 'abi3' else ''}" if found else "3"

    @property
    def machine(self) -> str:
        """What `uname -m` says where it runs: the end of the platform; ``any`` for all."""
        return next((m for m in ("x86_64", "aarch64", "armv7l") if self.platform.endswith(m)), self.platform)

    def serve(self, robot: Robot) -> bool:
        """Whether that robot can install it."""
        if self.platform != "any" and not set(self.platform.split(".")) & set(robot.platforms):
            return False
        if self.abi == "abi3":
            return _minor(self.version) <= _minor(robot.python)
        # cp313t, for one, is the free-threaded 3.13, which loads nothing of the plain one, nor that of it
        return self.python in ("py3", robot.interpreter) and self.abi in ("none", robot.interpreter)

    @property
    def promises(self) -> bool:
        """Whether it says which C library is enough, or needs none."""
        return not self.platform.startswith("linux_")


def _minor(version: str) -> int:
    return int(version.rstrip("+").partition(".")[2] or 0)


def has_engine() -> bool:
    """Whether the engine of the target `native` is installed here, so that it can be packed."""
    return find_spec(ENGINE) is not None


def find_wheel(folder: Path, robot: Robot, *, engine: bool) -> Path:
    """The wheel of this package for a robot, among those that `make wheels` or `pip wheel` wrote into a folder.

    One that promises to run elsewhere goes before one that was built on some machine, which may need newer libraries
    than the robot has; of several such, one for its very Python before one of the stable ABI, and that before a pure
    one.

    Raises:
        UsageError: there is none for it of this version, or none with the engine where it is asked for.
    """
    version = distribution("lram-export").version
    if not folder.is_dir():
        raise UsageError(f"--dist: {folder}: no such folder; make wheels writes one")
    found = {path: WheelTags.of(path) for path in sorted(folder.glob(f"lram_export-{version}-*.whl"))}
    serving = {path: tags for path, tags in found.items() if tags.serve(robot) and (tags.abi != "none" or not engine)}
    if not serving:
        what = f"lram-export {version}{' with the engine of target native' if engine else ''}"
        raise UsageError(f"--dist: {folder}: no wheel of {what} for {robot} in it; make wheels builds them")

    def rank(path: Path) -> tuple[bool, bool, bool]:
        tags = found[path]
        return tags.promises, tags.abi == robot.interpreter, tags.abi == "abi3"

    best = max(serving, key=rank)
    check_wheel(best, engine=engine)
    return best


def check_wheel(path: Path, *, engine: bool) -> None:
    """Raises UsageError: no wheel, of another package or version, or without the engine where it is asked for."""
    version = distribution("lram-export").version
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--dist: {path}: not a wheel ({error})") from None
    if f"lram_export-{version}.dist-info/METADATA" not in names:
        raise UsageError(f"--dist: {path}: expected a wheel of lram-export {version}, the version that packs the kit")
    if engine and not any(re.fullmatch(r"lram_export/_native\.[^/]*so", name) for name in names):
        raise UsageError(f"--dist: {path}: the engine of target 'native' is not in it (lram_export/_native.*.so)")


@dataclass(frozen=True)
class Needs:
    """What is compiled in a wheel asks of the robot.

    Attributes:
        glibc: the oldest C library that is enough, ``2.34``; "": any, or none.
        glibcxx: the same of GCC's C++ library, by the symbols it has, ``3.4.30``.
    """

    glibc: str
    glibcxx: str


def engine_needs(wheel: Path) -> Needs:
    """What a wheel's engine needs; nothing where the wheel is pure.

    It is asked of the file, since a wheel that was not built to run elsewhere has no promise in its name. The versions
    stand in a shared object's table of strings, each on its own. Raises UsageError for a damaged wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            compiled = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"--dist: {wheel}: damaged ({error}); make wheels builds it") from None

    def newest(prefix: bytes) -> int:
        found = (re.findall(rb"\0" + prefix + rb"(\d+)(?:\.\d+)?(?=\0)", each) for each in compiled)
        return max((int(number) for numbers in found for number in numbers), default=0)

    glibc = newest(rb"GLIBC_2\.")
    glibcxx = max(newest(rb"GLIBCXX_3\.4\."), glibcxx_of_abi(newest(rb"CXXABI_1\.3\.")))
    return Needs(f"2.{glibc}" if glibc else "", f"3.4.{glibcxx}" if glibcxx else "")


def pack_wheel(directory: Path, *, engine: bool = False) -> Path:
    """Write ``lram_export-VERSION-TAGS.whl`` into a folder and return its path; with the ``engine`` of `native` for
    this Python and kind of processor, without for any."""
    package = distribution("lram-export")
    stem = f"lram_export-{package.version}"
    tag = str(own_tags()) if engine else PURE
    path = directory / f"{stem}-{tag}.whl"
    pure = "false" if engine else "true"
    tags = f"Wheel-Version: 1.0\nGenerator: lram-export\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    entry_points = "[console_scripts]\nlram-export = lram_export.entry:main\n"
    information = f"{stem}.dist-info"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")

        for name, file in sorted([*_files(), *(_engine_file() if engine else ())]):
            add(name, file.read_bytes())
        add(f"{information}/METADATA", (package.read_text("METADATA") or "").encode())
        add(f"{information}/WHEEL", tags.encode())
        add(f"{information}/entry_points.txt", entry_points.encode())
        record.append(f"{information}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{information}/RECORD", _EPOCH), "\n".join(record) + "\n")
    return path


def own_tags() -> WheelTags:
    """Those of the engine that is installed here."""
    python = f"cp{sysconfig.get_config_var('py_version_nodot')}"
    return WheelTags(python, python + sys.abiflags, re.sub("[-.]", "_", sysconfig.get_platform()))


def _engine_file() -> Iterator[tuple[str, Path]]:
    spec = find_spec(ENGINE)
    assert spec is not None and spec.origin is not None
    yield f"lram_export/{Path(spec.origin).name}", Path(spec.origin)


def _files() -> Iterator[tuple[str, Path]]:
    """Name inside the wheel and place of every file."""
    seen = set()
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for file in root.rglob("*"):
            name = f"{package.replace('.', '/')}/{file.relative_to(root).as_posix()}"
            if file.is_file() and file.suffix not in LEFT_OUT and "__pycache__" not in file.parts and name not in seen:
                seen.add(name)
                yield name, file

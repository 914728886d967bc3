"""Packs the installed lram-export into a pure Python wheel, so that a kit needs no index that has this package.

The compiled engine of the target `native` is left out: it is for this machine's processor.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("lram_export", "lram_export.exporters", "lram_export.runtimes")
"""They lie side by side in a checkout and inside each other in an installation."""

LEFT_OUT = {".so", ".pyd", ".pyc", ".cpp", ".h", ".a"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file


def pack_wheel(directory: Path) -> Path:
    """Write ``lram_export-VERSION-py3-none-any.whl`` into a folder and return its path."""
    package = distribution("lram-export")
    stem = f"lram_export-{package.version}"
    path = directory / f"{stem}-py3-none-any.whl"
    tags = "Wheel-Version: 1.0\nGenerator: lram-export\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
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

        for name, file in sorted(_files()):
            add(name, file.read_bytes())
        add(f"{information}/METADATA", (package.read_text("METADATA") or "").encode())
        add(f"{information}/WHEEL", tags.encode())
        add(f"{information}/entry_points.txt", entry_points.encode())
        record.append(f"{information}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{information}/RECORD", _EPOCH), "\n".join(record) + "\n")
    return path


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

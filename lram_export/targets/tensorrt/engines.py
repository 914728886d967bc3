"""Engines that were compiled on this machine, kept next to the bundle they belong to, or, where nothing can be written
there, in the user's cache folder.

Beside ``arm.lram`` they lie in ``arm.engines/``, one ``.plan`` with one ``.json`` each, named after TensorRT's version,
the GPU's compute capability, the precision and the artifact they were built from: none of the four can change
without another engine being asked for. One for another number of rows than the bundle was exported for is named after
that, too. The ``.json`` is written last, with size and SHA-256 of the plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import BUNDLE_SUFFIX
from lram_export.errors import BundleError, LramError
from lram_export.hub.cache import blobs_of
from lram_export.spec.json_fields import read_json
from lram_export.system.cache import CompileCache
from lram_export.system.files import atomic_file, file_sha256

FOLDER_SUFFIX = ".engines"


@dataclass(frozen=True)
class EngineKey:
    """What an engine is tied to; ``artifact`` is the digest of the files it was built from, ``rows`` what it is for,
    None: those the artifact was exported for."""

    toolkit: str
    version: str
    compute_capability: str
    precision: str
    artifact: str
    rows: int | None = None

    @property
    def machine(self) -> str:
        """The part that is the machine's: ``tensorrt-10.3.0-sm87``."""
        return f"{self.toolkit}-{self.version}-sm{self.compute_capability.replace('.', '')}"

    @property
    def name(self) -> str:
        """File name without ending: ``tensorrt-10.3.0-sm87-fp16-1a2b3c4d``, or ``...-1a2b3c4d-16rows``."""
        rows = "" if self.rows is None else f"-{self.rows}rows"
        return f"{self.machine}-{self.precision}-{self.artifact[:8]}{rows}"


@dataclass(frozen=True)
class EngineStore:
    """The engines of one bundle."""

    folder: Path

    @staticmethod
    def of(bundle: Path) -> EngineStore:
        """The store next to a bundle's folder; of one in a read-only place that has none, or in the cache of Hugging
        Face, whose folders are its own, the store in our cache."""
        bundle = bundle.absolute()
        beside = bundle.with_name(bundle.name.removesuffix(BUNDLE_SUFFIX) + FOLDER_SUFFIX)
        kept = CompileCache.of("tensorrt").folder
        ours = blobs_of(bundle) is None and os.access(beside.parent, os.W_OK)
        if kept is None or beside.is_dir() or ours:
            return EngineStore(beside)
        place = hashlib.sha256(os.fsencode(bundle)).hexdigest()
        return EngineStore(kept / f"{beside.stem}-{place[:16]}{FOLDER_SUFFIX}")

    def create(self) -> None:
        """Make the folder, where there is none; raises LramError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LramError(f"{self.folder}: cannot be created: {error.strerror}") from None

    def path(self, key: EngineKey) -> Path:
        """Where an engine is, or would be."""
        return self.folder / f"{key.name}.plan"

    def find(self, key: EngineKey) -> Path | None:
        """The checked plan of a key, or None if it was not compiled here.

        Raises:
            BundleError: the plan is truncated or altered.
        """
        plan, description = self.path(key), self._description(key)
        if not description.is_file():
            return None
        try:
            entry = read_json(description)
            expected = (entry["size"], entry["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            raise BundleError(f"{description}: not readable; {_AGAIN}") from None
        if not plan.is_file():
            raise BundleError(f"{plan}: missing; {_AGAIN}")
        if (plan.stat().st_size, file_sha256(plan)) != expected:
            raise BundleError(
                f"{plan}: truncated or altered, its SHA-256 is not the one noted when it was built; {_AGAIN}"
            )
        return plan

    def keep(self, key: EngineKey, plan: memoryview, facts: Mapping[str, Any]) -> Path:
        """Write a plan and what is known about it, each whole or not at all; raises LramError."""
        path = self.path(key)
        self.create()
        try:
            with atomic_file(path, force=True) as temporary:
                temporary.write_bytes(plan)
            entry = {**asdict(key), "size": path.stat().st_size, "sha256": file_sha256(path), **facts}
            with atomic_file(self._description(key), force=True) as temporary:
                temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            self.discard(key)
            raise LramError(f"{path}: cannot be written: {error.strerror}") from None
        return path

    def discard(self, key: EngineKey) -> None:
        """Remove an engine, its description first."""
        self._description(key).unlink(missing_ok=True)
        self.path(key).unlink(missing_ok=True)

    def others(self) -> list[str]:
        """Names of all engines here, for a message about the one that is not."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def _description(self, key: EngineKey) -> Path:
        return self.folder / f"{key.name}.json"


_AGAIN = "compile it again with: lram-export compile BUNDLE --target tensorrt --force"

"""The copy of a bundle in what runs it as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE, REPORT_FILE
from lram_export.integrations.robot_policy import BUNDLE_FOLDER


def copy_bundle(bundle: Bundle, folder: Path) -> Path:
    """Copy the files that a manifest lists, byte for byte, links as what they lead to; returns the copy's path.

    Raises:
        BundleError: the bundle is damaged.
    """
    files = [file.path for file in bundle.files()]
    if bundle.manifest.report is not None and (bundle.path / REPORT_FILE).exists():
        files.append(REPORT_FILE)
    bundle.check_files()  # so that a damaged one is named by its own path
    copy = folder / BUNDLE_FOLDER
    for name in (MANIFEST_FILE, *files):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, copy / name)
    Bundle.open(copy).check_files()
    return copy

"""What a kit's script does to the folder it installs into, and to what lies there; up to pip, which has no index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ExportFunction, succeed
from tests.deploy.test_deploy import unpack

MINE = "class Robot: ...  # mine\n"


@pytest.fixture(scope="module")
def packed(exported: ExportFunction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    shutil.copytree(exported("state_ms", targets=("onnxruntime", "native")), folder / "arm.lram")
    succeed("deploy", folder / "arm.lram", "-o", folder / "kit.tar.gz", "--target", "onnxruntime", "-q")
    return unpack(folder / "kit.tar.gz", folder / "unpacked")


@pytest.fixture
def kit(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "arm")


def install(
    script: Path, *options: object, before: str = "", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with a Python whose environments come without pip, so that they are made in no time."""
    (shell := (cwd or script.parent.parent) / "bin").mkdir(exist_ok=True)
    python = f'#!/bin/sh\n[ "$2" != venv ] || set -- "$@" --without-pip\nexec {sys.base_prefix}/bin/python3 "$@"\n'
    (shell / "python3").write_text(python)
    (shell / "python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{shell}:{os.environ['PATH']}", "PIP_NO_INDEX": "1", **variables}
    program = ["sh", "-c", f'{before}\nexec sh "$@"', "sh", str(script), *map(str, options)]
    return subprocess.run(program, capture_output=True, text=True, check=False, env=environment, cwd=cwd, timeout=60)


def files(folder: Path) -> dict[str, bytes]:
    """Content of all that a kit brings, not of the environment."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("venv/")}


def test_what_the_user_wrote_stays_where_there_is_no_space_for_the_kit(kit: Path, tmp_path: Path) -> None:
    (robot := tmp_path / "robot").mkdir()
    (robot / "robot.py").write_text(MINE)
    for limit in ("ulimit -f 8", "ulimit -f 8", "true"):  # no file is larger than 4 KiB, as on a full disk
        done = install(kit / "install.sh", "--isolated", robot, before=limit)
        assert (robot / "robot.py").read_text() == MINE
        assert done.returncode == 1 and ("cannot copy" in done.stderr) == (limit != "true")
    assert "pip could not install" in done.stderr and (robot / "arm.lram" / "manifest.json").is_file()
    assert not list(robot.glob("robot.py.*"))


def test_a_new_folder_gets_the_class_to_fill_in(kit: Path, tmp_path: Path) -> None:
    done = install(kit / "install.sh", "--isolated", tmp_path / "new" / "robot")
    assert "pip could not install" in done.stderr
    assert files(tmp_path / "new" / "robot") == files(kit)


def test_a_link_to_the_kit_is_the_kit(kit: Path, tmp_path: Path) -> None:
    before = files(kit)
    (tmp_path / "current").symlink_to(kit)
    for script, folder in ((kit, tmp_path / "current"), (tmp_path / "current", kit)):
        assert "pip could not install" in install(script / "install.sh", "--isolated", folder).stderr
        assert files(kit) == before
    inside = install(kit / "install.sh", tmp_path / "current" / "robot")
    assert inside.returncode == 1 and f"{kit}/robot is inside the kit" in inside.stderr
    assert not (kit / "robot").exists()


def test_a_search_path_for_folders_changes_nothing(kit: Path, tmp_path: Path) -> None:
    done = install(Path("arm/install.sh"), "arm/inside", cwd=tmp_path, CDPATH=str(tmp_path))
    assert done.stderr == f"install.sh: {kit}/inside is inside the kit; choose another folder\n"


@pytest.mark.parametrize("name", ["lram_export-9.9-py3-none-any.whl", "numpy-9.9.tar.gz"])
def test_what_another_kit_left_among_the_wheels_is_not_installed(name: str, kit: Path, tmp_path: Path) -> None:
    (kit / "wheels" / name).write_bytes(b"")
    done = install(kit / "install.sh", tmp_path / "robot")
    assert done.returncode == 1 and not (tmp_path / "robot").exists()
    assert done.stderr == (
        f"install.sh: {kit}/wheels/{name} is not of this kit (wheels/SHA256SUMS does not name it): "
        f"remove it, or unpack the kit into an empty folder\n"
    )


def test_packages_of_an_earlier_isolated_installation_do_not_stay(kit: Path, tmp_path: Path) -> None:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    earlier = tmp_path / "robot" / "venv" / "lib" / python / "site-packages" / "numpy" / "__init__.py"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("__version__ = '9.9'\n")
    assert "pip could not install" in install(kit / "install.sh", tmp_path / "robot").stderr
    assert not earlier.exists()
    assert "system-site-packages = true" in (tmp_path / "robot" / "venv" / "pyvenv.cfg").read_text()


def test_a_folder_whose_name_systemd_does_not_take_is_not_created(kit: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "my robot", tmp_path / "my robot" / "arm"):
        done = install(kit / "install.sh", folder)
        assert done.returncode == 1 and done.stderr.startswith(f"install.sh: {folder}: letters, digits, ")
        assert not (tmp_path / "my robot").exists()

"""Fills a folder with all wheels that a robot without a network installs from: pip downloads what fits the robot.

pip is told the robot's Python, processor and C library, and chooses wheels by them; but conditions of requirements
(``python_version < "3.11"``) it asks of the Python it runs in. So what is missing after that is looked for here, and
asked for by name.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from lram_export.deploy.robot import Robot
from lram_export.errors import LramError, UsageError

ALSO = {"tensorrt": ("cuda-bindings<13",)}
"""Extra -> what else is brought along: which of them serves is known on the robot only, by its driver."""


def download(folder: Path, wheel: Path, extras: Sequence[str], robot: Robot) -> None:
    """Download what the wheel of this package needs on the robot with some extras, and put the wheel there, too.

    Raises:
        UsageError: there is no pip here, or not the package `packaging`.
        LramError: naming the requirement that cannot be had; what came before it lies in the folder.
    """
    own = f"lram-export[{','.join(extras)}] @ {wheel.absolute().as_uri()}"
    _pip_download(folder, [own], robot)
    while further := unmet(folder, extras, robot):
        _pip_download(folder, [own, *further], robot)
        if further == unmet(folder, extras, robot):
            raise LramError(f"--offline: {further[0]}: pip did not bring it, though {robot} needs it")
    for requirement in (each for extra in extras for each in ALSO.get(extra, ())):
        _pip_download(folder, [requirement], robot)


def unmet(folder: Path, extras: Sequence[str], robot: Robot) -> list[str]:
    """Requirements that hold on the robot, and that are of no package whose wheel is in the folder."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name, parse_wheel_filename
    except ModuleNotFoundError:
        raise UsageError("--offline: needs the package 'packaging'. Install it with: pip install packaging") from None
    here = {str(parse_wheel_filename(path.name)[0]): path for path in sorted(folder.glob("*.whl"))}
    environment, missing = _environment(robot), []
    waiting: list[tuple[str, tuple[str, ...]]] = [("lram-export", ("", *extras))]
    seen = set()
    while waiting:
        name, asked = waiting.pop()
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        for text in _requirements(here[name]):
            requirement = Requirement(text)
            marker, requirement.marker = requirement.marker, None
            if marker is not None and not any(marker.evaluate({**environment, "extra": e}) for e in asked):
                continue
            needed = canonicalize_name(requirement.name)
            if needed in here:
                waiting.append((str(needed), ("", *sorted(requirement.extras))))
            else:
                missing.append(str(requirement))
    return sorted(set(missing))


def _environment(robot: Robot) -> Mapping[str, str]:
    """What conditions of requirements ask, as the robot answers."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{robot.python}.0",
        "os_name": "posix",
        "platform_machine": robot.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{robot.python}.0",
        "python_version": robot.python,
        "sys_platform": "linux",
    }


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return BytesHeaderParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])


def _pip_download(folder: Path, requirements: Sequence[str], robot: Robot) -> None:
    fitting = ["--python-version", robot.python, "--implementation", "cp", "--abi", robot.interpreter]
    fitting += [option for platform in robot.platforms for option in ("--platform", platform)]
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    program = [sys.executable, "-m", "pip", "download", *options, *fitting, *requirements]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = done.stderr.splitlines()
    if any("No module named pip" in line for line in lines):
        raise UsageError(f"--offline: no pip in {sys.executable}. Install it with: {sys.executable} -m ensurepip")
    nothing = "ERROR: No matching distribution found for "
    found = next((line.removeprefix(nothing).partition(";")[0] for line in lines if line.startswith(nothing)), None)
    if found is None:
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1] if lines else "no reason given")
        raise LramError(f"--offline: pip could not download for {robot}: {reason.removeprefix('ERROR: ')}")
    unreachable = "; no package index was reached" if "Retrying (" in done.stderr else ""
    raise LramError(f"--offline: pip found no wheel of '{found}' for {robot}{unreachable}")

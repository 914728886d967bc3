"""A robot with an ARM processor, emulated: Python and packages for arm64 in a folder, started with QEMU's user mode.

`make test-arm` compiles bundles for aarch64 here, and lets that robot verify them: `lram-export verify`, as on a real
one. Needs qemu-user-static, a cross-compiler, Debian's package index and a Python package index; changes nothing
outside of its folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.deploy.wheel import pack_wheel

REPOSITORY = Path(__file__).parent.parent
GOLDEN = REPOSITORY / "tests" / "golden"
PYTHON = "3.11"
SUITES = {"3.11": ("bookworm", "libssl3"), "3.13": ("trixie", "libssl3t64")}
"""The Debian that has a Python, and what it calls its OpenSSL."""

DEBIAN_PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "liblzma5", "libbz2-1.0", "libuuid1",
    "libcrypt1",
)  # fmt: skip
BASE_PACKAGES = ("numpy", "click", "rich", "safetensors")
"""What the base install of lram-export needs."""
STEPS = "16"
CPU = "cortex-a76"


def prepare(folder: Path, python: str = PYTHON, packages: Sequence[str] = ("apache-tvm", *BASE_PACKAGES)) -> None:
    """Unpack Debian's Python for arm64 and the packages of a robot; what is already there stays."""
    done = folder / ".prepared"
    if done.exists():
        return
    apt = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    suite, openssl = SUITES[python]
    site = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], stdout=subprocess.PIPE)
    mirror = next(line for line in site.splitlines() if "security" not in line)
    (apt / "sources.list").write_text(f"deb {mirror} {suite} main\n")
    options = [
        "-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64", "-o", "APT::Sandbox::User=root",
        "-o", f"Dir::State={apt / 'state'}", "-o", f"Dir::State::status={apt / 'status'}",
        "-o", f"Dir::Cache={apt / 'cache'}", "-o", f"Dir::Etc::sourcelist={apt / 'sources.list'}",
        "-o", "Dir::Etc::sourceparts=-",
    ]  # fmt: skip
    run(["apt-get", *options, "update"])
    own = [f"python{python}-minimal", f"libpython{python}-minimal", f"libpython{python}-stdlib", openssl]
    run(["apt-get", *options, "download", *own, *DEBIAN_PACKAGES], cwd=apt)
    if suite != "bookworm":  # whose packages come with /lib; later ones lie in /usr alone
        (folder / "root" / "usr" / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "root" / "lib").symlink_to("usr/lib")
    for package in sorted(apt.glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(folder / "root")])
    install(folder, "--constraint", str(REPOSITORY / "constraints.txt"), *packages, python=python)
    done.touch()


def install(folder: Path, *arguments: str, python: str = PYTHON) -> None:
    """Let this machine's pip install for the robot's Python."""
    platforms = [*(f"manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28, 31, 34)), "manylinux2014_aarch64"]
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "site"), "--upgrade",
        "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
        *(argument for name in platforms for argument in ("--platform", name)), *arguments,
    ])  # fmt: skip


def install_here(folder: Path) -> None:
    """The package as it is now, as a robot gets it: the pure Python wheel of a kit."""
    wheel = pack_wheel(folder)
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "site"), "--upgrade", "--no-deps",
        str(wheel),
    ])  # fmt: skip


def emulated(folder: Path, *arguments: str, cpu: str, python: str = PYTHON) -> None:
    """Run the robot's Python."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "QEMU_CPU": cpu, "TVM_NUM_THREADS": "2"}
    program = folder / "root" / "usr" / "bin" / f"python{python}"
    run(["qemu-aarch64-static", "-L", str(folder / "root"), str(program), *arguments], env=environment, cwd=folder)


def run(command: Sequence[str], **options: Any) -> str:
    """Run a command that must succeed; returns its output if it is asked for."""
    return subprocess.run(command, check=True, text=True, **options).stdout or ""


def export(checkpoint: Path, output: Path, *options: str) -> None:
    """Compile a bundle for aarch64 here."""
    program = [sys.executable, "-c", "from lram_export.cli import main; main()"]
    targets = ("--target", "tvm", "--platform", "aarch64")
    run([*program, "export", str(checkpoint), "-o", str(output), "--force", "--quiet", *targets, *options])


def main(folder: Path) -> None:
    """Everything `make test-arm` asks of the target `tvm`."""
    prepare(folder)
    install_here(folder)
    program = [sys.executable, "-c", "from lram_export.cli import main; main()"]
    if not (folder / "16m").exists():
        run([*program, "new", "--preset", "16m", "-o", str(folder / "16m"), "--quiet"])
    states = ("--task", "metaworld/reach-v2")
    images = ("--image", "--discrete", "--target-return", "1", "--reward-scale", "1")
    cases = [
        (folder / "16m", "16m-fp32", states),
        (folder / "16m", "16m-int8", (*states, "--precision", "int8")),
        *(
            (GOLDEN / "state_ms" / "model.zip", f"state_ms-{precision}", (*states, "--precision", precision))
            for precision in ("fp32", "fp16", "bf16", "int8", "int8g", "int4")
        ),
        (GOLDEN / "image_m" / "model.zip", "image_m-fp32", images),
        *(
            (GOLDEN / "mamba_state" / "model.zip", f"mamba_state-{precision}", (*states, "--precision", precision))
            for precision in ("fp32", "int8", "int4")
        ),
        *(
            (GOLDEN / "dt_state" / "model.zip", f"dt_state-{context}-{precision}", (*states, *options))
            for context in ("cache", "window")
            for precision in ("fp32", "int8", "int4")
            for options in [("--context", context, "--precision", precision)]
        ),
    ]
    for checkpoint, name, options in cases:
        bundle = folder / f"{name}.lram"
        export(checkpoint, bundle, *options, "--reference-steps", STEPS)
        print(f"{name} on an emulated Cortex-A76", flush=True)
        emulated(folder, "-c", "from lram_export.cli import main; main()", "verify", str(bundle), cpu=CPU)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())

"""From a Relax module to a shared library for a platform, which need not be this machine's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import tvm
from tvm import relax

from lram_export.errors import LramError, UsageError
from lram_export.tvm.platforms import TvmPlatform


def find_compiler(platform: TvmPlatform) -> str:
    """A program that links for the platform; raises UsageError with what to install."""
    for name in platform.compilers:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UsageError(
        f"tvm: no compiler that links for {platform.name} (looked for {', '.join(platform.compilers)}); "
        f"install one, on Debian: apt-get install {platform.package}"
    )


def check_code_generator(platform: TvmPlatform) -> None:
    """Raise UsageError unless the LLVM inside TVM generates code for the platform's kind of processor."""
    wanted = {"x86_64": "x86", "aarch64": "aarch64"}[platform.machine]
    from tvm.target.codegen import llvm_get_targets

    known = [str(name) for name in llvm_get_targets()]
    if not any(name.startswith(wanted) for name in known):
        raise UsageError(
            f"tvm: its LLVM generates no {platform.machine} code, only {', '.join(known)}; "
            f"install a build of apache-tvm with that target, the one on PyPI has it"
        )


def build_library(module: tvm.IRModule, platform: TvmPlatform, path: Path) -> None:
    """Compile and link; raises LramError with the linker's first words."""
    target = tvm.target.Target(dict(platform.target()))
    executable = relax.build(module, target=target, relax_pipeline=_lower(), exec_mode="compiled")
    try:
        executable.export_library(str(path), cc=find_compiler(platform))
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise LramError(f"tvm: cannot link {path.name}: {_first_line(error)}") from None
    path.chmod(0o644)


def _lower() -> tvm.ir.transform.Pass:
    """Calls of kernels to calls of functions, with planned memory. There is nothing to fuse or to legalize."""
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

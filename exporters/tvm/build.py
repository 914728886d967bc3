"""From a Relax module to a shared library for a platform, which need not be this machine's."""

from __future__ import annotations

import platform as host
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
from tvm import relax

from lram_export.errors import LramError, UsageError
from lram_export.targets.tvm.platforms import TvmPlatform


def find_compiler(platform: TvmPlatform) -> str:
    """A program that links for the platform; raises UsageError with what to install."""
    for name in platform.compilers:
        found = shutil.which(name)
        if found is not None:
            return found
    package = "g++" if host.machine() == platform.machine else platform.package
    raise UsageError(
        f"tvm: no compiler that links for {platform.name} (looked for {', '.join(platform.compilers)}); "
        f"install one, on Debian: apt-get install {package}"
    )


def find_nvcc(platform: TvmPlatform) -> str:
    """CUDA's compiler; raises UsageError with what to install."""
    found = shutil.which("nvcc")
    if found is None:
        raise UsageError(
            f"tvm: no nvcc, with which kernels for {platform.name} are compiled; install the CUDA toolkit, "
            f"on Debian: apt-get install nvidia-cuda-toolkit"
        )
    return found


def cuda_source(executable: tvm.runtime.Executable) -> str:
    """The kernels for the GPU, as CUDA."""
    pending, found = [executable.mod], []
    while pending:
        module = pending.pop()
        pending += list(module.imports)
        if module.kind == "cuda":
            found.append(str(module.inspect_source()))
    return "\n".join(found)


def check_cuda(source: str, architecture: str, folder: Path) -> None:
    """Raise LramError, with its first error, unless nvcc compiles a source for an architecture."""
    with TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "kernels.cu"
        path.write_text(source, encoding="utf-8")
        command = [str(shutil.which("nvcc")), "-cubin", f"-arch={architecture}", "-w", "-o", f"{path}.bin", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()[:200]]
        raise LramError(f"tvm: nvcc does not compile the kernels for {architecture}: {errors[0]}")


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
    """Compile and link; raises LramError with the first words of nvcc or of the linker.

    Kernels for a GPU go into the library as CUDA's source, which TVM compiles when it loads them: without a driver it
    can put nothing else there. That nvcc compiles them for the GPU is checked here. The kernels of a step are recorded
    as one CUDA graph when the library is loaded, and launched together from then on.
    """
    target = tvm.target.Target(dict(platform.target()))
    if platform.gpu is not None:
        target = tvm.target.Target({"kind": "cuda", "arch": platform.gpu}, host=target)
    with target, tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": platform.gpu is not None}):
        executable = relax.build(module, target=target, relax_pipeline=_lower(), exec_mode="compiled")
    if platform.gpu is not None:
        check_cuda(cuda_source(executable), platform.gpu, path.parent)
    link(executable, platform, path)


def link(executable: tvm.runtime.Executable, platform: TvmPlatform, path: Path) -> None:
    """Link what was compiled; raises LramError with the linker's first words."""
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
            relax.transform.RewriteCUDAGraph(),  # nothing unless the context asks for it
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

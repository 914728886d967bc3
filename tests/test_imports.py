"""What a robot needs: no torch, no exporter, and a package that costs nothing to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ExportFunction, load_golden

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked} or name.startswith("lram_export.exporters."):
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
"""
EXPORT_PACKAGES = {"torch", "xlstm", "onnx", "onnxscript", "omegaconf", "onnx_ir"}


def python(code: str, blocked: set[str] | None = None) -> str:
    program = (BLOCK.format(blocked=blocked) if blocked else "") + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import lram_export, sys; print([m for m in ('torch', 'numpy', 'click', 'rich', 'onnx') if m in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_the_command_line_starts_without_torch() -> None:
    code = "import lram_export.cli, sys; print([m for m in ('torch', 'numpy', 'onnx') if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_acting_needs_no_export_package(exported: ExportFunction, tmp_path: Path) -> None:
    golden = load_golden("state_m")
    np.save(tmp_path / "observation.npy", golden.trace["observations"][0])
    code = f"""
import numpy as np
from lram_export import load_policy
policy = load_policy({str(exported("state_m"))!r}, target="onnxruntime")
print(policy.act(np.load({str(tmp_path / "observation.npy")!r})).tolist())
"""
    assert python(code, EXPORT_PACKAGES).strip() == str(golden.trace["cached_actions"][0].tolist())


@pytest.mark.parametrize(
    "arguments",
    [["verify", "BUNDLE"], ["inspect", "BUNDLE"], ["bench", "BUNDLE", "--steps", "10"]],
)
def test_commands_of_a_robot_need_no_export_package(arguments: list[str], exported: ExportFunction) -> None:
    bundle = str(exported("state_m", targets=("onnxruntime",)))
    line = [bundle if a == "BUNDLE" else a for a in arguments]
    python(f"from lram_export.cli import main; main({line!r})", EXPORT_PACKAGES)


@pytest.mark.parametrize("form", ["onnx-closed", "leapp", "physicalai", "lerobot", "triton", "ovms"])
def test_converting_needs_onnx_at_most(form: str, exported: ExportFunction, tmp_path: Path) -> None:
    bundle = str(exported("state_m", targets=("onnxruntime",)))
    line = ["convert", bundle, "--to", form, "-o", str(tmp_path / "written")]
    needed = set() if form in ("physicalai", "lerobot") else {"onnx"}
    blocked = EXPORT_PACKAGES - needed | {"yaml", "leapp", "physicalai"}
    python(f"from lram_export.cli import main; main({line!r})", blocked)
    assert (tmp_path / "written").exists()


def test_a_bundle_for_the_python_backend_of_triton_needs_its_runtime_alone(
    exported: ExportFunction, tmp_path: Path
) -> None:
    bundle = str(exported("state_m", targets=("onnxruntime",)))
    line = ["convert", bundle, "--to", "triton", "--backend", "python", "-o", str(tmp_path / "written")]
    python(f"from lram_export.cli import main; main({line!r})", EXPORT_PACKAGES)
    assert (tmp_path / "written").exists()


def test_converting_says_what_is_missing(exported: ExportFunction, tmp_path: Path) -> None:
    line = ["convert", str(exported("state_m", targets=("onnxruntime",))), "--to", "leapp", "-o", str(tmp_path / "x")]
    program = BLOCK.format(blocked={"onnx"}) + f"from lram_export.cli import main; main({line!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--to leapp: needs the package 'onnx'" in done.stderr and "lram-export[convert]" in done.stderr
    assert not list(tmp_path.iterdir())


def test_commands_of_a_workstation_say_what_is_missing() -> None:
    code = "from lram_export.cli import main; main(['inspect', 'tests/golden/state_m/model.zip'])"
    program = BLOCK.format(blocked={"torch"}) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "error: this command needs the package 'torch', which is not installed. "
        "Install it with: pip install 'lram-export[export]'"
    )


def test_compiling_and_running_on_a_jetson_needs_no_export_package() -> None:
    code = "import lram_export.deploy.compile, lram_export.cli.compile, lram_export.cli.deploy, lram_export.deploy.kit"
    python(code, EXPORT_PACKAGES)

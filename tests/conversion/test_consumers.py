"""What a bundle becomes runs in the programs that it is meant for, unmodified: other releases, other languages.

Each is installed into an environment of its own in ``build/consumers``; run by `make test-consumers`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from lram_export import Bundle, ExportOptions, export_bundle, load_policy
from lram_export.model.config import read_model
from lram_export.spec.parity import tolerance
from tests.conftest import ExportFunction, load_golden, succeed
from tests.conversion.closed import fed_back
from tests.hub.loopback import running
from tests.step_module.modules import POLICIES

pytestmark = pytest.mark.consumers
ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "consumers"
PROGRAMS = Path(__file__).parent / "consumers"
ENVIRONMENTS = {
    "onnxruntime-1.16": ("onnxruntime==1.16.3", "numpy<2"),
    "onnxruntime-1.17": ("onnxruntime==1.17.3", "numpy<2"),
    "onnxruntime-1.18": ("onnxruntime==1.18.1", "numpy<2"),
    "onnxruntime-1.19": ("onnxruntime==1.19.2",),
    "onnxruntime": ("onnxruntime",),
    "efferent": ("efferent==0.5.0",),
    "leapp": ("leapp==0.7.2",),
    "physicalai": ("physicalai==0.3.0", "jsonargparse[signatures]>=4.50,<5", "loguru>=0.7", "pydantic>=2.5"),
    "triton": (
        *("nvidia-pytriton==0.7.0", "tritonclient", "protobuf", "grpcio", "python-rapidjson", "urllib3", "certifi"),
        *("geventhttpclient", "gevent", "greenlet", "zope.interface", "zope.event", "brotli"),
    ),
}
WITH_OURS = {
    "leapp": ENVIRONMENTS["leapp"],
    "physicalai": ("physicalai==0.3.0",),
    "triton": ENVIRONMENTS["triton"],
}
"""Behind these this project's own environment is seen, which has what these packages need: no second torch."""
NODE_PACKAGES = ("onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0")
POLICIES_TRIED = ("state_ms", "state_ms-int8", "mamba_state", "dt_state", "own")
ROUNDING = 1e-6
"""What an action of about 1 that is computed, not chosen, may be off in another release."""
RELEASES = [name for name in ENVIRONMENTS if name.startswith("onnxruntime")]


def environment(name: str) -> Path:
    """The interpreter of an environment, which is made where it is not there yet."""
    folder = PLACE / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != repr(ENVIRONMENTS[name]):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install, alone = [python, "-m", "pip", "install", "--quiet"], WITH_OURS.get(name, ())
        others = [package for package in ENVIRONMENTS[name] if package not in alone]
        for packages in (others, ["--no-deps", *alone] if alone else []):
            if packages:
                subprocess.run([*install, *packages], check=True)
        if name in WITH_OURS:
            ours = sysconfig.get_path("purelib")
            (pure,) = folder.glob("lib/python*/site-packages")
            (pure / "project.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        stamp.write_text(repr(ENVIRONMENTS[name]))
    return python


@pytest.fixture(scope="module")
def node() -> Path:
    """A folder with the packages of ONNX Runtime for JavaScript, and the program that plays."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    folder = PLACE / "node"
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != repr(NODE_PACKAGES):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        # their scripts fetch libraries for GPUs from elsewhere
        subprocess.run(["npm", "install", "--silent", "--ignore-scripts", *NODE_PACKAGES], cwd=folder, check=True)
        stamp.write_text(repr(NODE_PACKAGES))
    shutil.copy(PROGRAMS / "play.mjs", folder)
    return folder


@pytest.fixture(scope="module", params=POLICIES_TRIED)
def case(request: pytest.FixtureRequest, exported: ExportFunction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, what it observes in 64 steps, and what it then does."""
    folder = tmp_path_factory.mktemp("case")
    name, _, precision = request.param.partition("-")
    if name == "own":
        export_bundle(POLICIES["plain"](), None, folder / "b.lram", ExportOptions(("onnxruntime",), report=False))
    else:
        options = (*load_golden(name).task_options, "--precision", precision or "fp32")
        shutil.copytree(exported(name, targets=("onnxruntime",), options=options), folder / "b.lram")
    with np.load(folder / "b.lram" / "reference.npz") as recorded:
        observations = recorded["observation"]
    with load_policy(folder / "b.lram", threads=1) as policy:
        steps = [policy.step(observation) for observation in observations]
    made = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    np.savez(folder / "case.npz", observation=observations, **made)
    for names in ("state", "packed", "memory"):
        succeed("convert", folder / "b.lram", "--to", "onnx-closed", "--names", names, "-o", folder / f"{names}.onnx")
    succeed("convert", folder / "b.lram", "--to", "leapp", "-o", folder / "walk")
    return folder


def played(*command: str | Path, cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    own = {**os.environ, **environment}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd, env=own)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(command, found)
    return found


def assert_none_differs(found: dict[str, Any], case: Path) -> None:
    with np.load(case / "case.npz") as recorded:
        assert found["actions"] == 2 * recorded["action"].size >= 128
    if Bundle.open(case / "b.lram").manifest.task is not None:
        assert found["different"] == 0
    assert found["largest"] <= ROUNDING


def assert_only_ties_differ(found: dict[str, Any], case: Path) -> None:
    """Of a build for another processor, WebAssembly: at a quantized precision it may decide between two logits that
    are as near here as :class:`~lram_export.spec.parity.Tolerance` says, and nothing else."""
    bundle = Bundle.open(case / "b.lram")
    if bundle.manifest.task is None or not found["where"]:
        return assert_none_differs(found, case)
    artifact = bundle.artifact("onnxruntime")
    assert artifact.precision != "fp32" and len(found["where"]) == found["different"] <= found["actions"] // 100
    with np.load(case / "case.npz") as recorded:
        recorded_logits = recorded["action_logits"]
    values = read_model(bundle.manifest.model, bundle.path).head.values()
    for step, action, value in found["where"]:
        logits = recorded_logits[step].reshape(-1, values.size)[action]
        (token,) = np.flatnonzero(values == np.float32(value))[-1:]
        tie = tolerance(artifact.precision, artifact.activations).tie * np.linalg.norm(recorded_logits[step])
        assert logits.max() - logits[token] <= tie
    return None


@pytest.mark.parametrize("names", ["state", "packed", "memory"])
@pytest.mark.parametrize("release", RELEASES)
def test_releases_of_onnx_runtime(release: str, names: str, case: Path) -> None:
    program = PROGRAMS / "plain_onnx.py"
    assert_none_differs(played(environment(release), program, case / "case.npz", case / f"{names}.onnx"), case)


@pytest.mark.parametrize("names", ["state", "packed"])
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript(package: str, names: str, node: Path, case: Path) -> None:
    description = json_case(case, case / f"{names}.onnx")
    found = played("node", "play.mjs", package, description, case / f"{names}.onnx", cwd=node)
    (assert_only_ties_differ if package == "onnxruntime-web" else assert_none_differs)(found, case)


@pytest.mark.parametrize("names", ["state", "packed"])
def test_efferent(names: str, case: Path) -> None:
    program = PROGRAMS / "efferent_session.py"
    assert_none_differs(played(environment("efferent"), program, case / "case.npz", case / f"{names}.onnx"), case)


@pytest.mark.parametrize("initial", [True, False])
def test_leapp(initial: bool, case: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(case / "walk", tmp_path / "walk")
    if not initial:
        document = yaml.safe_load((folder / "walk.yaml").read_text())
        if "initial_values" not in document["pipeline"]:
            pytest.skip("it has none")
        (folder / document["pipeline"].pop("initial_values")).unlink()
        (folder / "walk.yaml").write_text(yaml.safe_dump(document))
    program = PROGRAMS / "leapp_manager.py"
    assert_none_differs(played(environment("leapp"), program, case / "case.npz", folder / "walk.yaml"), case)


@pytest.mark.parametrize("way", ["folder", "hub", "loop"])
def test_physicalai(way: str, case: Path, tmp_path: Path) -> None:
    """From a folder, from a Hub, whose cache has links, and in physicalai's own loop of a robot; without torch."""
    package, program = tmp_path / "package", PROGRAMS / "physicalai_model.py"
    succeed("convert", case / "b.lram", "--to", "physicalai", "-o", package)
    python = environment("physicalai")
    if way == "folder":
        found = played(python, program, case / "case.npz", package)
    elif way == "loop":
        found = played(python, PROGRAMS / "physicalai_loop.py", case / "case.npz", package)
    else:
        with running() as hub:
            files = {file.relative_to(package).as_posix(): file for file in package.rglob("*") if file.is_file()}
            hub.make("someone/walk").commit({name: file.read_bytes() for name, file in files.items()})
            here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
            found = played(python, program, case / "case.npz", "someone/walk", **here)
        assert any(path.is_symlink() for path in (tmp_path / "cache").rglob("*.onnx"))
    assert_none_differs(found, case)
    assert not found["torch"] and "backend=lram" in found["repr"]


def test_physicalai_runs_the_native_engine(exported: ExportFunction, tmp_path: Path) -> None:
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    bundle = exported("state_ms", targets=("onnxruntime", "native"), options=options)
    with np.load(bundle / "reference.npz") as recorded, load_policy(bundle, "native", threads=1) as policy:
        observations = recorded["observation"]
        actions = np.stack([policy.step(observation)["action"] for observation in observations])
    np.savez(tmp_path / "case.npz", observation=observations, action=actions)
    succeed("convert", bundle, "--to", "physicalai", "-o", tmp_path / "package")
    program, package = PROGRAMS / "physicalai_model.py", tmp_path / "package"
    found = played(environment("physicalai"), program, tmp_path / "case.npz", package, "native")
    assert (found["actions"], found["different"]) == (2 * actions.size, 0) and not found["torch"]


def json_case(case: Path, model: Path) -> Path:
    """The case for programs that read no arrays: names, shapes and numbers."""
    graph = onnx.load(model, load_external_data=False).graph
    shapes = {p.name: [d.dim_value for d in p.type.tensor_type.shape.dim] for p in graph.input}
    scheme = "packed" if "obs" in shapes else "state"
    pairs = {p.name: into for p in graph.output if (into := fed_back(p.name, scheme)) in shapes and into != p.name}
    (observation,) = set(shapes) - set(pairs.values())
    (action,) = {p.name for p in graph.output} - set(pairs)
    with np.load(case / "case.npz") as recorded:
        numbers = {name: recorded[name].reshape(len(recorded[name]), -1).astype(float).tolist() for name in recorded}
    states = [{"input": into, "output": out, "shape": shapes[into]} for out, into in pairs.items()]
    path = case / f"{model.stem}.json"
    described = {"input": observation, "output": action, "shape": shapes[observation], "states": states}
    path.write_text(json.dumps({**described, **numbers}))
    return path

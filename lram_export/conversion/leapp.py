"""`leapp`: the folder that NVIDIA's LEAPP describes policies by, for its InferenceManager and Isaac ROS.

A YAML file of version 1.3, beside it the closed step as one ONNX file and what the state starts with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.step import RUNNING
from lram_export.conversion.formats import Options, Player
from lram_export.conversion.joints import joint_names, quantity
from lram_export.conversion.yaml_text import yaml_text
from lram_export.errors import UsageError
from lram_export.spec.interface import FieldInterface, Interface
from lram_export.spec.tensors import InitialTensors, TensorSpec, initial_values
from lram_export.system.files import file_sha256
from lram_export.system.machine import suitable_threads
from lram_export.version import __version__

OPTIONS = ("reward_input",)
PACKAGES = ("onnx", "onnxruntime")
CONFIG_VERSION = "1.3"
NODE = "policy"
"""What the one model of the pipeline is called."""
MODEL_FILE = "policy.onnx"
INITIAL_FILE = "{}_initial_values.safetensors"


def marker(path: Path) -> str:
    """The YAML file."""
    return f"{path.name}.yaml"


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    from lram_export.conversion.closed.file import write_closed
    from lram_export.conversion.closed.names import Ports
    from lram_export.conversion.closed.player import OnnxPlayer

    _check(bundle)
    model = path / MODEL_FILE
    ports: Ports = write_closed(bundle, model, "state", options.reward_input)
    feedback = {state.output: state.input for state in ports.states}
    shapes = {name: state.shape for state in ports.states for name in (state.input, state.output)}
    states = [TensorSpec(name, shape, "float32") for name, shape in shapes.items()]
    interface = bundle.manifest.interface
    inputs = [*ports.inputs.values(), *(s for s in states if s.name in feedback.values())]
    outputs = [*ports.actions.values(), *(s for s in states if s.name in feedback)]
    initial = _initial(bundle, list(feedback.values()))
    document = {
        "models": {
            NODE: {
                "inputs": [_described(t, interface.observation.get(t.name), "state") for t in inputs],
                "outputs": [_described(t, interface.action.get(t.name), "target") for t in outputs],
                "parameters": {
                    "model_path": MODEL_FILE,
                    "md5sum": _md5(model),
                    "sha256sum": file_sha256(model),
                    "backend": "onnx",
                    "opset_version": _opset(bundle),
                },
            }
        },
        "pipeline": _pipeline(interface, [t.name for t in ports.inputs.values()], [*ports.actions], feedback),
        "system information": {"leapp config version": CONFIG_VERSION, "generator": f"lram-export {__version__}"},
    }
    if initial:
        name = INITIAL_FILE.format(path.name)
        _save(initial, path / name)
        document["pipeline"]["initial_values"] = name
    (path / marker(path)).write_text(yaml_text(document), encoding="utf-8")
    threads = suitable_threads(bundle.manifest.parameters, 1)
    return lambda: OnnxPlayer(model, ports, threads, _loaded(path / INITIAL_FILE.format(path.name)) if initial else {})


def _check(bundle: Bundle) -> None:
    """Raise UsageError where the policy has what LEAPP's runtimes do not send: all that is no float32."""
    spec = bundle.manifest.spec
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.dtype != "float32":
            what = "an image (uint8)" if tensor.dtype == "uint8" else f"a choice ({tensor.dtype})"
            raise UsageError(
                f"{bundle.path}: {tensor.name} is {what}, and the runtimes that read LEAPP know float32 alone; "
                f"--to onnx-closed writes a file that has it"
            )


def _pipeline(interface: Interface, inputs: list[str], outputs: list[str], feedback: dict[str, str]) -> dict[str, Any]:
    flow = {f"{NODE}/{out}": [f"{NODE}/{into}"] for out, into in feedback.items()}
    found: dict[str, Any] = {} if interface.rate is None else {"configs": {"frequency": float(interface.rate)}}
    return found | {
        "data_flow": {},
        "feedback_flow": flow,
        "feedback_connections": flow,  # the same, as isaac_deploy_core of release 4.5 calls it
        "inputs": {NODE: inputs},
        "outputs": {NODE: outputs},
    }


def _described(tensor: TensorSpec, of: FieldInterface | None, side: str) -> dict[str, Any]:
    """A tensor with what the interface says of it: what its elements are, and their names."""
    found: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "type": "tensor"}
    if of is None:
        return found
    what, names = quantity(of), joint_names(of)
    if what is not None:
        found["kind"] = f"{side}/joint/{what}"
    if names is not None:
        found["element_names"] = [names]
    return found


def _initial(bundle: Bundle, states: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What states start with: those that do not start at zero, and the one that says that an episode starts. Who reads
    none of it starts at zero, which is the same: at a start the graph takes its own."""
    manifest = bundle.manifest
    tensors: InitialTensors = bundle.initial_tensors()
    own = {state.name: initial_values(state, tensors) for state in manifest.spec.with_batch(1).states}
    found = {name: np.ascontiguousarray(own[name], np.float32) for name in states if name in own}
    running = {name: np.zeros(1, np.float32) for name in states if name == RUNNING}
    return running | {name: values for name, values in found.items() if values.any()}


def _save(initial: dict[str, NDArray[np.float32]], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({f"{NODE}/{name}": values for name, values in initial.items()}, path)
    path.chmod(0o644)  # safetensors writes it for the owner alone


def _loaded(path: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return {name.removeprefix(f"{NODE}/"): values for name, values in load_file(path).items()}


def _md5(path: Path) -> str:
    """No proof of anything; LEAPP wants it beside the SHA-256."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _opset(bundle: Bundle) -> int:
    return int(bundle.artifact("onnxruntime").tools["opset"])

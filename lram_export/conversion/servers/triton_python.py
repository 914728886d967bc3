"""A model for Triton's Python backend: the bundle, on any target, with a policy for every sequence."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.step import REWARD, check_reward
from lram_export.conversion.copying import copy_bundle
from lram_export.conversion.formats import Arrays, Options, Player
from lram_export.conversion.servers.folder import VERSION
from lram_export.conversion.servers.pbtxt import Message, message_text
from lram_export.conversion.servers.triton_config import CONFIG_FILE, flag, model_config, sequence_batching, sequence_id
from lram_export.errors import LramError, UsageError
from lram_export.policy import default_target, observations_of
from lram_export.spec.interface import actions_of
from lram_export.spec.tensors import TensorSpec

TEMPLATE = Path(__file__).parent / "templates" / "model.py"
UTILITIES = "triton_python_backend_utils"
"""What the server gives to a model."""
START, END, SEQUENCE = "START", "END", "CORRID"


def write_python(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """Write the folder of a model; returns what opens it as Triton does.

    Raises:
        UsageError: a target that the bundle has not, or a reward that it does not take or needs.
    """
    check_reward(bundle, options.reward_input)
    target = options.target or default_target(bundle)
    bundle.artifact(target)
    inputs, outputs = _ports(bundle, options.reward_input)
    config = model_config(path.name, "python", inputs.values(), outputs.values(), options)
    controls = [flag(START, "START"), flag(END, "END"), sequence_id(SEQUENCE)]
    config["sequence_batching"] = sequence_batching(options, controls)
    if options.target is not None:
        config["parameters"] = [{"key": "target", "value": {"string_value": target}}]
    version = path / VERSION
    version.mkdir()
    shutil.copyfile(TEMPLATE, version / TEMPLATE.name)
    copy_bundle(bundle, version)
    (path / CONFIG_FILE).write_text(message_text(config), encoding="utf-8")
    return lambda: PythonPlayer(path, config, target, inputs, outputs)


def _ports(bundle: Bundle, reward_input: bool) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    spec = bundle.manifest.spec.with_batch(1)
    inputs = {tensor.name: tensor for tensor in observations_of(spec)}
    if reward_input:
        inputs[REWARD] = TensorSpec(REWARD, (1,), "float32")
    taken = sorted({*inputs} & {START, END, SEQUENCE})
    if taken:
        raise UsageError(f"{bundle.path}: {taken[0]}: the policy observes something of that name, which Triton's is")
    return inputs, actions_of(spec)


class PythonPlayer:
    """One robot beside another, both served by the file that was written; see
    :class:`~lram_export.conversion.formats.Player`."""

    exact = True
    states: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        config: Message,
        target: str,
        inputs: dict[str, TensorSpec],
        outputs: dict[str, TensorSpec],
    ) -> None:
        self.target, self.inputs, self.outputs = target, tuple(inputs), tuple(outputs)
        self._shapes = {name: tensor.shape for name, tensor in outputs.items()}
        self._model = open_model(path, config)
        self._start, self._before = True, dict[str, NDArray[Any]]()

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`; the state is the policy's own, whatever is asked."""
        self._start, self._before = True, {}

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        requests = [request(7, self._before or given, self._start), request(1 << 40, given, self._start)]
        self._start, self._before = False, dict(given)
        found = self._model.execute(requests)
        for response in found:
            if response.error is not None:
                raise LramError(f"{TEMPLATE.name} that was written: {response.error}")
        outputs = {tensor.name: tensor.values for tensor in found[1].tensors}
        return {name: values.reshape(self._shapes[name]) for name, values in outputs.items()}


def open_model(path: Path, config: Message) -> Any:
    """The model of a folder, as the server makes it of `model.py` and of what `config.pbtxt` says."""
    with _utilities():
        found = importlib.util.spec_from_file_location("lram_triton_model", path / VERSION / TEMPLATE.name)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    model = module.TritonPythonModel()
    said = {**config, "parameters": {entry["key"]: entry["value"] for entry in config.get("parameters", ())}}
    model.initialize({"model_config": json.dumps(said), "model_repository": str(path), "model_version": VERSION})
    return model


def request(sequence: int, given: Arrays, start: bool = False, end: bool = False) -> dict[str, NDArray[Any]]:
    """What the server hands to the model: a row of every input, and of the controls."""
    inputs = {name: values.reshape(1, *(values.shape[1:] or (1,))) for name, values in given.items()}
    controls = {START: np.float32(start), END: np.float32(end), SEQUENCE: np.uint64(sequence)}
    return {**inputs, **{name: np.full((1, 1), value) for name, value in controls.items()}}


class _Tensor:
    """What goes to the server and comes from it."""

    def __init__(self, name: str, values: NDArray[Any]) -> None:
        self.name, self.values = name, np.array(values)

    @staticmethod
    def from_dlpack(name: str, values: Any) -> _Tensor:
        return _Tensor(name, np.from_dlpack(values))

    def __dlpack__(self, stream: object = None) -> Any:
        return self.values.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


@contextmanager
def _utilities() -> Iterator[None]:
    """What the server gives to a model while it is imported, as far as ours needs it."""
    module = ModuleType(UTILITIES)
    module.__dict__.update(
        Tensor=_Tensor,
        TritonError=str,
        InferenceResponse=lambda tensors, error=None: SimpleNamespace(tensors=tensors, error=error),
        get_input_tensor_by_name=lambda request, name: _Tensor(name, request[name]),
    )
    before = sys.modules.get(UTILITIES)
    sys.modules[UTILITIES] = module
    try:
        yield
    finally:
        del sys.modules[UTILITIES]
        if before is not None:
            sys.modules[UTILITIES] = before

"""Runtime of the target `native`: the C++ engine, with inputs and outputs in buffers it reads and writes in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export import _native
from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import PREFIX, compare
from lram_export.errors import BundleError, LramError, StepError, UsageError
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import Runtime, State, StepOutput
from lram_export.spec.parity import FLOAT32, LAZY_HALF
from lram_export.spec.tensors import TensorSpec, initial_values
from lram_export.system.huge_pages import MemoryOfPolicy
from lram_export.targets.native.format import (
    HEADER_BYTES,
    SINCE,
    Header,
    Role,
    step_fields,
    stored_name,
    version_of,
)
from lram_export.targets.native.interface import as_said, as_told
from lram_export.targets.native.options import NativeOptions
from lram_export.targets.native.program import HEADER_BYTES as PROGRAM_HEADER_BYTES
from lram_export.targets.native.program import INTERFACE_VERSION, ProgramHeader

MODEL_FILE = "model.lrn"


class NativeRuntime(BaseRuntime):
    """One state of a model; the recurrent memory lies in the engine, in the layout its kernels read."""

    checked_by_engine = True

    def __init__(self, model: _native.Model, artifact: LoadedArtifact) -> None:
        spec = artifact.spec
        super().__init__(spec, artifact.initial)
        self.state_format = model.state_format
        self.leaves_work = self.state_format == LAZY_HALF
        self._outputs = StepOutput.zeros(spec)
        self._model: Any = model
        self._episodes: Any = _native.State(model, spec.batch_size)
        # by name: an artifact of a network does not say in which order the manifest lists them
        inputs = dict(zip((t.name for t in spec.inputs), self._inputs.arrays, strict=True))
        names = [name for name, _, _ in model.inputs]
        limits = [spec.limits.get(name) for name in names]
        self._episodes.bind([inputs[name] for name in names], list(self._outputs), limits)
        self._same_order = names == list(inputs)
        # the memory itself, which nobody but a test that spoils it writes to
        self._state = {"memory": self._episodes.memory()}

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`; one call of the engine where there is nothing to say."""
        with self._guard:
            if self._same_order and not self._lost and self._stepped(inputs):
                return self._outputs
        return super().step(*inputs)

    def _stepped(self, inputs: tuple[NDArray[np.generic], ...]) -> bool:
        """Take a step with inputs that are plainly those of one; False: nothing was done, and the checks say why."""
        try:
            return bool(self._episodes.step_with(inputs))
        except OverflowError as error:
            raise StepError(str(error)) from None
        except Exception:
            return False

    def memory(self) -> MemoryOfPolicy:
        """What steps read, and how much of it lies in huge pages now; takes milliseconds."""
        return MemoryOfPolicy(*self._model.pages(), *self._episodes.pages())

    def _step(self) -> StepOutput:
        try:
            self._episodes.step()
        except OverflowError as error:
            raise StepError(str(error)) from None
        return self._outputs

    def _settle(self) -> None:
        self._episodes.settle()

    def profile(self) -> None:
        """From the next step on, take the time of every stage; see :meth:`stages`."""
        with self._guard:
            self._episodes.profile()

    def stages(self) -> dict[str, float]:
        """Seconds in each stage of all steps since :meth:`profile`, the mean of the threads."""
        with self._guard:
            return dict(self._episodes.stages())

    def _save(self) -> State:
        values = np.empty(self._episodes.size, np.float32)
        try:
            self._episodes.save(values)
        except OverflowError as error:
            raise StepError(str(error)) from None
        found, start = {}, 0
        for tensor in self.spec.states:
            found[tensor.name] = values[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        return found

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._episodes.load(np.concatenate([state[t.name].reshape(-1) for t in self.spec.states]))

    def _restart(self, rows: list[int]) -> None:
        self._episodes.reset(rows)

    def _free(self) -> None:
        self._state = {}
        self._episodes = self._model = None


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Map the artifact, with what the environment says about the machine.

    ``spin``: as long as the engine does unless told otherwise; without it threads sleep at once after a step. The
    environment has the last word.

    Raises:
        UsageError: an environment variable that makes no sense here.
        BundleError: the artifact is damaged or does not belong to the manifest.
        LramError: not enough memory, or not allowed to lock it.
    """
    path, model = artifact.file(MODEL_FILE), open_model(artifact, threads, spin)
    try:
        return NativeRuntime(model, artifact)
    except ValueError as error:
        raise BundleError(f"{path}: not what the manifest describes: {error}") from None
    except MemoryError as error:
        raise LramError(str(error)) from None


def open_model(artifact: LoadedArtifact, threads: int, spin: bool) -> _native.Model:
    """The engine's model, of which the manifest tells the truth; raises as :func:`load`."""
    path = artifact.file(MODEL_FILE)
    chosen = NativeOptions.from_environment(spin=spin)
    try:
        model = _native.Model(
            str(path),
            threads=threads,
            cpus=chosen.cpus,
            spin_microseconds=chosen.spin_microseconds,
            lock_memory=chosen.lock_memory,
            state_format=chosen.state_format,
            huge_pages=chosen.huge_pages,
            verify=False,  # against a weaker checksum than the manifest's, which has just been checked
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    except MemoryError as error:
        raise LramError(str(error)) from None
    except RuntimeError as error:
        raise BundleError(str(error)) from None
    check_header(path, artifact)
    check_interface(path, model, artifact)
    if sorted(model.inputs) != sorted(map(of_row, artifact.spec.inputs)):
        raise BundleError(f"{path}: its inputs are not those that the manifest describes; export the bundle again")
    if model.outputs != list(map(of_row, artifact.spec.outputs)):
        raise BundleError(f"{path}: its outputs are not those that the manifest describes; export the bundle again")
    if not same_state(model.state_tensors(), artifact):
        raise BundleError(f"{path}: its state is not the one the manifest describes; export the bundle again")
    if not chosen.state_format and model.state_format == LAZY_HALF and artifact.state_format == FLOAT32:
        raise BundleError(f"{path}: keeps its state in {LAZY_HALF}, was verified in {FLOAT32}; export the bundle again")
    return model


def of_row(tensor: TensorSpec) -> tuple[str, tuple[int, ...], str]:
    """A field of the manifest as the engine describes its own: name, shape of a row, dtype."""
    return tensor.name, tensor.shape[1:], tensor.dtype


def same_state(found: list[tuple[str, tuple[int, ...], Any]], artifact: LoadedArtifact) -> bool:
    """Whether an artifact's state tensors (name, shape of a row, initial value) are those that the manifest says."""
    said = artifact.spec.states
    return [name for name, _, _ in found] == [t.name for t in said] and all(
        shape == t.shape[1:] and np.array_equal(np.broadcast_to(initial, shape), initial_values(t, artifact.initial)[0])
        for (_, shape, initial), t in zip(found, said, strict=True)
    )


def check_interface(path: Path, model: _native.Model, artifact: LoadedArtifact) -> None:
    """Compare what an artifact says of its robot with the manifest; raises BundleError naming the field.

    One that says nothing is of a version without room for it, and may be older than what the manifest says.
    """
    with path.open("rb") as file:
        version = version_of(file.read(HEADER_BYTES))
    if version >= (INTERFACE_VERSION if artifact.task is None else SINCE[Role.INTERFACE]):
        compare(path, "interface", as_told(*model.interface), as_said(artifact.interface))


def check_header(path: Path, artifact: LoadedArtifact) -> None:
    """Compare what an artifact's header says with the manifest; raises BundleError naming the field."""
    one_plane = artifact.activations == "int8"
    with path.open("rb") as file:
        start = file.read(max(HEADER_BYTES, PROGRAM_HEADER_BYTES))
    try:
        header = ProgramHeader.unpack(start) if artifact.task is None else Header.unpack(start)
    except ValueError as error:
        raise BundleError(f"{path}: {error}, as the manifest has it; export the bundle again") from None
    own: dict[str, Any] = dataclasses.asdict(header)
    if artifact.task is None:
        said: dict[str, Any] = {"batch": artifact.exported_batch, "planes": 1 if one_plane else 2}
    else:
        said = step_fields(artifact.as_exported().spec, artifact.task, one_plane=one_plane)
        for name in ("target_return", "reward_scale"):
            said[name] = float(np.float32(said[name]))
    if own["name"] or own["source_sha256"]:  # an artifact need not say what it is
        known = artifact.identity.properties
        said["name"] = stored_name(known[PREFIX + "name"])
        said["source_sha256"] = known[PREFIX + "source_sha256"]
    compare(path, "header", {name: own[name] for name in said}, said)

"""Runtime of the target `pytorch` for a module of one's own: its traced step, operator after operator."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import IDENTITY_FILE, read_identity
from lram_export.errors import BundleError
from lram_export.runtimes.arrays import ArrayRuntime
from lram_export.runtimes.protocol import Runtime, StepOutput
from lram_export.runtimes.stacked import in_parts
from lram_export.spec.json_fields import Fields, read_json
from lram_export.spec.tensors import InitialTensors, StepSpec
from lram_export.targets.pytorch.program import PROGRAM_FILE, WEIGHTS_FILE, Program, read_program, weight_of


class ProgramRuntime(ArrayRuntime):
    """A traced step."""

    def __init__(
        self, program: Program, weights: Mapping[str, torch.Tensor], spec: StepSpec, initial: InitialTensors
    ) -> None:
        super().__init__(spec, initial)
        self._program, self._weights = program, weights

    @torch.no_grad()
    def _step(self) -> StepOutput:
        # copies of the inputs: a state may be one of them, as it is
        given = (*(array.copy() for array in self._inputs.arrays), *self._state.values())
        found = self._program.run([torch.from_numpy(array) for array in given], self._weights)
        return self._results([tensor.numpy() for tensor in found])

    def _free(self) -> None:
        super()._free()
        self._weights = {}


def load(artifact: LoadedArtifact) -> Runtime:
    """Read the program and its weights, the quantized ones from the bundle; raises BundleError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    identity = artifact.file(IDENTITY_FILE)
    artifact.identity.check(identity, read_identity(identity))
    path = artifact.file(PROGRAM_FILE)
    try:
        program = read_program(Fields.of(read_json(path), ""))
        spec = artifact.spec
        if (len(program.inputs), len(program.outputs)) != (len(spec.input_names), len(spec.output_names)):
            raise ValueError("inputs, outputs: not as many as the manifest says")
        path = artifact.file(WEIGHTS_FILE)
        weights = load_file(path)
        if artifact.quantized is not None:
            for name, matrix in artifact.quantized.load().items():
                weights[weight_of(name)] = torch.from_numpy(matrix.dequantize())
        odd = sorted(set(weights) ^ set(program.weights.values()))
        if odd:
            raise ValueError(f"{odd[0]}: {'unknown weight' if odd[0] in weights else 'missing'}")
    except (ValueError, OSError, SafetensorError) as error:
        raise BundleError(f"{path}: {error}; copy or export the bundle again") from None
    return in_parts(artifact, lambda part: ProgramRuntime(program, weights, part.spec, part.initial))

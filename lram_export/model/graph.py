"""What every step graph is, whoever made the network in it."""

from __future__ import annotations

from torch import Tensor, nn

from lram_export.spec.tensors import StepSpec


class Graph(nn.Module):
    """The pure function (inputs, is_first, state) -> (outputs, next state): tensors in the order of
    ``spec.input_names``, out in the order of ``spec.output_names``; any number of rows."""

    spec: StepSpec

    def initial_tensors(self) -> dict[str, Tensor]:
        """The states that start as a tensor, each for one row; see :class:`~lram_export.spec.tensors.StateSpec`."""
        raise NotImplementedError

    def layers(self) -> dict[str, nn.Linear]:
        """Every linear layer under its name."""
        raise NotImplementedError

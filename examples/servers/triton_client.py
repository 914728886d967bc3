"""A policy behind Triton, as a control loop uses it. Needs `pip install 'tritonclient[http]'`, and not lram-export."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype


class RemotePolicy:
    """One robot: a sequence of requests under a number that no other robot has."""

    def __init__(self, address: str, model: str, sequence: int) -> None:
        """Connect to a server at an address such as `localhost:8000`; ``sequence`` is any number but 0."""
        self.client = http.InferenceServerClient(address)
        self.model, self.sequence = model, sequence

    def act(
        self, observation: Mapping[str, np.ndarray], first: bool = False, last: bool = False
    ) -> dict[str, np.ndarray]:
        """One step: inputs by name, with a row; every action by name, with a row.

        ``first``: it begins an episode; ``last``: it ends one, and the server may forget the robot.
        """
        inputs = []
        for name, values in observation.items():
            values = values.reshape(1, *(values.shape[1:] or (1,)))
            inputs.append(http.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
            inputs[-1].set_data_from_numpy(np.ascontiguousarray(values))
        found = self.client.infer(
            self.model, inputs, sequence_id=self.sequence, sequence_start=first, sequence_end=last
        )
        return {output["name"]: found.as_numpy(output["name"]) for output in found.get_response()["outputs"]}

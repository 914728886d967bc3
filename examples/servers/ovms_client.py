"""A policy behind OpenVINO Model Server, which keeps its state, as a control loop uses it. Needs numpy alone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping

import numpy as np

START, END = 1, 2
"""What `sequence_control_input` can be, beside 0."""


class RemotePolicy:
    """One robot: a sequence of requests under a number that no other robot has."""

    def __init__(self, address: str, model: str, sequence: int) -> None:
        """A server's REST port, at an address such as `localhost:8000`; ``sequence`` is any number but 0."""
        self.url, self.sequence = f"http://{address}/v1/models/{model}:predict", sequence

    def act(
        self, observation: Mapping[str, np.ndarray], first: bool = False, last: bool = False
    ) -> dict[str, np.ndarray]:
        """One step: inputs by name, with a row; every action by name, with a row.

        ``first``: it begins an episode; ``last``: it ends one, and the server forgets the robot. A sequence that has
        not ended cannot be begun again.
        """
        inputs = {name: values.tolist() for name, values in observation.items()}
        inputs["sequence_id"] = [self.sequence]
        inputs["sequence_control_input"] = [START if first else END if last else 0]
        body = json.dumps({"signature_name": "serving_default", "inputs": inputs}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, body), timeout=1) as answer:
            found = json.load(answer)["outputs"]
        return {name: np.array(values) for name, values in found.items() if name != "sequence_id"}

"""OpenVINO Model Server's REST interface to a stateful model, as far as its documentation says what it does.

It is not on PyPI. What it is told it takes from `config.json`, and refuses what it does not know.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

KNOWN = {"name", "base_path", "target_device", "plugin_config"}
OF_STATEFUL = {"stateful", "max_sequence_number", "idle_sequence_cleanup", "low_latency_transformation"}


class Model:
    """Sequences of one model; every step resets the variables or sets them to what the sequence left."""

    def __init__(self, config: Path) -> None:
        (entry,) = json.loads(config.read_text())["model_config_list"]
        said = entry["config"]
        assert KNOWN <= {*said} <= KNOWN | OF_STATEFUL and said["target_device"] == "CPU"
        assert said["stateful"] is True and said["low_latency_transformation"] is False
        self.name, self.most = said["name"], said["max_sequence_number"]
        model = config.parent / said["base_path"] / "1" / "model.xml"
        self.request = ov.Core().compile_model(model, "CPU", said["plugin_config"]).create_infer_request()
        self.dtypes = {port.any_name: port.element_type.to_dtype() for port in self.request.model_inputs}
        self.kept: dict[int, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def predict(self, inputs: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        (sequence,), (control,) = inputs.pop("sequence_id"), inputs.pop("sequence_control_input")
        assert {*inputs} == {*self.dtypes}
        with self.lock:
            if control == 1 and sequence in self.kept:
                return 409, {"error": "Sequence with provided ID already exists"}
            if control == 1 and len(self.kept) == self.most:
                return 503, {"error": "Max sequence number has been reached"}
            if control != 1 and sequence not in self.kept:
                return 404, {"error": "Sequence with provided ID does not exist"}
            for state in self.request.query_state():
                if control == 1:
                    state.reset()
                else:
                    state.state = ov.Tensor(self.kept[sequence][state.name])
            found = self.request.infer({name: np.array(v, self.dtypes[name]) for name, v in inputs.items()})
            self.kept[sequence] = {s.name: np.array(s.state.data) for s in self.request.query_state()}
            if control == 2:
                del self.kept[sequence]
            outputs = {port.any_name: values.tolist() for port, values in found.items()}
        return 200, {"outputs": {**outputs, "sequence_id": [sequence]}}


@contextmanager
def serving(config: Path) -> Iterator[str]:
    """The address of a server with this configuration."""
    model = Model(config)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/v1/models/{model.name}:predict"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, answer = model.predict(asked["inputs"])
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

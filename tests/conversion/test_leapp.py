"""What is written for LEAPP is what its own reader asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from lram_export import ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.conversion.joints import joint_names, quantity
from lram_export.conversion.yaml_text import yaml_text
from lram_export.spec.interface import FieldInterface, Interface
from tests.conftest import ExportFunction, fail, succeed
from tests.conversion.closed import Stranger, assert_same_actions, observed
from tests.step_module.modules import POLICIES, Echoing

ONLY = ("onnxruntime",)


def convert(bundle: Path, folder: Path) -> tuple[dict[str, Any], Path]:
    path = folder / "walk"
    succeed("convert", bundle, "--to", "leapp", "-o", path, "--quiet")
    found: dict[str, Any] = yaml.safe_load((path / "walk.yaml").read_text())
    return found, path


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that knows its robot, and whose state does not start at zero."""
    joints = tuple(f"joint {i}: ü" for i in range(5))
    interface = Interface(
        50.0,
        {"x": FieldInterface(elements=joints[:4], units=("rad", "rad", "rad", "rad"))},
        {"action": FieldInterface(elements=joints, units=("N*m",)), "heard": FieldInterface(units=("deg",))},
    )
    torch.manual_seed(3)
    echoing = POLICIES["echoing"]()
    policy = StepPolicy(
        Echoing(), observation=echoing.observation, action=echoing.action, state=echoing.state, interface=interface
    )
    path = tmp_path_factory.mktemp("legs") / "legs.lram"
    return export_bundle(policy, None, path, ExportOptions(ONLY, report=False)).path


class TestFolder:
    @pytest.mark.parametrize("name", ["state_ms", "dt_state"])
    def test_every_output_goes_somewhere_and_every_input_comes_from_somewhere(
        self, name: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        found, _ = convert(exported(name, targets=ONLY) if name == "state_ms" else exported(name), tmp_path)
        (node, model), pipeline = next(iter(found["models"].items())), found["pipeline"]
        inputs, outputs = ([f"{node}/{t['name']}" for t in model[side]] for side in ("inputs", "outputs"))
        feedback = pipeline["feedback_flow"]
        assert pipeline["feedback_connections"] == feedback
        assert [*(f"{node}/{n}" for n in pipeline["outputs"][node]), *feedback] == outputs
        fed = [into for targets in feedback.values() for into in targets]
        assert [*(f"{node}/{n}" for n in pipeline["inputs"][node]), *fed] == inputs
        assert pipeline["inputs"][node] == ["observation"] and pipeline["data_flow"] == {}
        assert found["system information"]["leapp config version"] == "1.3"

    def test_the_file_and_its_hashes(self, exported: ExportFunction, tmp_path: Path) -> None:
        found, path = convert(exported("state_ms", targets=ONLY), tmp_path)
        said = found["models"]["policy"]["parameters"]
        content = (path / said["model_path"]).read_bytes()
        assert said["sha256sum"] == hashlib.sha256(content).hexdigest()
        assert said["md5sum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert (said["backend"], said["opset_version"]) == ("onnx", 18)
        assert sorted(p.name for p in path.iterdir()) == ["policy.onnx", "walk.yaml", "walk_initial_values.safetensors"]

    def test_the_interface_is_in_it(self, legs: Path, tmp_path: Path) -> None:
        found, path = convert(legs, tmp_path)
        model = found["models"]["policy"]
        x, running = model["inputs"][:2]
        assert x["kind"] == "state/joint/position" and x["element_names"] == [[f"joint {i}: ü" for i in range(4)]]
        assert x["shape"] == [1, 4] and x["dtype"] == "float32" and running["name"] == "state.running"
        action, _, heard, _ = model["outputs"][:4]
        assert action["kind"] == "target/joint/effort" and len(action["element_names"][0]) == 5
        assert "kind" not in heard and found["pipeline"]["configs"] == {"frequency": 50.0}
        initial = load_file(path / found["pipeline"]["initial_values"])
        assert {*initial} == {"policy/state.running", "policy/state.kept"}
        assert initial["policy/state.kept"].tolist() == [[1.0, -2.0]]
        assert initial["policy/state.running"].tolist() == [0.0]

    def test_not_an_action_differs_with_the_initial_values_and_without(self, legs: Path, tmp_path: Path) -> None:
        found, path = convert(legs, tmp_path)
        file = Stranger(path / "policy.onnx")
        with load_policy(legs, threads=1) as policy:
            assert_same_actions(policy, file, observed(legs))  # from zeros
            policy.reset()
            file.start()
            for name, values in load_file(path / found["pipeline"]["initial_values"]).items():
                file.state[name.removeprefix("policy/")] = values
            for step in observed(legs):
                np.testing.assert_array_equal(file.step(step)["action"], policy.step(step)["action"])

    @pytest.mark.parametrize(("name", "what"), [("image_m", "observation is an image"), ("choosing", "a choice")])
    def test_images_and_choices_are_refused(
        self, name: str, what: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        if name == "choosing":
            made = export_bundle(POLICIES[name](), None, tmp_path / "own.lram", ExportOptions(ONLY, report=False))
            bundle = made.path
        else:
            bundle = exported(name)
        code, line = fail("convert", bundle, "--to", "leapp", "-o", tmp_path / "walk")
        assert code == 2 and what in line and "float32 alone; --to onnx-closed writes a file that has it" in line
        assert not (tmp_path / "walk").exists()

    def test_only_a_folder_of_its_kind_is_replaced(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=ONLY)
        _, path = convert(bundle, tmp_path)
        assert "already exists" in fail("convert", bundle, "--to", "leapp", "-o", path)[1]
        succeed("convert", bundle, "--to", "leapp", "-o", path, "--force")
        (path / "walk.yaml").rename(path / "other.yaml")
        assert "it has no walk.yaml" in fail("convert", bundle, "--to", "leapp", "-o", path, "--force")[1]


@pytest.mark.parametrize(
    ("elements", "units", "what", "names"),
    [
        (("hip", "knee"), ("rad",), "position", ["hip", "knee"]),
        (("hip", "knee"), ("rad/s", "rad/s"), "velocity", ["hip", "knee"]),
        (("hip/effort", "left/knee/effort"), ("N*m",), "effort", ["hip", "left/knee"]),
        (("lift/position", "knee/position"), ("m", "rad"), "position", ["lift", "knee"]),
        (("lift", "knee"), ("m", "rad"), None, ["lift", "knee"]),
        (("hip/position", "knee/position"), ("deg",), None, ["hip", "knee"]),
        (("hip/position", "knee/position"), None, None, ["hip", "knee"]),
        (("hip/position", "knee"), ("rad",), "position", ["hip/position", "knee"]),
        (("hip/position", "knee/velocity"), ("rad", "rad/s"), None, ["hip/position", "knee/velocity"]),
        (("hip", "knee"), ("deg",), None, ["hip", "knee"]),
        (("/position", "a/b"), ("rad",), "position", ["/position", "a/b"]),
        (None, ("N*m",), "effort", None),
        (None, None, None, None),
    ],
)
def test_joints_and_what_is_said_of_them(elements: Any, units: Any, what: str | None, names: Any) -> None:
    of = FieldInterface(elements=elements, units=units)
    assert (quantity(of), joint_names(of)) == (what, names)


@pytest.mark.parametrize(
    "document",
    [
        {"a": {"b": [1, 2.5, 1e-05, 1e30, "yes", "1e5", "ü: #", True, None]}, "empty": {}, "none": []},
        {"list": [{"name": "x", "deep": {"shape": [1, 3]}}, {"name": "y"}], "nested": [[["a", "b"]]]},
        {"state.0/C: x": {"policy/a.b": ["policy/c"]}},
    ],
)
def test_yaml_says_what_it_was_given(document: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(document)) == document

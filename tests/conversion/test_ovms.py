"""What is written for OpenVINO Model Server runs in OpenVINO as the server runs it: the server is not on PyPI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from servers import check
from servers.ovms_client import RemotePolicy

from lram_export import ExportOptions, StepPolicy, export_bundle, load_policy
from tests.conftest import SLOW, ExportFunction, cli, fail, load_golden
from tests.conversion.closed import observed
from tests.conversion.ovms_stand_in import serving
from tests.step_module.modules import POLICIES, Echoing

ONLY = ("onnxruntime",)
GOLDEN = ("state_ms", "dt_state", *(pytest.param(name, marks=SLOW) for name in ("mamba_state", "image_m", "dt_image")))
OWN = ("awkward", "echoing", "seeing", "choosing", "counting")


def of(name: str, exported: ExportFunction) -> Path:
    """A bundle that other tests of a session have, too."""
    return exported(name, targets=ONLY) if name in ("state_m", "state_ms") else exported(name)


def own(name: str, folder: Path) -> Path:
    return export_bundle(POLICIES[name](), None, folder / "own.lram", ExportOptions(ONLY, report=False)).path


def convert(bundle: Path, folder: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """What the command says of it, and where it is."""
    path = folder / "reach"
    result = cli("convert", bundle, "--to", "ovms", "-o", path, "--json", "--quiet", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), path


def config_of(path: Path) -> dict[str, Any]:
    (entry,) = json.loads((path / "config.json").read_text())["model_config_list"]
    config: dict[str, Any] = entry["config"]
    return config


def request_of(path: Path) -> Any:
    import openvino as ov

    properties = {**config_of(path)["plugin_config"], "INFERENCE_NUM_THREADS": "1"}
    return ov.Core().compile_model(path / "1" / "model.xml", "CPU", properties).create_infer_request()


class TestStateful:
    @pytest.mark.parametrize("name", GOLDEN)
    def test_reset_state_alone_begins_an_episode(self, name: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of(name, exported)
        said, path = convert(bundle, tmp_path)
        assert said["actions_different"] == 0 and said["states"] == [] and said["inputs"] == ["observation"]
        request = request_of(path)
        with load_policy(bundle, "onnxruntime", threads=1) as policy:
            for _ in range(2):
                policy.reset()
                request.reset_state()
                for step in observed(bundle):
                    found = request.infer({"observation": step["observation"]})["action"]
                    np.testing.assert_array_equal(found, policy.step(step)["action"])

    def test_the_files_and_what_the_server_is_told(self, exported: ExportFunction, tmp_path: Path) -> None:
        _, path = convert(of("state_m", exported), tmp_path, "--sequences", "300")
        config = config_of(path)
        assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
            *("1/model.bin", "1/model.xml", "config.json", "lram.json")
        ]
        assert (config["name"], config["base_path"], config["stateful"]) == ("reach", ".", True)
        assert (config["max_sequence_number"], config["idle_sequence_cleanup"]) == (300, True)
        assert config["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f32"
        assert "max_sequence_number" in config_of(convert(of("state_m", exported), tmp_path, "--force")[1])

    def test_the_client_of_the_documentation_acts_as_the_policy(
        self, exported: ExportFunction, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Three robots, interleaved, whose numbers are used again."""
        bundle = of("state_ms", exported)
        _, path = convert(bundle, tmp_path, "--sequences", "3")
        with serving(path / "config.json") as address:
            assert check.main("ovms", address, "reach", str(bundle)) == 0
            assert json.loads(capsys.readouterr().out)["actions"] == 6 * 64 * 8
            (step,) = observed(bundle, steps=1)
            with pytest.raises(HTTPError, match="404"):  # it was told that the last episode has ended
                RemotePolicy(address, "reach", 1).act(step)

    @pytest.mark.parametrize("name", OWN)
    def test_modules_of_ones_own(self, name: str, tmp_path: Path) -> None:
        said, path = convert(own(name, tmp_path), tmp_path)
        assert said["largest_error"] <= 1e-4 and config_of(path)["stateful"] is True

    @pytest.mark.parametrize("precision", ["int8", *(pytest.param(p, marks=SLOW) for p in ("int4", "int8g", "bf16"))])
    def test_other_precisions(self, precision: str, exported: ExportFunction, tmp_path: Path) -> None:
        options = (*load_golden("state_ms").task_options, "--precision", precision)
        targets = ("onnxruntime", "native") if precision == "int8" else ONLY
        said, _ = convert(exported("state_ms", targets=targets, options=options), tmp_path)
        assert said["actions_different"] <= 2

    def test_the_reward_is_an_input_where_that_is_asked_for(self, exported: ExportFunction, tmp_path: Path) -> None:
        said, _ = convert(exported("dt_state", "observed"), tmp_path, "--reward-input")
        assert said["inputs"] == ["observation", "reward"] and said["actions_different"] == 0


class TestStateless:
    def test_the_state_goes_in_and_out(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = of("state_ms", exported)
        said, path = convert(bundle, tmp_path, "--stateless")
        assert said["actions_different"] == 0 and "state.running" in said["states"]
        assert {*config_of(path)} == {"name", "base_path", "target_device", "plugin_config"}
        request = request_of(path)
        assert not request.query_state()
        state = {n: np.zeros(request.get_tensor(n).shape, np.float32) for n in said["states"]}
        with load_policy(bundle, threads=1) as policy:
            for step in observed(bundle, steps=8):
                found = request.infer({**step, **state})
                np.testing.assert_array_equal(found["action"], policy.step(step)["action"])
                state = {name: np.array(found[f"next_{name}"]) for name in state}

    def test_a_policy_without_a_state_needs_none(self, tmp_path: Path) -> None:
        said, path = convert(own("plain", tmp_path), tmp_path)
        assert "stateful" not in config_of(path) and said["states"] == [] and said["largest_error"] <= 1e-5


class TestErrors:
    def refused(self, folder: Path, bundle: Path, *options: str) -> str:
        """The one line; nothing is left."""
        before = sorted(folder.iterdir())
        code, line = fail("convert", bundle, "--to", "ovms", "-o", folder / "reach", *options)
        assert code == 2 and sorted(folder.iterdir()) == before
        return line

    def test_sequences_without_a_state(self, exported: ExportFunction, tmp_path: Path) -> None:
        line = self.refused(tmp_path, of("state_m", exported), "--stateless", "--sequences", "3")
        assert "--sequences: with --stateless the server keeps none; leave one of them out" in line

    def test_options_of_the_other_server(self, exported: ExportFunction, tmp_path: Path) -> None:
        for options in (("--backend", "python"), ("--max-batch", "4"), ("--idle", "3"), ("--target", "native")):
            line = self.refused(tmp_path, of("state_m", exported), *options)
            assert f"{options[0]}: --to ovms has no such choice; leave it out" in line

    def test_a_bundle_without_the_graph(self, exported: ExportFunction, tmp_path: Path) -> None:
        line = self.refused(tmp_path, exported("state_m", targets=("native",)))
        assert "it has: native. Export again with --target onnxruntime" in line

    def test_an_observation_that_is_called_as_an_input_of_the_servers(self, tmp_path: Path) -> None:
        policy = StepPolicy(
            Echoing(),
            observation={"sequence_id": 4},
            action={"action": 5, "again": 5, "heard": 4, "held": 2},
            state={"hidden": 5, "kept": 2},
        )
        bundle = export_bundle(policy, None, tmp_path / "own.lram", ExportOptions(ONLY, report=False)).path
        assert "sequence_id: the policy observes something of that name" in self.refused(tmp_path, bundle)

    def test_rewards_that_the_policy_needs(self, exported: ExportFunction, tmp_path: Path) -> None:
        assert "add --reward-input" in self.refused(tmp_path, exported("dt_state", "observed"))

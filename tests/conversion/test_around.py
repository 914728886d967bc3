"""A folder around a bundle, for programs for robots that run the bundle as it is: physicalai and LeRobot."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import Bundle, ExportOptions, Field, StepPolicy, camera, export_bundle, load_policy
from lram_export.conversion.around import BUNDLE_FOLDER
from lram_export.errors import BundleError, UsageError
from lram_export.integrations.physicalai.package import PackagePolicy
from lram_export.integrations.robot_policy import RobotPolicy
from lram_export.spec.interface import FieldInterface, Interface
from tests.conftest import ExportFunction, fail, load_golden, succeed
from tests.conversion.closed import observed
from tests.conversion.robots import FRAMES, JOINTS, ONLY, bundle_of_two_sensors, bundle_that_sees
from tests.step_module.modules import POLICIES
from tests.test_imports import python

FORMATS = ("physicalai", "lerobot")


def convert(form: str, bundle: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / form
    return path, json.loads(succeed("convert", bundle, "--to", form, "-o", path, "--json", "-q").stdout)


@pytest.fixture(scope="module")
def sees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_that_sees(tmp_path_factory.mktemp("sees") / "sees.lram", FRAMES)


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of_two_sensors(tmp_path_factory.mktemp("sensors") / "sensors.lram")


@pytest.mark.parametrize("form", FORMATS)
class TestFolders:
    def test_the_bundle_in_it_is_the_bundle(self, form: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=ONLY)
        linked = tmp_path / "linked.lram"
        for file in (file for file in bundle.rglob("*") if file.is_file()):
            (linked / file.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            (linked / file.relative_to(bundle)).symlink_to(file)
        (linked / "notes.txt").write_text("of nobody's")
        path, said = convert(form, linked, tmp_path)
        copy = path / BUNDLE_FOLDER
        files = {file.relative_to(copy) for file in copy.rglob("*") if file.is_file()}
        assert files == {file.relative_to(bundle) for file in bundle.rglob("*") if file.is_file()}
        assert all((copy / file).read_bytes() == (bundle / file).read_bytes() for file in files)
        assert not any(file.is_symlink() for file in path.rglob("*"))
        succeed("verify", copy)
        assert said["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    @pytest.mark.parametrize("name", ["state_ms", "sees", "sensors"])
    def test_not_an_action_differs(
        self, form: str, name: str, exported: ExportFunction, sees: Path, sensors: Path, tmp_path: Path
    ) -> None:
        bundle = {"sees": sees, "sensors": sensors}.get(name) or exported(name, targets=ONLY)
        _, said = convert(form, bundle, tmp_path)
        assert said["actions_different"] == 0 and said["actions"] >= 2 * said["steps"] >= 16
        state, image = {
            "physicalai": ("state", "images"),
            "lerobot": ("observation.state", "observation.images.camera"),
        }[form]
        assert said["inputs"] == ([state, image] if name == "sees" else [state])
        assert said["outputs"] == ["action"] and said["states"] == []

    def test_every_target_of_it_runs(self, form: str, exported: ExportFunction, tmp_path: Path) -> None:
        options = (*load_golden("state_ms").task_options, "--precision", "int8")
        bundle = exported("state_ms", targets=("onnxruntime", "native"), options=options)
        path, _ = convert(form, bundle, tmp_path)
        for target in ("onnxruntime", "native"):
            robot = RobotPolicy(path / BUNDLE_FOLDER, "a robot", target)
            with load_policy(bundle, target) as policy:
                for _ in range(2):
                    policy.reset()
                    for number, step in enumerate(observed(bundle, steps=8)):
                        found = robot.step(step["observation"], {}, first=not number)
                        np.testing.assert_array_equal(found, policy.step(step)["action"])
            assert robot.target == target

    def test_what_it_cannot_run_is_refused_in_a_line(self, form: str, exported: ExportFunction, tmp_path: Path) -> None:
        def own(policy: StepPolicy, name: str) -> Path:
            return export_bundle(policy, None, tmp_path / f"{name}.lram", ExportOptions(ONLY, report=False)).path

        made = POLICIES["echoing"]()
        said = Interface(action={name: FieldInterface(units=("rad",)) for name in ("action", "held")})
        arms = StepPolicy(
            made.module, observation=made.observation, action=made.action, state=made.state, interface=said
        )

        class Counting(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x.float())

        grey = StepPolicy(Counting(3, 2), observation={"ticks": Field((3,), "uint8")}, action=2)
        for bundle, words in (
            (exported("state_ms", "observed"), "gives it none; export with --reward-feedback none"),
            (own(POLICIES["choosing"](), "choosing"), "action is a choice (int64), and an action of"),
            (own(arms, "arms"), "the robot is driven by action, held, and"),
            (own(grey, "grey"), "ticks is uint8 of shape (3,)"),
        ):
            code, line = fail("convert", bundle, "--to", form, "-o", tmp_path / "out")
            assert code == 2 and words in line and line.startswith(f"error: {bundle}: "), line
            assert not (tmp_path / "out").exists()

    def test_a_damaged_bundle(self, form: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = Path(shutil.copytree(exported("state_m", targets=ONLY), tmp_path / "damaged.lram"))
        with (bundle / "reference.npz").open("r+b") as file:
            file.write(b"no archive")
        code, line = fail("convert", bundle, "--to", form, "-o", tmp_path / "out")
        assert code == 1 and f"{bundle / 'reference.npz'}: content differs" in line
        assert [path.name for path in tmp_path.iterdir()] == ["damaged.lram"]

    def test_only_a_folder_of_its_kind_is_replaced(self, form: str, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = exported("state_m", targets=ONLY)
        path, _ = convert(form, bundle, tmp_path)
        succeed("convert", bundle, "--to", form, "-o", path, "--force")
        shutil.rmtree(path / BUNDLE_FOLDER)
        assert "it has no bundle.lram/manifest.json" in fail("convert", bundle, "--to", form, "-o", path, "--force")[1]


class TestPackage:
    def test_it_is_what_physicalai_reads(self, sees: Path, tmp_path: Path) -> None:
        path, _ = convert("physicalai", sees, tmp_path)
        said = json.loads((path / "manifest.json").read_text())
        assert (said["format"], said["version"]) == ("policy_package", "1.0")
        assert said["model"]["artifacts"] == {"lram": BUNDLE_FOLDER}
        assert said["model"]["runner"]["class_path"] == "lram_export.integrations.physicalai.plugin.LramRunner"
        (robot,), (camera_said,) = said["hardware"]["robots"], said["hardware"]["cameras"]
        assert robot["state"] == {"shape": [12], "dtype": "float32"}
        assert robot["action"] == {"shape": [6], "dtype": "float32", "order": list(JOINTS)}
        assert camera_said == {"name": "camera", "shape": [3, 16, 16], "dtype": "uint8"}
        features = [said["model"][f"{side}_features"][0]["init_args"] for side in ("input", "output")]
        assert [(of["ftype"], of["name"], of["shape"]) for of in features] == [
            ("STATE", "state", [12]),
            ("ACTION", "action", [6]),
        ]

    def test_the_state_has_the_sensors_one_after_the_other(self, sensors: Path, tmp_path: Path) -> None:
        path, _ = convert("physicalai", sensors, tmp_path)
        (robot,) = json.loads((path / "manifest.json").read_text())["hardware"]["robots"]
        assert robot["state"]["order"] == ["a", "b", "c", "fx", "fy", "tx", "ty", "d", "e"]
        values = np.arange(9, dtype=np.float32)
        given = {"position": values[:3], "wrench": values[3:7].reshape(2, 2), "past": values[7:]}
        with load_policy(sensors) as policy:
            expected = policy.step(given)["action"]
        found = PackagePolicy(path / BUNDLE_FOLDER).step({"state": values[None]}, first=True)
        np.testing.assert_array_equal(found["action"], expected[None])

    def test_frames_become_the_images_of_the_training(self, sees: Path, tmp_path: Path) -> None:
        path, _ = convert("physicalai", sees, tmp_path)
        package, rng = PackagePolicy(path / BUNDLE_FOLDER), np.random.default_rng(0)
        assert package.inputs == ["state", "images"]
        with load_policy(sees) as policy:
            for number in range(6):
                state = rng.standard_normal((1, 12), np.float32)
                frame = rng.integers(0, 256, (1, 48, 64, 3), np.uint8)
                expected = policy.step({"proprio": state, "camera": camera.prepare(frame, FRAMES)}, first=number == 4)
                found = package.step({"state": state, "images": frame}, first=number in (0, 4))
                np.testing.assert_array_equal(found["action"], expected["action"])

    def test_wrong_inputs_are_named_and_change_nothing(self, sees: Path) -> None:
        package, twin = PackagePolicy(sees), PackagePolicy(sees)
        good = {"state": np.zeros((1, 12), np.float32), "images": np.zeros((1, 20, 20, 3), np.uint8)}
        first = [each.step(good, first=True)["action"] for each in (package, twin)]
        for wrong, words in (
            ({"state": np.zeros((1, 4), np.float32)}, r"state: expected shape \(1, 12\), got \(1, 4\)"),
            ({"state": np.full((1, 12), np.nan, np.float32)}, "proprio"),
            ({"images": np.zeros((1, 20, 20, 3), np.float32)}, "camera: frame: expected uint8, got float32"),
            ({"images": np.zeros((2, 20, 20, 3), np.uint8)}, "camera: expected a frame for each of 1 rows, got 2"),
        ):
            with pytest.raises(ValueError, match=words):
                package.step({**good, **wrong}, first=True)
        np.testing.assert_array_equal(*first)
        np.testing.assert_array_equal(package.step(good, first=False)["action"], twin.step(good, first=False)["action"])

    def test_an_image_that_nothing_is_said_of_has_its_own_size(self, tmp_path: Path) -> None:
        package = PackagePolicy(bundle_that_sees(tmp_path / "sees.lram"))
        state = np.zeros((1, 12), np.float32)
        package.step({"state": state, "images": np.zeros((1, 16, 16, 3), np.uint8)}, first=True)
        with pytest.raises(ValueError, match=r"camera: frame: expected 16 x 16 pixels.*got 48 x 64"):
            package.step({"state": state, "images": np.zeros((1, 48, 64, 3), np.uint8)}, first=True)

    def test_it_runs_from_the_links_of_a_hubs_cache_and_damage_there_is_named(
        self, exported: ExportFunction, tmp_path: Path
    ) -> None:
        path, _ = convert("physicalai", exported("state_m", targets=ONLY), tmp_path)
        blobs, commit = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
        blobs.mkdir()
        for number, file in enumerate(sorted(file for file in path.rglob("*") if file.is_file())):
            link = commit / file.relative_to(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            file.rename(blobs / str(number))
            link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
        PackagePolicy(commit / BUNDLE_FOLDER).step({"state": np.zeros((1, 39), np.float32)}, first=True)
        blob = (commit / BUNDLE_FOLDER / "onnxruntime" / "model.onnx").resolve()
        blob.write_bytes(blob.read_bytes()[::-1])
        with pytest.raises(BundleError, match=f"remove {blob} from the cache of Hugging Face"):
            PackagePolicy(commit / BUNDLE_FOLDER)

    def test_the_adapter_is_found_by_its_entry_point_and_imports_nothing_before_it_is_needed(self) -> None:
        (entry,) = entry_points(group="physicalai.inference.adapters", name="lram")
        registered: list[tuple[str, str, tuple[str, ...]]] = []

        class Registry:
            def register_lazy_module(self, name: str, module_path: str, *, extensions: tuple[str, ...]) -> None:
                registered.append((name, module_path, extensions))

        entry.load()(Registry())
        ((name, module, extensions),) = registered
        assert (name, extensions) == ("lram", (".lram",)) and find_spec(module) is not None
        assert module not in sys.modules
        code = (
            f"import {entry.value.partition(':')[0]}, sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
        )
        assert python(code).strip() == "[]"


class TestLeRobot:
    def test_it_is_what_lerobot_reads(self, sees: Path, tmp_path: Path) -> None:
        path, _ = convert("lerobot", sees, tmp_path)
        config = json.loads((path / "config.json").read_text())
        assert config == {
            "type": "lram",
            "n_obs_steps": 1,
            "input_features": {
                "observation.state": {"type": "STATE", "shape": [12]},
                "observation.images.camera": {"type": "VISUAL", "shape": [3, 16, 16]},
            },
            "output_features": {"action": {"type": "ACTION", "shape": [6]}},
            "device": "cpu",
            "action_feature_names": list(JOINTS),
        }
        for name, steps in (
            ("policy_preprocessor", ["rename_observations_processor", "to_batch_processor", "device_processor"]),
            ("policy_postprocessor", ["device_processor"]),
        ):
            said = json.loads((path / f"{name}.json").read_text())
            assert said["name"] == name and [step["registry_name"] for step in said["steps"]] == steps


def test_a_bundle_that_a_program_cannot_run_is_refused_when_it_is_loaded(exported: ExportFunction) -> None:
    with pytest.raises(UsageError, match="and a robot gives it none"):
        RobotPolicy(exported("state_ms", "observed"), "a robot", "onnxruntime")
    assert Bundle.open(exported("state_ms", "observed")).manifest.task is not None

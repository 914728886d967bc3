"""`policy.py:make` at the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import fail, succeed

GOOD = """
import torch
from torch import nn
from beside import WIDTH
import lram_export

torch.manual_seed(1)
net = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))
policy = lram_export.StepPolicy(net, observation=4, action=2)


def make():
    torch.manual_seed(0)
    return lram_export.StepPolicy(net, observation=4, action=2)


def wrong():
    return net


def late():
    from beside import WIDTH as width

    print("made with", width)
    return policy


def leaves():
    raise SystemExit(0)


def breaks():
    return 1 / 0


class Several(nn.Module):
    def forward(self, x):
        return (x > 0).long()


def several():
    return lram_export.StepPolicy(Several(), observation=4, action=lram_export.Field(4, "int64"))


def impure():
    return lram_export.StepPolicy(nn.BatchNorm1d(4).double(), observation=4, action=4)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    path = tmp_path / "robot_policy.py"
    path.write_text(GOOD)
    return path


def test_a_file_and_what_makes_the_policy_become_a_bundle_that_verifies_against_them(file: Path) -> None:
    bundle = file.parent / "robot.lram"
    for name in ("make", "late", "policy"):
        result = succeed("export", f"{file}:{name}", "-o", bundle, "--target", "onnxruntime", "--force", "--no-report")
        assert "verified over 64 steps: largest error" in result.stderr
    shown = succeed("inspect", bundle).stdout
    assert (
        "Sequential, 2 matrices in linear layers that a precision applies to" in shown and "input observation" in shown
    )
    assert "right computation: passed" in succeed("verify", bundle, "--checkpoint", f"{file}:policy").stdout


def test_several_whole_numbers_at_a_step_are_run_and_recorded(file: Path) -> None:
    bundle, given, found = (file.parent / name for name in ("robot.lram", "given.npz", "found.npz"))
    succeed("export", f"{file}:several", "-o", bundle, "--no-report", "-q")
    observations = np.random.default_rng(0).standard_normal((20, 4), np.float32)
    np.savez(given, observations=observations)
    succeed("run", bundle, "--observations", given, "-o", found)
    with np.load(found) as arrays:
        assert list(arrays) == ["actions"]
        np.testing.assert_array_equal(arrays["actions"], observations > 0)
    assert "20 steps" in succeed("record", bundle, "--observations", given, "-o", file.parent / "steps.npz").stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "which policy of it? Name it or the function that makes it: "),
        (":absent", "has no 'absent'; it has: policy, make, wrong, late, leaves, breaks, several, impure"),
        (":wrong", "expected a lram_export.StepPolicy or a function that returns one, got Sequential"),
        (":breaks", "ZeroDivisionError: division by zero (robot_policy.py:33: return 1 / 0)"),
        (":leaves", "SystemExit: 0 (robot_policy.py:29: raise SystemExit(0))"),
        (":make:again", "which policy of it?"),
        (":impure", "is float64, expected float32; call module.float()"),
    ],
)
def test_what_makes_no_policy_is_answered_in_a_line(
    name: str, told: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    code, line = fail("export", f"robot_policy.py{name}", "-o", "x.lram")
    assert code == 2 and told in line, line
    assert not Path("x.lram").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name' (policy.py:1"),
        ("def make(:\n", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "SystemExit: 3 (policy.py:1"),
    ],
)
def test_errors_of_the_file_are_its_own(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.py").write_text(text)
    code, line = fail("export", "policy.py:make", "-o", "x.lram")
    assert code == 2 and told in line, line


def test_options_of_checkpoints_and_tasks_have_no_place(file: Path) -> None:
    address = f"{file}:make"
    for options, told in (
        (("--task", "metaworld/reach-v2", "--discrete"), "--task, --discrete: "),
        (("--config", "x.yaml"), "only for checkpoints; "),
        (("--context", "cache"), "only for checkpoints; "),
    ):
        code, line = fail("export", address, "-o", file.parent / "x.lram", *options)
        assert code == 2 and told in line, line
    output = ("-o", file.parent / "x")
    for command in (("inspect", address), ("convert", address, *output), ("sweep", address, *output)):
        code, line = fail(*command)
        assert code == 2 and "a Python file is a policy to export, verify or report, not a checkpoint" in line


def test_another_policy_is_not_what_the_bundle_was_exported_from(file: Path) -> None:
    bundle = file.parent / "robot.lram"
    succeed("export", f"{file}:make", "-o", bundle, "--no-report")
    for before, after, told in (
        ("observation=4, action=2", "observation={'x': 4}, action=2", "Sequential: inputs: "),
        ("manual_seed(1)", "manual_seed(2)", "not the file this bundle was exported from"),
    ):
        other = file.parent / "other.py"
        other.write_text(GOOD.replace(before, after))
        code, line = fail("verify", bundle, "--checkpoint", f"{other}:make")
        assert code == 2 and told in line, line

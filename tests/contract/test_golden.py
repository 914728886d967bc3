"""Through the command line, every target does what the original training code's own agent did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lram_export import Bundle
from lram_export.errors import UsageError
from lram_export.runtimes import RUNTIMES
from lram_export.targets.backbones import kernels_of, targets_of
from tests.conftest import GOLDEN_NAMES, SLOW, ExportFunction, Golden, succeed

LOGIT_TOLERANCE = 1e-4
RECORDED = ("observations", "rewards", "is_first")


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize(
    ("golden", "feedback"),
    [
        *((name, "none") for name in GOLDEN_NAMES if name not in ("mamba_state", "dt_image")),
        *((name, "observed") for name in ("state_ms", "mamba_state", "dt_state")),
        *(pytest.param(name, "none", marks=SLOW) for name in ("mamba_state", "dt_image")),
        *(pytest.param(name, "observed", marks=SLOW) for name in ("state_m", "image_m", "mamba_image", "dt_image")),
    ],
    indirect=["golden"],
)
def test_actions_and_logits_equal_the_trace(
    golden: Golden, feedback: str, target: str, exported: ExportFunction, tmp_path: Path
) -> None:
    if target not in targets_of(golden.backbone):
        with pytest.raises(UsageError) as refused:
            kernels_of(target, golden.backbone)
        pytest.skip(str(refused.value))
    actions, logits, return_to_go = golden.expected(feedback)
    bundle = exported(golden.name, feedback)
    if Bundle.open(bundle).manifest.task.action == "discrete":
        actions = actions[:, 0]  # the traces give it a dimension of its own
    recording = tmp_path / "recording.npz"
    steps = len(actions)
    recorded = {name: golden.trace[name][:steps] for name in RECORDED if name in golden.trace}
    np.savez(recording, **recorded)
    output = tmp_path / "actions.npz"
    succeed("run", bundle, "--target", target, "--observations", recording, "-o", output)

    with np.load(output) as result:
        assert result["actions"].shape == actions.shape
        np.testing.assert_array_equal(result["actions"], actions)
        np.testing.assert_array_equal(result["return_to_go"], return_to_go)
        assert result["action_logits"].shape == logits.shape
        assert np.abs(result["action_logits"] - logits).max() <= LOGIT_TOLERANCE


def test_the_traces_cover_what_they_should(golden: Golden) -> None:
    """Guards the guard: traces long enough, and semantics that differ."""
    none, observed = golden.expected("none")[1], golden.expected("observed")[1]
    assert len(none) >= 48 and len(observed) >= 24
    assert np.abs(none[: len(observed)] - observed).max() > 1e-2

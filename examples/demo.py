"""From a trained checkpoint to a policy that acts without PyTorch, in one go (`make demo`).

The same on the command line::

    lram-export export tests/golden/state_m/model.zip -o reach.lram --task metaworld/reach-v2
    lram-export verify reach.lram --checkpoint tests/golden/state_m/model.zip --steps 200
    lram-export bench reach.lram --steps 200
"""

import tempfile
from pathlib import Path

import numpy as np

from lram_export import load_policy
from lram_export.benchmark import BenchOptions, bench
from lram_export.checkpoint import load_checkpoint
from lram_export.cli.console import ConsoleProgress, human_bytes, print_table
from lram_export.export import export_bundle
from lram_export.machine import physical_cores
from lram_export.tasks import resolve_task
from lram_export.verify import verify_against_checkpoint

CHECKPOINT = Path(__file__).parent.parent / "tests" / "golden" / "state_m" / "model.zip"
STEPS = 200


def main() -> None:
    """Export, verify against the reference model, act, and print what it took."""
    progress, threads = ConsoleProgress(quiet=False), physical_cores()
    task = resolve_task("metaworld/reach-v2")
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(load_checkpoint(CHECKPOINT), task, Path(folder) / "reach.lram", progress=progress)
        meters = verify_against_checkpoint(
            bundle,
            load_checkpoint(CHECKPOINT),
            bundle.targets,
            steps=STEPS,
            threads=threads,
            progress=progress,
        )
        act(bundle.path)
        report = bench(bundle, BenchOptions(bundle.targets, threads, steps=STEPS), progress)

    rows = []
    for timing in report.results:
        parity = meters[timing.target].result()
        rows.append(
            [
                timing.target,
                timing.precision,
                human_bytes(timing.size),
                f"{timing.load_ms:.0f} ms",
                f"{timing.p50_ms:.3g} / {timing.p99_ms:.3g} ms",
                f"{parity.max_logit_error:.2g}",
                f"{parity.actions_different} of {parity.actions}",
            ]
        )
    columns = ["target", "precision", "size", "load time", "p50 / p99 per step", "largest logit error"]
    print_table(f"{task.name}: {STEPS} environment steps", [*columns, "actions that differ"], rows)


def act(path: Path) -> None:
    """What a robot's control loop does; the observations are random here."""
    rng = np.random.default_rng(0)
    with load_policy(path) as policy:
        policy.reset()
        for _ in range(STEPS):
            observation = rng.standard_normal(policy.spec.inputs[0].shape[1:]).astype(np.float32)
            action = policy.act(observation)
            assert np.isfinite(action).all()


if __name__ == "__main__":
    main()

"""From a trained checkpoint to a policy that acts without PyTorch, in one go (`make demo`).

The same on the command line::

    lram-export export examples/metaworld/checkpoints/xlstm/model.zip -o reach.lram --task metaworld/reach-v2
    lram-export verify reach.lram --checkpoint examples/metaworld/checkpoints/xlstm/model.zip --steps 200
    lram-export bench reach.lram --steps 200
    lram-export evaluate reach.lram --checkpoint examples/metaworld/checkpoints/xlstm/model.zip --episodes 3 \
        --env metaworld/reach-v3 --env metaworld/hammer-v3
"""

import tempfile
from pathlib import Path

from lram_export.benchmark.bench import BenchOptions, bench
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.cli import evaluate as closed_loop
from lram_export.cli.console import ConsoleProgress, print_table
from lram_export.describe import human_bytes
from lram_export.export import export_bundle
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate, reference_policy
from lram_export.spec.tasks import resolve_task
from lram_export.system.machine import suitable_threads
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint

CHECKPOINT = Path(__file__).parent / "metaworld" / "checkpoints" / "xlstm" / "model.zip"
ENVIRONMENTS = ("metaworld/reach-v3", "metaworld/hammer-v3")
STEPS, EPISODES = 200, 3


def main() -> None:
    """Export, verify against the reference model, time, act in closed loop, and print what it took."""
    progress = ConsoleProgress(quiet=False)
    task, checkpoint = resolve_task("metaworld/reach-v2"), load_checkpoint(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(checkpoint, task, Path(folder) / "reach.lram", progress=progress)
        threads = suitable_threads(bundle.manifest.parameters, bundle.manifest.batch_size)
        steps = checkpoint_steps(bundle, None, STEPS, seed=1)
        compared = verify_against_checkpoint(
            bundle, checkpoint, bundle.targets, inputs=steps, threads=threads, progress=progress
        )
        report = bench(bundle, BenchOptions(bundle.targets, threads, steps=STEPS), progress)
        options = EvaluationOptions(ENVIRONMENTS, bundle.targets, EPISODES)
        with reference_policy(bundle, checkpoint) as reference:
            evaluation = evaluate(bundle, options, reference, progress)

    rows = []
    for timing in report.results:
        parity = compared.results[timing.target]
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
    print_table(
        f"closed loop: {EPISODES} episodes per task and policy",
        closed_loop.COLUMNS,
        closed_loop.rows(evaluation),
        closed_loop.notes(evaluation),
    )


if __name__ == "__main__":
    main()

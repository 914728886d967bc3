"""Write the model card of a trained checkpoint from what was measured.

python examples/metaworld/card.py build/metaworld examples/metaworld/checkpoint
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from collect import Episodes

from lram_export.checkpoints.loading import load_checkpoint
from lram_export.cli.console import message
from lram_export.episodes.intervals import Mean
from lram_export.system.files import atomic_file

TEMPLATE = """# A small LRAM for ten Meta-World tasks

An xLSTM policy trained to imitate Meta-World's scripted experts, in the format of the original training code:
`model.zip` with `.hydra/config.yaml` beside it. It exists to judge exported policies in closed loop
(`lram-export evaluate`); it is not meant for a physical robot.

| | |
|---|---|
| architecture | hidden {hidden}, {blocks} blocks, sLSTM at {slstm_at}, {parameters:,} weights |
| input | the 39 values of a Meta-World observation, unscaled (the normalization is folded into `embed_state`) |
| output | 4 action values, 256 bins each |
| data | {episodes} successful episodes of scripted experts, a third each with noise of 0, 0.1 and 0.3 on the action |
| recipe | {batches} batches of {batch_size} windows of {context} steps, AdamW at {learning_rate:g}, seed {seed} |
| training | {minutes:.0f} minutes, processes: {processes}; last loss {loss:.2f} |
| licence | Apache-2.0 |

## Success

{count} episodes per task, seeds {first_seed} to {last_seed}; training used layouts from seed 1,000,000 on. An episode
has 200 steps and succeeds if the task's own criterion holds at any of them. 95% intervals: Wilson for the
success, bootstrap for the return. The float32 reference model (PyTorch) acted; rewards were given to it, with reward
feedback `none`.

| task | training episodes | success | return |
|---|---|---|---|
{rows}
| mean of the tasks | | {mean:.1f}% | |

## Make it again

```console
make metaworld
```

collects the episodes, trains, evaluates, and writes checkpoint and card to `build/metaworld`. Interrupted, it goes on
where it was. On another machine sums are rounded in another order and the weights differ; success is then about the
same, not equal.
"""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(run: Path, output: Path) -> None:
    """Write README.md into OUTPUT from RUN: episodes, run and evaluations, as `make metaworld` leaves them."""
    training: dict[str, Any] = torch.load(run / "run" / "training.pt", weights_only=True)
    evaluations = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(run.glob("evaluation-*.json"))]
    checkpoint = load_checkpoint(run / "run" / "model.zip")
    played = {f.stem: len(Episodes.load(f).success) for f in sorted((run / "episodes").glob("*.npz"))}
    results = [r for evaluation in evaluations for r in evaluation["results"] if r["policy"] == "reference"]
    rows = []
    for result in results:
        task = result["environment"].partition("/")[2]
        success, gained = result["success"], Mean(**result["return"])
        rows.append(
            f"| `{task}` | {played[task]} | {100 * success['value']:.0f}% ({100 * success['low']:.0f} to "
            f"{100 * success['high']:.0f}) | {gained} |"
        )
    seeds = [episode["seed"] for episode in results[0]["episodes"]]
    config = checkpoint.config
    text = TEMPLATE.format(
        hidden=config.backbone.hidden_size,
        blocks=config.backbone.num_blocks,
        slstm_at=list(config.backbone.slstm_at),
        parameters=checkpoint.parameters,
        episodes=sum(played.values()),
        minutes=training["seconds"] / 60,
        processes=training["processes"],
        loss=sum(training["losses"][-50:]) / len(training["losses"][-50:]),
        count=len(seeds),
        first_seed=min(seeds),
        last_seed=max(seeds),
        rows="\n".join(rows),
        mean=100 * sum(r["success"]["value"] for r in results) / len(results),
        **{k: training["recipe"][k] for k in ("batches", "batch_size", "context", "learning_rate", "seed")},
    )
    with atomic_file(output / "README.md", force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    message(f"{output / 'README.md'}: written", quiet=False)


if __name__ == "__main__":
    main()

"""Write the model card of the trained checkpoints from what was measured.

    python examples/metaworld/card.py build/metaworld examples/metaworld/checkpoints

Reads ``<backbone>/model.zip`` and ``<backbone>/training.json`` of the output, and ``measured/`` of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from collect import TASKS
from measure import PLAYED, PRECISIONS, TARGETS, Way, ways
from policies import POLICIES

from lram_export.cli.console import message
from lram_export.describe import counted
from lram_export.episodes.intervals import Estimate, mean, success_rate
from lram_export.system.files import atomic_file

Document = Mapping[str, Any]

TITLES = {"xlstm": "xLSTM", "mamba": "Mamba", "decision_transformer": "Transformer"}
TEMPLATE = """# Three small action models for ten Meta-World tasks

An xLSTM, a Mamba and a Decision Transformer of about the same size, trained to imitate Meta-World's scripted experts on
the same episodes by the same recipe, in the format of the original training code: `model.zip` with
`.hydra/config.yaml` beside it. They exist to judge exported policies in closed loop (`lram-export evaluate`) and to
compare what the three backbones cost; they are not meant for a physical robot. Licence: Apache-2.0.

| | |
|---|---|
| input | the 39 values of a Meta-World observation, unscaled (the normalization is folded into `embed_state`) |
| output | 4 action values, 256 bins each |
| data | {episodes} successful episodes of scripted experts, a third each with noise of 0, 0.1 and 0.3 on the action |
| recipe | {batches} batches of {batch_size} windows of {context} steps, AdamW at {learning_rate:g}, seed {seed} |

{trained}

The recipe was chosen for the xLSTM and not tuned for the others, and each was trained once: a difference of a few
percent between them says nothing of the backbones. Minutes of training are those of machines that did other work, too.

## Success

{count} episodes per task, seeds {first_seed} to {last_seed}; training used layouts from seed 1,000,000 on. An episode
has 200 steps and succeeds if the task's own criterion holds at any of them. 95% intervals: Wilson for the success,
bootstrap for the return. The exported policy acted, target `{played}`; rewards lowered the return-to-go, and were not
shown as tokens (reward feedback `none`).

{success}

![Success against the time of a step](success.svg)

Success at `fp32`, task by task:

{tasks}

## What a step costs

Milliseconds of a whole `Policy.act`, median; every row's targets took turns in one run.
{machine}

{latency}

State is what a policy carries from step to step.

## What the cache costs the Transformer

{contexts}

## Make it again

```console
make metaworld
```

collects the episodes, trains, measures, and writes checkpoints and card to `build/metaworld`. Interrupted, it goes on
where it was. On another machine sums are rounded in another order and the weights differ; success is then about the
same, not equal.
"""


def title(way: Way) -> str:
    """A policy in words."""
    return TITLES[way.backbone] + ("" if way.context is None else f", {way.context}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else "|---" * len(line) + "|" for line in lines)


def trained_table(checkpoints: Path, training: Mapping[str, Document]) -> str:
    """What each was trained to."""
    rows = []
    for backbone, policy in POLICIES.items():
        facts, own = ", ".join(f"{name} {value}" for name, value in policy.backbone.facts()[:3]), training[backbone]
        size = (checkpoints / backbone / "model.zip").stat().st_size
        rows.append(
            [
                f"[{TITLES[backbone]}]({backbone})",
                facts,
                f"{policy.config.parameters:,}",
                f"{size / 1e6:.1f} MB",
                f"{own['seconds'] / 60:.0f} minutes",
                f"{own['loss']:.2f}",
            ]
        )
    return table(["", "sizes", "weights", "file", "training", "last loss"], rows)


def episodes_of(measured: Document) -> Iterator[Document]:
    """All of them, whatever the task."""
    for result in measured["played"].values():
        yield from result["episodes"]


def success_table(measured: Mapping[tuple[str, str], Document]) -> str:
    """All tasks together, of every policy at every precision."""
    rows = []
    for way in ways():
        for precision in PRECISIONS:
            document = measured[way.name, precision]
            success, gained = success_of(document), mean([e["episode_return"] for e in episodes_of(document)])
            cells = (f"{100 * success.value:.1f}% ({100 * success.low:.1f} to {100 * success.high:.1f})", str(gained))
            rows.append([title(way), f"`{precision}`", *cells])
    return table(["policy", "precision", "success", "return"], rows)


def success_of(document: Document) -> Estimate:
    """Of all episodes together."""
    episodes = list(episodes_of(document))
    return success_rate(sum(bool(e["success"]) for e in episodes), len(episodes))


def draw(measured: Mapping[tuple[str, str], Document], path: Path) -> None:
    """The chart: success of every policy at every precision against the time of its step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for way, colour in zip(ways(), ("#0072b2", "#cc79a7", "#d55e00", "#e69f00"), strict=True):
        for precision, marker in zip(PRECISIONS, ("o", "s"), strict=True):
            document = measured[way.name, precision]
            time = next(r["p50_ms"] for r in document["timed"]["results"] if r["target"] == PLAYED)
            value, low, high = (100 * number for number in success_of(document))
            bounds = [[value - low], [high - value]]
            label = f"{title(way)}, {precision}"
            axes.errorbar(time, value, bounds, fmt=marker, color=colour, capsize=3, label=label)
    axes.set(xscale="log", xlabel=f"milliseconds per step, {PLAYED}", ylabel="success, %")
    axes.grid(True, which="both", color="0.9")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_file(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def task_table(measured: Mapping[tuple[str, str], Document]) -> str:
    """Every task, of every policy."""
    rows = []
    for task in TASKS:
        cells = []
        for way in ways():
            success = measured[way.name, "fp32"]["played"][task]["success"]
            cells.append(f"{100 * success['value']:.0f}% ({100 * success['low']:.0f} to {100 * success['high']:.0f})")
        rows.append([f"`{task}`", *cells])
    return table(["task", *map(title, ways())], rows)


def latency_table(measured: Mapping[tuple[str, str], Document]) -> str:
    """Median step on every target, weights on disk and state in memory."""
    rows = []
    for way in ways():
        states = POLICIES[way.backbone].config.in_context(way.context).backbone.states(1, 3)
        state = sum(4 * math.prod(tensor.shape) for tensor in states)
        for precision in PRECISIONS:
            results = {r["target"]: r for r in measured[way.name, precision]["timed"]["results"]}
            times = [f"{results[target]['p50_ms']:.3g}" if target in results else "-" for target in TARGETS]
            memory = results[PLAYED]["peak_memory"]
            cells = [
                f"{results[PLAYED]['size'] / 1e6:.2f} MB",
                f"{state / 1e3:.0f} kB",
                "-" if memory is None else f"{memory / 1e6:.0f} MB",
            ]
            rows.append([title(way), f"`{precision}`", *times, *cells])
    return table(["policy", "precision", *TARGETS, f"file of `{PLAYED}`", "state", f"memory with `{PLAYED}`"], rows)


def context_lines(measured: Mapping[tuple[str, str], Document]) -> str:
    """What the same weights do behind a cache, beside the window they were trained with."""
    window, cache = (measured[f"decision_transformer-{context}", "fp32"] for context in ("window", "cache"))
    pairs = list(zip(episodes_of(window), episodes_of(cache), strict=True))
    lost = sum(bool(a["success"]) and not b["success"] for a, b in pairs)
    won = sum(bool(b["success"]) and not a["success"] for a, b in pairs)
    change = mean([b["episode_return"] - a["episode_return"] for a, b in pairs])
    ratios = []
    for target in TARGETS:
        times = [
            next((r["p50_ms"] for r in document["timed"]["results"] if r["target"] == target), None)
            for document in (window, cache)
        ]
        if None not in times:
            ratios.append(f"{times[0] / times[1]:.1f} times as fast on `{target}`")
    return (
        f"The same weights, the same {len(pairs)} episodes at `fp32`: {lost} that succeed with the window fail with "
        f"the cache, {won} the other way round, and the return changes by {change} on average. A step with the cache "
        f"is {', '.join(ratios)}."
    )


def machine_line(document: Document) -> str:
    """Where it was timed."""
    found = document["timed"]
    return f"Measured on: {found['cpu']}, {counted(found['results'][0]['threads'], 'thread')}."


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(run: Path, output: Path) -> None:
    """Write README.md and success.svg into OUTPUT, which holds the checkpoints, from RUN, where they were measured."""
    training = {
        backbone: json.loads((output / backbone / "training.json").read_text(encoding="utf-8")) for backbone in POLICIES
    }
    measured = {
        (way.name, precision): {
            part: json.loads((run / "measured" / f"{way.name}-{precision}-{part}.json").read_text(encoding="utf-8"))
            for part in ("played", "timed")
        }
        for way in ways()
        for precision in PRECISIONS
    }
    some = measured["xlstm", "fp32"]
    seeds = [episode["seed"] for episode in next(iter(some["played"].values()))["episodes"]]
    recipe = training["xlstm"]["recipe"]
    text = TEMPLATE.format(
        episodes=f"{training['xlstm']['episodes']:,}",
        trained=trained_table(output, training),
        count=len(seeds),
        first_seed=min(seeds),
        last_seed=max(seeds),
        played=PLAYED,
        success=success_table(measured),
        tasks=task_table(measured),
        machine=machine_line(some),
        latency=latency_table(measured),
        contexts=context_lines(measured),
        **{name: recipe[name] for name in ("batches", "batch_size", "context", "learning_rate", "seed")},
    )
    draw(measured, output / "success.svg")
    with atomic_file(output / "README.md", force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    message(f"{output / 'README.md'}: written", quiet=False)


if __name__ == "__main__":
    main()

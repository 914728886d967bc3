"""Measure the trained policies for their card: export each, play it in every task, time it on every target.

    python examples/metaworld/measure.py build/metaworld -o build/metaworld/measured

Reads ``<backbone>/model.zip`` of the folder that `train.py` filled. What was measured is kept in a file per policy,
context and precision for what was played, and one for what was timed; a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
from collect import TASKS
from policies import POLICIES

from lram_export.cli.console import message
from lram_export.system.files import atomic_file

PROGRAM = [sys.executable, "-m", "lram_export"]
TARGETS = ("onnxruntime", "openvino", "native", "tvm")
PLAYED = "native"
"""The target that plays; that all act alike is what `verify` proves."""
PRECISIONS = ("fp32", "int8")
PROCESSES = 2
"""Episodes are played by so many processes, of one thread each."""
STEPS = 1000
"""Timed steps of each target."""


@dataclass(frozen=True)
class Way:
    """A trained policy, acting in one way: the context it has, where its backbone has several."""

    backbone: str
    context: str | None

    @property
    def name(self) -> str:
        """For files and tables."""
        return self.backbone if self.context is None else f"{self.backbone}-{self.context}"


def ways() -> Iterator[Way]:
    """All policies in all of their contexts."""
    for backbone, policy in POLICIES.items():
        for context in policy.config.contexts or (None,):
            yield Way(backbone, context)


def export(checkpoint: Path, way: Way, precision: str, targets: Iterable[str], bundle: Path) -> None:
    """A bundle with the targets, acting in that way."""
    context = [] if way.context is None else ["--context", way.context]
    chosen = [part for target in targets for part in ("--target", target)]
    settings = ["--task", "metaworld/reach-v2", "--precision", precision, "--no-report", "--force", "--quiet"]
    _run("export", checkpoint, "-o", bundle, *context, *chosen, *settings)


def play(checkpoint: Path, way: Way, precision: str, folder: Path, episodes: int) -> dict[str, Any]:
    """Every task, so many episodes; what `evaluate` says of each."""
    bundle = folder / f"{way.name}-{precision}.lram"
    export(checkpoint, way, precision, [PLAYED], bundle)
    parts = [TASKS[i::PROCESSES] for i in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as players:
        shares = players.map(lambda tasks: _play(bundle, tasks, episodes), parts)
        played = {task: result for share in shares for task, result in share.items()}
    shutil.rmtree(bundle)
    return {task: played[task] for task in TASKS}


def clock(checkpoint: Path, way: Way, precision: str, folder: Path) -> dict[str, Any]:
    """A step on every target; what `bench` says. Nothing else should run on the machine."""
    bundle = folder / f"{way.name}-{precision}.lram"
    export(checkpoint, way, precision, TARGETS, bundle)
    timed: dict[str, Any] = json.loads(_run("bench", bundle, "--steps", STEPS, "--json", "--quiet"))
    shutil.rmtree(bundle)
    return timed


def _play(bundle: Path, tasks: tuple[str, ...], episodes: int) -> dict[str, Any]:
    environments = [part for task in tasks for part in ("--env", f"metaworld/{task}")]
    settings = ["--target", PLAYED, "--no-reference", "--threads", 1, "--json", "--quiet"]
    found = json.loads(_run("evaluate", bundle, *environments, "--episodes", episodes, *settings))
    return {result["environment"].partition("/")[2]: result for result in found["results"]}


def _run(*arguments: str | Path | int) -> str:
    command = [*PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise click.ClickException(f"{' '.join(command[2:])}: failed with exit code {done.returncode}")
    return done.stdout


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the measurements.")
@click.option("--episodes", default=50, show_default=True, help="In each of the ten tasks.")
@click.option("--only", type=click.Choice(["played", "timed"]), help="Half of it; default: both.")
def main(run: Path, output: Path, episodes: int, only: str | None) -> None:
    """Measure the policies in RUN, as train.py leaves them."""
    output.mkdir(parents=True, exist_ok=True)
    measures: dict[str, Callable[..., dict[str, Any]]] = {"played": partial(play, episodes=episodes), "timed": clock}
    for what, measure in measures.items():
        for way, precision in product(ways(), PRECISIONS):
            file, checkpoint = output / f"{way.name}-{precision}-{what}.json", run / way.backbone / "model.zip"
            if only in (None, what) and not file.is_file() and checkpoint.is_file():
                message(f"{file.stem}: measuring", quiet=False)
                found = measure(checkpoint, way, precision, output)
                with atomic_file(file, force=True) as temporary:
                    temporary.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

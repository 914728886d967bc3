"""Does a step stay as fast, and a state as sane, however long a policy runs without a reset?

Plays one stream of episodes: the environment is reset, the policy never is. Prints the latency at the
beginning and at the end, and whether anything ever was NaN or infinite.

On a machine that swings, seconds that lie minutes apart cannot be compared. So the first and the last steps
are then repeated from their recorded states, in short turns, and their medians compared.

    python benchmarks/episode_stream.py reach.lram --env metaworld/reach-v3 --steps 5000
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.policy import Policy, load_policy
from lram_export.rollouts.environments.fitting import FittedEnvironment

WARM_UP, WINDOW = 100, 500
ROUNDS, TURN = 40, 50


@click.command()
@click.argument("bundle")
@click.option("--env", "name", default="metaworld/reach-v3", show_default=True)
@click.option("--target", default=None, help="Default: the first installed.")
@click.option("--steps", default=5000, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(bundle: str, name: str, target: str | None, steps: int, threads: int) -> None:
    """Run one stream and print what it showed."""
    manifest = Bundle.open(bundle).manifest
    with (
        FittedEnvironment.open(name, manifest.spec, manifest.task) as environment,
        load_policy(bundle, target, threads=threads) as policy,
    ):
        show(environment, policy, steps)


def show(environment: FittedEnvironment, policy: Policy, steps: int) -> None:
    """Step through episodes as one stream."""
    latencies = np.zeros(steps)
    starts = (WARM_UP, steps - WINDOW)
    states, shown = {}, []
    episodes = successes = 0
    observation, reached, finite = environment.reset(episodes), False, True
    for step in range(steps):
        if step in starts:
            states[step] = policy.state()
        shown.append(observation)
        began = time.perf_counter()
        action = policy.act(observation)
        latencies[step] = time.perf_counter() - began
        finite = finite and bool(np.isfinite(policy.action_logits).all())
        observation, _, done, success = environment.step(action)
        reached = reached or bool(success)
        if done:
            episodes, successes = episodes + 1, successes + reached
            observation, reached = environment.reset(episodes), False
    state = [a for n, a in policy.state().items() if n.startswith("state.")]
    finite = finite and all(bool(np.isfinite(a).all()) for a in state)
    first, last = (np.median(part) * 1e3 for part in (latencies[WARM_UP : WARM_UP + WINDOW], latencies[-WINDOW:]))
    print(f"{steps} steps, {episodes} episodes of the environment, 1 of the policy; {successes} succeeded")
    print(
        f"median of {WINDOW} steps after warm-up {first:.4f} ms, of the last {WINDOW} {last:.4f} ms: {last / first:.3f}"
    )
    early, late = (np.median(turns) * 1e3 for turns in repeated(policy, [(states[s], shown[s:]) for s in starts]))
    print(f"the same steps repeated in turns: first {early:.4f} ms, last {late:.4f} ms: {late / early:.3f}")
    print(f"largest value in the state {max(float(np.abs(a).max()) for a in state):.3g}")
    print("no NaN, no infinity" if finite else "NOT FINITE")


def repeated(policy: Policy, parts: Sequence[tuple[dict[str, Any], list[Any]]]) -> list[list[float]]:
    """Latencies of the steps that follow each state, measured in turns of 50 steps."""
    latencies: list[list[float]] = [[] for _ in parts]
    for _ in range(ROUNDS):
        for (state, observations), found in zip(parts, latencies, strict=True):
            policy.load_state(state)
            for observation in observations[:TURN]:
                began = time.perf_counter()
                policy.act(observation)
                found.append(time.perf_counter() - began)
    return latencies


if __name__ == "__main__":
    main()

"""A film of an episode: `.gif` for documents, `.mp4` for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.policy import Policy
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.environments import EXTRA, prepare_drawing
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.evaluation import EvaluationOptions, rollout, target_return
from lram_export.runtimes import load_runtime
from lram_export.system.files import atomic_file

PACKAGES = {".gif": ("imageio",), ".mp4": ("imageio", "imageio_ffmpeg")}
FRAMES_PER_SECOND = 20
EVERY = 4
"""Of so many steps one is drawn: Meta-World's 80 steps a second become 20 pictures."""
GIF_STRIDE = 2
"""A GIF is written at half the size."""


def check_video(file: str | Path, environments: Sequence[str]) -> None:
    """Raise UsageError unless the file's ending is known, its packages are installed, and pictures can be drawn.

    Call it before the first environment is made: that settles how MuJoCo draws.
    """
    packages = PACKAGES.get(Path(file).suffix.lower())
    if packages is None:
        raise UsageError(f"--video {file}: expected a name that ends in {' or '.join(PACKAGES)}")
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"--video: needs the package '{package}', which is not installed. "
                f"Install it with: pip install 'lram-export[{EXTRA}]'"
            )
    prepare_drawing(environments)


def record_video(
    bundle: Bundle, options: EvaluationOptions, file: str | Path, *, force: bool = False, progress: Progress = SILENT
) -> None:
    """Play the first seed of every environment once more with the first target, and write what it looks like.

    Raises:
        UsageError: there is no way to draw here (see :mod:`lram_export.rollouts.environments.rendering`).
        EnvironmentFailure: an environment failed; nothing is written then.
    """
    manifest, target, file = bundle.manifest, options.targets[0], Path(file)
    policy = Policy(load_runtime(target, bundle.load_artifact(target, 1), options.threads), manifest.task)
    frames: list[NDArray[np.uint8]] = []
    with policy, progress.stage("filming", len(options.environments)) as advance:
        for name in options.environments:
            command, patience = options.command(name), options.patience
            with FittedEnvironment.open(
                name, manifest.spec, manifest.task, render=True, command=command, patience=patience
            ) as environment:

                def draw(step: int, environment: FittedEnvironment = environment) -> None:
                    if step % EVERY == 0:
                        frames.append(environment.render())

                aim = target_return(name, bundle, options)
                rollout(environment, policy, options.seed, aim, rewards=options.rewards, on_step=draw)
            advance(1)
    with atomic_file(file, force=force) as temporary:
        _write(frames, temporary, file.suffix.lower())


def _write(frames: list[NDArray[np.uint8]], file: Path, suffix: str) -> None:
    import imageio.v3

    height, width = (min(f.shape[axis] for f in frames) for axis in (0, 1))
    same = [f[:height, :width] for f in frames]  # environments may draw in different sizes
    if suffix == ".gif":
        small = [f[::GIF_STRIDE, ::GIF_STRIDE] for f in same]
        imageio.v3.imwrite(file, small, extension=".gif", duration=1000 / FRAMES_PER_SECOND, loop=0)
    else:
        even = [f[: height // 2 * 2, : width // 2 * 2] for f in same]  # what the codec needs
        imageio.v3.imwrite(file, even, extension=".mp4", plugin="FFMPEG", fps=FRAMES_PER_SECOND, macro_block_size=2)

"""Options that mean the same in every command."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lram_export.checkpoints.checkpoint import HINT_OPTIONS
from lram_export.cli.console import ConsoleProgress, message
from lram_export.cli.parameters import (
    BATCH,
    BUNDLE,
    DIMENSION,
    FINITE,
    INPUT_FILE,
    PATH,
    PROCESSES,
    TARGET,
    THREADS,
    OutputFile,
)
from lram_export.errors import UsageError
from lram_export.spec.bounds import MOST_STEPS

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint, Hints
    from lram_export.checkpoints.loading import CheckpointSource
    from lram_export.lowering import Source
    from lram_export.spec.tasks import RewardFeedback, TaskSpec
    from lram_export.step_module.policy import StepPolicy

Command = TypeVar("Command", bound=Callable[..., Any])

output = click.option("-o", "--output", required=True, type=PATH, help="Where to write.")


def output_file(*suffixes: str) -> Callable[[Command], Command]:
    """``--output`` for a file, whose name ends with one of the suffixes."""
    help_text = f"Where to write; its name ends with {' or '.join(suffixes)}."
    return click.option("-o", "--output", required=True, type=OutputFile(*suffixes), help=help_text)


force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
targets = click.option("--target", "targets", multiple=True, type=TARGET, help="Target to use; may be repeated.")
target = click.option("--target", type=TARGET, help="Target to use; default: the first installed.")
threads = click.option("--threads", type=THREADS, help="Threads of the runtime; default: by the model.")
parallel = click.option(
    "--parallel",
    type=PROCESSES,
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that play episodes at the same time.",
)
ray = click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[HOST:PORT]",
    help="Work on the nodes of the Ray cluster there; without an address on all cores of this machine.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no messages, only results and errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
other_checkpoint = click.option(
    "--other-checkpoint",
    is_flag=True,
    help="With --checkpoint: another file than the bundle's is meant, e.g. a converted one.",
)
checkpoint = click.argument("checkpoint", type=PATH)
bundle = click.argument("bundle", type=BUNDLE)
batch = click.option("--batch", default=1, show_default=True, type=BATCH, help="Rows per step.")
rows = click.option("--batch", type=BATCH, help="Rows per step; default: as many as the bundle was exported for.")
keep_fp32 = click.option(
    "--keep-fp32",
    multiple=True,
    metavar="PATTERN",
    help="Matrices to leave in float32, e.g. head or 'blocks.0.*'; may be repeated.",
)
calibration = click.option(
    "--calibration",
    multiple=True,
    type=INPUT_FILE,
    help="Recording of lram-export record to calibrate integer formats on; may be repeated.",
)
reference_steps = click.option(
    "--reference-steps",
    default=64,
    show_default=True,
    type=click.IntRange(4, MOST_STEPS),
    help="Steps recorded in the bundle.",
)


context = click.option(
    "--context",
    metavar="NAME",
    help="How a model acts that can act in several ways. A transformer: window, the steps it was trained on, all anew "
    "at every step (default); or cache, the training code's cache of keys and values, cheaper, and another policy.",
)
READING_OPTIONS = f"--config, --weights-key, {HINT_OPTIONS}"
"""The options of :class:`CheckpointOptions` that every command has that reads a checkpoint."""
TRAINER_OPTIONS = "--activation, --normalization"
"""Those that only commands have which take a policy of another trainer, too."""


@dataclass(frozen=True)
class CheckpointOptions:
    """How to read a checkpoint that does not say everything itself."""

    config_file: Path | None
    weights_key: str | None
    act_dim: int | None
    discrete_actions: int | None
    image_shape: str | None
    num_heads: int | None
    context_length: int | None
    activation: str | None = None
    normalization: Path | None = None

    @property
    def given(self) -> bool:
        """Whether the user gave any of them."""
        return any(value is not None for value in vars(self).values())

    def hints(self) -> Hints:
        """What the library takes; raises UsageError for a malformed shape."""
        from lram_export.checkpoints.checkpoint import Hints

        image = None
        if self.image_shape is not None:
            shape = parse_integers(self.image_shape, "--image-shape")
            if len(shape) != 3:
                raise UsageError(f"--image-shape: expected CHANNELS,HEIGHT,WIDTH, got '{self.image_shape}'")
            image = (shape[0], shape[1], shape[2])
        return Hints(self.act_dim, self.discrete_actions, image, self.num_heads, self.context_length)

    def source(self, path: Path, context: str | None = None) -> CheckpointSource:
        """A checkpoint with these options, acting in a context."""
        from lram_export.checkpoints.loading import CheckpointSource

        return CheckpointSource(path, self.config_file, self.hints(), context, self.weights_key)

    def load_source(self, path: Path, progress: ConsoleProgress, context: str | None = None) -> Source:
        """Load a checkpoint, a policy that another trainer wrote, or one that a Python file makes."""
        from lram_export.checkpoints.loading import is_policy_file
        from lram_export.step_module.loading import load_step_policy
        from lram_export.trainers.files import trainer_of

        if trainer_of(path) is not None:
            return self._load_trainers(path, progress, context)
        if not is_policy_file(path):
            return self.load(path, progress, context)
        if self.given or context is not None:
            raise UsageError(f"{READING_OPTIONS}, --context: only for checkpoints; {path} is a Python file")
        with progress.stage("making the policy"):
            return load_step_policy(path)

    def load(self, path: Path, progress: ConsoleProgress, context: str | None = None) -> Checkpoint:
        """Load a checkpoint, and say what was assumed."""
        from lram_export.checkpoints.loading import check_exists
        from lram_export.trainers.files import trainer_of

        check_exists(path)
        trainer = trainer_of(path)
        if trainer is not None:
            raise UsageError(
                f"{path}: a policy of {trainer}, which this command does not take; export it, and use the bundle"
            )
        if self.activation is not None or self.normalization is not None:
            raise UsageError(f"{TRAINER_OPTIONS}: only for policies of rsl_rl and stable-baselines3")
        with progress.stage("reading the checkpoint"):
            loaded = self.source(path, context).load()
        for assumption in loaded.assumptions:
            message(f"assumed: {assumption}", progress.quiet)
        return loaded

    def _load_trainers(self, path: Path, progress: ConsoleProgress, context: str | None) -> StepPolicy:
        """Load a policy that rsl_rl or stable-baselines3 wrote, and say what was assumed."""
        from lram_export.checkpoints.checkpoint import Hints
        from lram_export.trainers.files import trainer_of
        from lram_export.trainers.loading import TrainerOptions, load_trainer_policy

        if self.weights_key is not None or self.hints() != Hints() or context is not None:
            raise UsageError(
                f"--weights-key, {HINT_OPTIONS}, --context: not for {path}, a policy of {trainer_of(path)}"
            )
        with progress.stage("reading the policy"):
            options = TrainerOptions(self.config_file, self.activation, self.normalization)
            policy, assumptions = load_trainer_policy(path, options)
        for assumption in assumptions:
            message(f"assumed: {assumption}", progress.quiet)
        return policy


def checkpoint_options(command: Command) -> Command:
    """Add the options of :class:`CheckpointOptions`, handed to the command as ``reading``."""
    return _reading(command, _CHECKPOINT_OPTIONS)


def source_options(command: Command) -> Command:
    """The same for a command that takes a policy of another trainer, too."""
    return _reading(command, (*_CHECKPOINT_OPTIONS, *_TRAINER_OPTIONS))


Option = Callable[[Any], Any]
_CHECKPOINT_OPTIONS: tuple[tuple[str, Option], ...] = (
    (
        "config_file",
        click.option(
            "--config",
            "config_file",
            type=PATH,
            help="Training config of weights; default: .hydra/config.yaml beside them.",
        ),
    ),
    (
        "weights_key",
        click.option(
            "--weights-key",
            metavar="KEY",
            help="Which policy of a file that holds several, e.g. ema or state_dict.policy.",
        ),
    ),
    (
        "act_dim",
        click.option("--act-dim", type=DIMENSION, help="Weights without config: action dimensions of the head."),
    ),
    (
        "discrete_actions",
        click.option(
            "--discrete-actions",
            type=click.IntRange(0, 1_000_000),
            help="Weights without config: discrete actions of the head.",
        ),
    ),
    (
        "image_shape",
        click.option("--image-shape", metavar="C,H,W", help="Weights without config: shape of the images."),
    ),
    ("num_heads", click.option("--num-heads", type=DIMENSION, help="Weights without config: heads of a transformer.")),
    (
        "context_length",
        click.option("--context-length", type=DIMENSION, help="Weights without config: steps that a transformer sees."),
    ),
)
_TRAINER_OPTIONS: tuple[tuple[str, Option], ...] = (
    (
        "activation",
        click.option(
            "--activation", metavar="NAME", help="rsl_rl without params/agent.yaml: activation of the layers, e.g. elu."
        ),
    ),
    (
        "normalization",
        click.option(
            "--normalization",
            type=PATH,
            metavar="FILE",
            help="stable-baselines3: running means of VecNormalize, .pkl or .npz; default: vecnormalize.pkl beside it.",
        ),
    ),
)


def _reading(command: Command, chosen: tuple[tuple[str, Option], ...]) -> Command:
    @functools.wraps(command)
    def wrapper(*arguments: Any, **others: Any) -> Any:
        reading = CheckpointOptions(**{name: others.pop(name) for name, _ in chosen})
        return command(*arguments, reading=reading, **others)

    add = (option for _, option in reversed(chosen))
    return functools.reduce(lambda decorated, option: option(decorated), add, wrapper)  # type: ignore[return-value]


@dataclass(frozen=True)
class TaskOptions:
    """What the policy is asked to do: a task of the table, options, or both."""

    task: str | None
    observation_dim: int | None
    image: bool
    action_dim: int | None
    discrete: bool
    target_return: float | None
    reward_scale: float | None
    reward_feedback: RewardFeedback

    @property
    def given(self) -> list[str]:
        """The options that the user gave."""
        return [f"--{n.replace('_', '-')}" for n, value in vars(self).items() if value not in (None, False, "none")]

    def resolve(self) -> TaskSpec:
        """The complete task; raises UsageError naming the option that is missing or wrong."""
        from lram_export.spec.tasks import resolve_task

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "task"}
        return resolve_task(self.task, **given)


def task_options(command: Command) -> Command:
    """Add the options of :class:`TaskOptions`, handed to the command as ``asked``."""
    names = [f.name for f in dataclasses.fields(TaskOptions)]

    @functools.wraps(command)
    def wrapper(*arguments: Any, **others: Any) -> Any:
        asked = TaskOptions(**{name: others.pop(name) for name in names})
        return command(*arguments, asked=asked, **others)

    add = (
        click.option("--task", metavar="DOMAIN/TASK", help="Task of the table, e.g. metaworld/reach-v2."),
        click.option("--observation-dim", type=DIMENSION, help="Length of the state observation."),
        click.option("--image", is_flag=True, help="Observations are images."),
        click.option("--action-dim", type=DIMENSION, help="Number of continuous action values."),
        click.option("--discrete", is_flag=True, help="Actions are discrete."),
        click.option("--target-return", type=FINITE, help="Return to aim at, in the environment's units."),
        click.option("--reward-scale", type=FINITE, help="Divisor of return-to-go and rewards."),
        click.option(
            "--reward-feedback",
            type=click.Choice(["none", "observed"]),
            default="none",
            show_default=True,
            help="Whether the reward token carries the reward of the previous step.",
        ),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(add), wrapper)  # type: ignore[return-value]


def platform_options(command: Command) -> Command:
    """Add the options of :class:`~lram_export.system.devices.Platform`, handed to the command as ``platform``."""

    @functools.wraps(command)
    def wrapper(
        *arguments: Any,
        device: str | None,
        compute_capability: tuple[str, ...],
        processors: tuple[str, ...],
        **others: Any,
    ) -> Any:
        from lram_export.system.devices import Platform, find_device

        platform = Platform(None if device is None else find_device(device), compute_capability, processors)
        return command(*arguments, platform=platform, **others)

    add = (
        click.option("--device", metavar="NAME", help="tensorrt: board that will compile and run it, e.g. orin-nx."),
        click.option(
            "--compute-capability",
            multiple=True,
            metavar="X.Y",
            help="tensorrt: GPUs to build an engine for here, e.g. 8.6; may be repeated.",
        ),
        click.option(
            "--platform",
            "processors",
            multiple=True,
            metavar="NAME",
            help="tvm: processor to compile for, e.g. aarch64; default: host; may be repeated.",
        ),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(add), wrapper)  # type: ignore[return-value]


def check_ray(address: str | None, parallel: int) -> None:
    """Raise UsageError unless --ray may be combined with --parallel, and Ray is installed."""
    if address is None:
        return
    from lram_export.cluster.connection import LOCAL, check_installed, parse_address

    if parallel > 1:
        raise UsageError("--parallel: not with --ray, which takes as many processes as its nodes have room for")
    if address != LOCAL:
        parse_address(address)
    check_installed()


def parse_names(text: str) -> tuple[str, ...]:
    """``a,b`` -> ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """``1,3`` -> (1, 3); raises UsageError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option}: expected numbers separated by commas, got '{text}'") from None

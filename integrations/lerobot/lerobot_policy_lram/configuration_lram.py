"""The configuration of a policy of type `lram`: `config.json` beside its bundle."""

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim import LRSchedulerConfig, OptimizerConfig

from lram_export.errors import UsageError
from lram_export.integrations.lerobot import POLICY


@PreTrainedConfig.register_subclass(POLICY)
@dataclass
class LramConfig(PreTrainedConfig):
    """What `lram-export convert BUNDLE --to lerobot` writes, and the options `--policy.target` and `--policy.threads`.

    Attributes:
        target: which target of the bundle runs; None: its first whose runtime is installed.
        threads: of the runtime; None: by the size of the model.
        action_feature_names: what the elements of an action are called, if the bundle says so.
    """

    target: str | None = None
    threads: int | None = None
    action_feature_names: list[str] | None = None

    @property
    def observation_delta_indices(self) -> None:
        """None: the policy remembers what it has seen."""

    @property
    def action_delta_indices(self) -> None:
        """None: there is no loss."""

    @property
    def reward_delta_indices(self) -> None:
        """None: rewards are not used."""

    def get_optimizer_preset(self) -> OptimizerConfig:
        """Raise UsageError: see :data:`NO_TRAINING`."""
        raise UsageError(NO_TRAINING)

    def get_scheduler_preset(self) -> LRSchedulerConfig | None:
        """None: see :data:`NO_TRAINING`."""

    def validate_features(self) -> None:
        """Nothing to do: the bundle has the features, and they are compared when it is loaded."""


NO_TRAINING = (
    "lram: a bundle acts and is not trained; train the policy, export it, and write its folder anew: "
    "lram-export convert BUNDLE --to lerobot -o FOLDER"
)

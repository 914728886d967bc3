"""Bundles of lram-export as policies of LeRobot, which imports this package because of its name."""

from lerobot_policy_lram.configuration_lram import LramConfig

__all__ = ["LramConfig"]

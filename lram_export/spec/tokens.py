"""The tokens of a step."""

from __future__ import annotations

TOKENS_PER_STEP = 3
"""Reward of the previous step, observation, return-to-go: one environment step."""

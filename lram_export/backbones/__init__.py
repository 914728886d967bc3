"""Backbones: what carries a policy's memory from step to step. One package each, the same file names in all."""

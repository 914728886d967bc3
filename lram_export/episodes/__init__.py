"""Recorded steps and episodes."""

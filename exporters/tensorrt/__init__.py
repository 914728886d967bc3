"""Exporter of the target `tensorrt`."""

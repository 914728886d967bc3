"""Exporter of the target `native`."""

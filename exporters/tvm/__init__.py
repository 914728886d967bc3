"""Exporter of the target `tvm`."""

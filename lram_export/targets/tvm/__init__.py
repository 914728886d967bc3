"""What the target `tvm` is made of, beside its exporter and its runtime."""

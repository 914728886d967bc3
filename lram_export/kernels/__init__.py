"""Kernels that are Python: those of TVM. The native engine is C++ and has no module here."""

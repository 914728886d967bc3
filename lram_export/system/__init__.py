"""This machine, and machines to compile for."""

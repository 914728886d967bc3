"""Mamba: selective state spaces (arXiv 2312.00752)."""

"""A policy of one's own: any torch module that is one step as a pure function."""

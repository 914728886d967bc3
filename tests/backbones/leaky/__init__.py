"""A backbone of a few lines, as docs/architecture.md tells to add one: a leaky sum that starts at a learned vector."""

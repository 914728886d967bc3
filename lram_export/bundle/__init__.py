"""The folder that an export writes and a robot reads. Free of torch."""

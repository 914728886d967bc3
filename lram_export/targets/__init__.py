"""What exporter and runtime of a target agree on."""

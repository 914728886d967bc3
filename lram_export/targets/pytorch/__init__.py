"""What exporter and runtime of the target `pytorch` agree on."""

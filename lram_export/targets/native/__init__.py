"""The artifact of the target `native`."""

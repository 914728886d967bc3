"""What a policy will need on a device."""

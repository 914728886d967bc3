"""From float32 matrices to codes."""

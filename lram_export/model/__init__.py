"""The policy network around a backbone: encoders, tokens, head, and the step graph."""

"""What is read: checkpoints of the training code, and our own format."""

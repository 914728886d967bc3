"""What is brought to a robot, and built there."""

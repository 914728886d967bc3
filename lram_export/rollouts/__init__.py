"""A policy at work: in simulation, over recorded observations."""

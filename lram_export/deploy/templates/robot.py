"""The robot's side of the control loop: fill in the four methods. Units and order are those of the policy's task."""

import numpy as np


class Robot:
    """What control_loop.py talks to."""

    def reset(self) -> np.ndarray:
        """Bring the robot to where an episode starts; return its first observation."""
        raise NotImplementedError("robot.py: read your sensors here")

    def observe(self) -> np.ndarray:
        """The observation now, float32 (observation_dim,), or uint8 (C, H, W) for images."""
        raise NotImplementedError("robot.py: read your sensors here")

    def act(self, action: "np.ndarray | np.int64") -> "float | None":
        """Send an action, float32 (action_dim,) or a number; return the reward since the last, or None if unknown."""
        raise NotImplementedError("robot.py: command your motors here")

    def close(self) -> None:
        """Stop the motors. Called once or twice when the loop ends, unless the process is killed."""

"""The robot's side of the control loop: fill in the four methods. Units and order are those of the policy's task."""

import numpy as np


class Robot:
    """What control_loop.py talks to. Whatever a method raises is a fault of that tick, which is bridged for a while.

    It may have four methods more: stop(), a safe stop where the loop must not go on, before close(); holds(), the
    action that the robot holds where an episode begins or one could not be sent, which bounds the next action of an
    interface with limits; brought(), asked before every step: the reward since the last one; and event(), asked after
    every step: "new episode", "done" or None.
    """

    def reset(self) -> np.ndarray:
        """Bring the robot to where an episode starts; return its first observation."""
        raise NotImplementedError("robot.py: read your sensors here")

    def observe(self) -> np.ndarray:
        """The observation now, float32 (observation_dim,), or uint8 (C, H, W) for images; None: there is none."""
        raise NotImplementedError("robot.py: read your sensors here")

    def act(self, action: "np.ndarray | np.int64") -> "float | None":
        """Send an action, float32 (action_dim,) or a number; return the reward since the last, or None if unknown."""
        raise NotImplementedError("robot.py: command your motors here")

    def close(self) -> None:
        """Stop the motors. Called once when the loop ends, unless the process is killed."""

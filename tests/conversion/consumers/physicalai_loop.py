"""Plays a case in physicalai's own control loop, of a robot that reads what was recorded.

``python physicalai_loop.py CASE FOLDER``
"""

import json
import sys
import threading
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
from physicalai.inference import InferenceModel
from physicalai.runtime import PolicySource, RobotRuntime


class RecordedRobot:
    """Reads the next observation when an action was sent, and ends the episode with the last."""

    device_ids = ()

    def __init__(self, observations):
        self.observations, self.sent, self.joint_names = (
            observations,
            [],
            [str(i) for i in range(observations.shape[-1])],
        )
        self.over = threading.Event()

    def connect(self):
        pass

    def disconnect(self):
        pass

    def is_connected(self):
        return True

    def get_observation(self):
        state = self.observations[min(len(self.sent), len(self.observations) - 1)]
        return SimpleNamespace(joint_positions=state, state=state, timestamp=0.0, sensor_data=None, images=None)

    def send_action(self, action, *, goal_time=0.1):
        self.sent.append(np.array(action))
        if len(self.sent) == len(self.observations):
            self.over.set()


def main(case, package):
    recorded = np.load(case)
    model, different, largest = InferenceModel.from_pretrained(package), 0, 0.0
    source = PolicySource(model)
    for _ in range(2):
        robot = RecordedRobot(recorded["observation"][:, 0])
        with RobotRuntime(robot, source, fps=1000) as runtime:
            runtime.run(stop_event=robot.over, duration_s=60)
        found, expected = np.stack(robot.sent), recorded["action"][:, 0]
        different += int((found != expected).sum())
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
    said = {"actions": 2 * recorded["action"].size, "different": different, "largest": largest}
    print(json.dumps({"version": version("physicalai"), "torch": "torch" in sys.modules, "repr": repr(model), **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])

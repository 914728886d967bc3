"""Plays a case with physicalai's own InferenceModel: ``python physicalai_model.py CASE FOLDER|OWNER/NAME [TARGET]``."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from physicalai.inference import InferenceModel


def main(case, package, target=None):
    recorded = np.load(case)
    chosen = {} if target is None else {"target": target}
    different, largest = 0, 0.0
    model = (InferenceModel if Path(package).is_dir() else InferenceModel.from_pretrained)(package, **chosen)
    for episode in range(2):
        if episode:
            model.reset()
        for observed, expected in zip(recorded["observation"], recorded["action"], strict=True):
            found = model.select_action({"state": observed, "task": ["walk"]})
            assert found.shape == expected.shape[1:], (found.shape, expected.shape)
            different += int((found != expected[0]).sum())
            largest = float(np.maximum(largest, np.abs(found - expected[0]).max()))
    said = {"actions": 2 * recorded["action"].size, "different": different, "largest": largest}
    print(json.dumps({"version": version("physicalai"), "torch": "torch" in sys.modules, "repr": repr(model), **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Policies as the common trainers leave them: rsl_rl, stable-baselines3 and sb3-contrib.

Each becomes a :class:`~lram_export.step_module.policy.StepPolicy`, as if its user had written the module: weights alone
are read, and nothing in a file runs. ``files.py`` tells which trainer wrote a file, ``loading.py`` reads it with the
module of that trainer; what all of them are made of is in ``networks.py``.

LeRobot's networks are not read; ``lerobot`` reads its statistics, as what a policy says of its robot.
"""

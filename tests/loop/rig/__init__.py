"""The fault rig: a robot's process that injects faults and judges what a loop does about them."""

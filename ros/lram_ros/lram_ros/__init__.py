"""A bundle of lram-export as a ROS 2 lifecycle node.

``node.py`` is the node, and the only module that imports rclpy. What it does is in the others, over messages that have
the fields of their definitions: ``parameters.py`` reads what the node is told, ``topics.py`` where observations come
from and actions go, ``inlets.py`` makes observations of messages, ``outlet.py`` messages of actions, ``robot.py`` is
the robot that the control loop talks to, ``session.py`` a policy and the thread of its loop, ``ending.py`` and
``simulated.py`` their clocks, ``report.py`` what diagnostics say.
"""

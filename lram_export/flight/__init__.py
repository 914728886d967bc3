"""What a robot saw and did, step by step, as a file: flights are recorded by the loop, read and run again elsewhere.

The file is MCAP, which Foxglove and rosbag2 read: one message per step of the loop on the topic ``/lram/step``, in the
encoding of ROS 2, and one per event on ``/lram/event``, as ROS 2 logs. ``docs/flights.md`` has the format.
"""

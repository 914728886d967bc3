"""The control loop: a fixed rate, readings that fail and are bridged, motors that stop whatever happens.

``control.py`` is the loop; ``readings.py`` says which readings a policy may act on, ``clock.py`` when the next tick is
due, ``account.py`` how it went, ``robot.py`` what the robot's side has to offer, ``rehearsal.py`` what stands in for
one, ``warmup.py`` what is done before there are motors, ``service.py`` what systemd is told, ``program.py`` the whole
as a command runs it. Free of torch.
"""

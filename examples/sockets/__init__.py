"""A robot in another process, and the class by which `lram-export loop` drives it: see docs/robot.md."""

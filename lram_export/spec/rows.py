"""How artifacts that are graphs say that they are for any number of rows."""

ROWS = "rows"
"""Name of the leading dimension of every input, output and state of an ONNX step graph."""
FREE_ROWS, ANY = ("lram", "rows"), "any"
"""Where in its ``rt_info`` an OpenVINO model says that it may be reshaped to another number of rows, and what."""

"""The closed step: the ONNX graph of a bundle with all that the step API does around it, in one file.

Nobody who runs ONNX knows of ``is_first``, a return-to-go or a safety, and everybody starts recurrent inputs at zero.
So the closed step takes observations and a state whose zero means a new episode, and gives actions and the next state.
"""

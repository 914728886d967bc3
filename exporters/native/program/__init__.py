"""From the traced step of a module to the program that the native engine runs.

``tracing`` takes a step for one row apart into PyTorch's operators; ``translation`` goes through them, with a table of
how each is made of the engine's few operations (``pointwise``, ``movement``, ``reductions``, ``products``,
``windows``), which are written to a ``tape``; ``planning`` finds every buffer its place.
"""

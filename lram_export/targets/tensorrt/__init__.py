"""TensorRT: what its exporter, its runtime and `compile` share. Only ``typed_onnx`` needs torch's side of an export.

The road of a policy: ``typed_onnx`` writes the step graph with its types in it, ``recipe`` says how to build it,
``builder`` builds an engine from the two, ``engines`` keeps engines next to a bundle, ``cuda`` is what the runtime
needs of CUDA. ``toolkit`` picks `tensorrt` or `tensorrt_rtx`.
"""

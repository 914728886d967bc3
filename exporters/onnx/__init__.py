"""ONNX, which several targets are made of."""

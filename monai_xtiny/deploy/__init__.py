"""From a trained bundle to ONNX, and how fast it is."""

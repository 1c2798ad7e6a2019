"""Export of networks to ONNX files, and their comparison with PyTorch."""

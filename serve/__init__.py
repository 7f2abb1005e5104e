"""Bundle in, answers out: numpy, onnxruntime and click; neither torch nor onnx."""

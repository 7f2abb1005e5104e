"""Checkpoint in, bundle out: TorchScript, ONNX and the proof that both answer as PyTorch does."""

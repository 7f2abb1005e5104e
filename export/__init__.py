"""Checkpoint in, bundle out: TorchScript, ONNX and the proof that both answer as PyTorch does."""

from ohlol.export.adopt import adopt

__all__ = ["adopt"]

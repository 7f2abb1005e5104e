"""Bundle in, answers out: numpy, onnxruntime and click; neither torch nor onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ohlol.serve.batch_predictor import BatchPredictor

__all__ = ["BatchPredictor"]


def __getattr__(name: str) -> Any:
    """`BatchPredictor` when it is asked for, so that importing a module of this package stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ohlol.serve.batch_predictor import BatchPredictor

    return BatchPredictor

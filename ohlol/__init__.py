"""Train small character-level recurrent networks, export them, prove the export, run it anywhere.

>>> import ohlol
>>> model = ohlol.load("hello")
>>> str(model("hello"))
'ohlol'
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from ohlol.serve.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

# onnxruntime's official wheels report home unless this is set before their first import, and every
# way into ohlol passes through this module. A value the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(path: str | Path, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """Open a bundle folder, a single `.onnx` file exported by ohlol, or `"hello"`, the shipped bundle.

    The model is a `Tagger`, `Classifier` or `LanguageModel` of `ohlol.serve.model`, by the bundle's task.
    `workers` is how many batches of texts run at once, 0: as many as there are CPUs; `threads` is the number of
    intra-op threads of each.
    Raises `ohlol.artifacts.errors.BundleError` where the bundle is missing, damaged, newer than this
    version of ohlol, or not a bundle.
    """
    # Late, so that `import ohlol` stays light.
    from ohlol.serve.model import load as load_model

    return load_model(path, threads=threads, workers=workers)

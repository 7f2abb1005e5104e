"""Imports run one way: artifacts <- train <- export, artifacts <- serve <- export; only the command line joins them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "artifacts": {"artifacts", "numpy"},
    "serve": {"artifacts", "serve", "numpy", "onnxruntime", "pyarrow", "ray"},
    "serve/http": {"artifacts", "serve", "numpy", "starlette", "uvicorn"},
    "train": {
        *("artifacts", "train", "numpy", "torch", "safetensors", "pydantic", "rich", "tomli_w", "filelock"),
        *("matplotlib", "jinja2"),
    },
    "export": {"artifacts", "train", "serve", "export", "numpy", "torch", "onnx", "jinja2"},
    "embed": {"artifacts", "embed", "numpy"},
    "ohlol": {"ohlol", "artifacts", "serve", "train", "export", "embed", "click"},
}
OWN = {"apps", "cli", "language", "learn", "make", "net", "predict", "use"}  # modules of the command line


def imported(file):
    """Top-level packages that a module imports anywhere; a stage of ours by its own name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield parts[1] if parts[0] == "ohlol" and len(parts) > 1 else parts[0]


@pytest.mark.parametrize("stage", ALLOWED)
def test_a_stage_imports_what_it_may(stage):
    """serve and artifacts never see torch or onnx, train never onnx, and no stage reaches upwards."""
    files = sorted((ROOT / stage).glob("*.py"))
    assert files, f"no modules in {stage}"
    for file in files:
        found = set(imported(file)) - set(sys.stdlib_module_names) - OWN
        assert found - ALLOWED[stage] == set(), file

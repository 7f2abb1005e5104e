"""MLflow's side of a bundle: the folder of a model as it keeps them, and what opens it there. No line needs MLflow."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

from ohlol.artifacts.bundle import Bundle, Layout
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.batch_predictor import BatchPredictor
from ohlol.serve.yaml import dump

DATA = "bundle"  # the bundle, inside of the model's folder
STRING, DOUBLE = {"type": "string"}, {"type": "double"}
ANSWERS: dict[str, dict[str, dict[str, Any]]] = {  # the columns of a prediction, in MLflow's words
    "tag": {
        "labels": {"type": "array", "items": STRING},
        "probabilities": {"type": "array", "items": DOUBLE},
    },
    "classify": {"label": STRING, "probability": DOUBLE, "probabilities": {"type": "map", "values": DOUBLE}},
    "lm": {"bits_per_character": DOUBLE, "next": STRING, "probability": DOUBLE},
}


def folder(bundle: Bundle, name: str) -> dict[str, bytes]:
    """The files by name. There is no date and no id among them: the same bundle gives the same folder."""
    python = platform.python_version()
    needs = ["mlflow", f"ohlol=={version('ohlol')}"]
    texts = ["hello", bundle.manifest.alphabet.characters[:8]]
    pip = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    conda = {"channels": ["conda-forge"], "dependencies": [f"python={python}", "pip", {"pip": needs}]}
    written = {
        "MLmodel": dump(model(bundle, name, python)),
        "requirements.txt": "".join(f"{line}\n" for line in needs),
        "python_env.yaml": dump(pip),
        "conda.yaml": dump({"name": "mlflow-env", **conda}),
        "input_example.json": json.dumps(texts, ensure_ascii=False),
        "serving_input_example.json": json.dumps({"inputs": texts}, ensure_ascii=False),
    }
    files = {**bundle.contents, Layout.manifest: bundle.manifest.to_json().encode()}
    return {file: text.encode() for file, text in written.items()} | {
        f"{DATA}/{file}": content for file, content in files.items()
    }


def model(bundle: Bundle, name: str, python: str) -> dict[str, Any]:
    """The `MLmodel` file: two flavours, a function of texts and the ONNX file for those who bring code points."""
    versions = bundle.manifest.provenance.get("versions", {}).get("export", {})
    return {
        "flavors": {
            "python_function": {
                "loader_module": __name__,
                "data": DATA,
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "python_version": python,
            },
            "onnx": {
                "data": f"{DATA}/{Layout.onnx}",
                "onnx_version": versions.get("onnx", ""),
                "providers": ["CPUExecutionProvider"],
            },
        },
        "metadata": {  # MLflow itself names a model when it is registered
            "ohlol_name": name,
            "ohlol_task": bundle.manifest.task,
            "ohlol_version": version("ohlol"),
        },
        "saved_input_example_info": {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "json_object",
        },
        "signature": signature(bundle.manifest),
    }


def signature(manifest: Manifest) -> dict[str, Any]:
    """One column of strings in, by any name; out come the answers' columns, which are null for an empty text."""
    answers = ANSWERS[manifest.task].items()
    return {
        "inputs": json.dumps([STRING | {"required": True}]),
        "outputs": json.dumps([kind | {"name": name, "required": False} for name, kind in answers]),
        "params": None,
    }


class PyFunc:
    """What `mlflow.pyfunc.load_model` wraps: texts in, answers out, with probabilities."""

    def __init__(self, path: str) -> None:
        self.predictor = BatchPredictor(path, probabilities=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A DataFrame of one column, or of a column "text" among others; a Series; a list, an array, one `str`.

        The answers are a DataFrame for pandas, else a list of dicts.
        """
        pandas = sys.modules.get("pandas")
        if pandas and isinstance(model_input, pandas.DataFrame):
            return self.predictor(_column(model_input))
        if pandas and isinstance(model_input, pandas.Series):
            return self.predictor(model_input)
        if isinstance(model_input, str):
            return self.predictor([model_input])
        return self.predictor(model_input.tolist() if hasattr(model_input, "tolist") else list(model_input))


def _load_pyfunc(path: str) -> PyFunc:
    """Called by MLflow, by this name, with the folder of the bundle."""
    return PyFunc(path)


def _column(frame: Any) -> Any:
    if "text" in frame.columns:
        return frame["text"]
    if len(frame.columns) != 1:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise InputError(f"expected one column of texts, or one that is called text; found {found}")
    return frame.iloc[:, 0]

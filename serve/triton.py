"""A model repository for Triton Inference Server, whose backend `onnxruntime` runs the files of a bundle as they are."""

from __future__ import annotations

import json

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import ONNX, Bundle, Layout
from ohlol.artifacts.contract import Kind, Tensor
from ohlol.artifacts.manifest import Manifest

TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32", "string": "TYPE_STRING"}
LABELS = "labels.txt"


def names(name: str, text: bool) -> list[str]:
    """The models of the repository: the one for code points and, where there is a `text.onnx`, that for strings."""
    return [name, f"{name}-text"] if text else [name]


def repository(bundle: Bundle, name: str) -> dict[str, dict[str, bytes]]:
    """By the name of the model: its files."""
    files = [Layout.onnx, Layout.text] if Layout.text in bundle.contents else [Layout.onnx]
    return {
        model: _model(bundle, model, file)
        for model, file in zip(names(name, len(files) > 1), files, strict=True)
    }


def _model(bundle: Bundle, name: str, file: str) -> dict[str, bytes]:
    manifest, kind = bundle.manifest, ONNX[file]
    labels = _labels(manifest, kind)
    files = {"config.pbtxt": config(manifest, kind, name).encode(), "1/model.onnx": bundle.contents[file]}
    return files | ({LABELS: labels.encode()} if labels else {})


def config(manifest: Manifest, kind: Kind, name: str) -> str:
    """The model's `config.pbtxt`.

    `max_batch_size` is 0: shapes are those of the contract, the batch's axis among them, and a request is a batch. With
    another, Triton would add that axis itself, `lengths` would become (batch, 1), and it would still join only requests
    whose rows are of the same width.
    """
    labels = _labels(manifest, kind)
    inputs = ",\n".join(_tensor(manifest, tensor) for tensor in contract.inputs(kind))
    outputs = ",\n".join(
        _tensor(manifest, tensor, LABELS if labels and tensor.name == "probabilities" else "")
        for tensor in contract.outputs(manifest.task, kind)
    )
    facts = {
        "intra_op_thread_count": "1",  # the backend's own; several requests at once are for instances
        "inter_op_thread_count": "1",
        "ohlol.task": manifest.task,  # these for those who call it: what to send, and what comes
        "ohlol.normalisation": manifest.alphabet.normalisation,
        "ohlol.labels": json.dumps(manifest.labels, ensure_ascii=False),
    }
    parameters = "\n".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in facts.items()
    )
    return f"""# Written by ohlol. At least one row and one character a request; lengths from 1 to the width.
name: {_quoted(name)}
platform: "onnxruntime_onnx"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameters}
"""


def _tensor(manifest: Manifest, tensor: Tensor, labels: str = "") -> str:
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in manifest.shape(tensor))
    labelled = f" label_filename: {_quoted(labels)}" if labels else ""
    return f"  {{ name: {_quoted(tensor.name)} data_type: {TYPES[tensor.dtype]} dims: [ {dims} ]{labelled} }}"


def _labels(manifest: Manifest, kind: Kind) -> str:
    """`labels.txt`, a label a line, for Triton's classification extension; "" where that cannot be told the truth.

    It numbers the classes of a whole output, so it fits one answer a text, and labels of one line.
    """
    usable = all(label and len(label.splitlines()) == 1 for label in manifest.labels)
    fits = manifest.task == "classify" and kind == "model" and usable
    return "".join(f"{label}\n" for label in manifest.labels) if fits else ""


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if ord(c) >= 32 else f"\\{ord(c):03o}" for c in escaped) + '"'

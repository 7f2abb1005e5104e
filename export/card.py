"""The model card: the README.md inside a bundle."""

from __future__ import annotations

from typing import Any

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import Proof

DOES = {
    "tag": "Gives every character of a text a label.",
    "classify": "Gives a text one label.",
    "lm": "Says which character comes next.",
}
WHAT = {
    Layout.onnx: "the model, complete by itself: code points in, answers out",
    Layout.torchscript: "the traced twin, same inputs and outputs, for apps that already load TorchScript "
    "(deprecated upstream since PyTorch 2.11; load only files you trust)",
    Layout.proof: "how closely each file answers as PyTorch does, case by case",
}


def card(manifest: Manifest, proof: Proof, files: list[str]) -> str:
    """The card's Markdown."""
    network = manifest.network
    ways = "both ways" if network["bidirectional"] else "one way"
    size = f" of {network['embedding_size']}" if network["input"] == "embedding" else ""
    labels = ", ".join(f"`{label}`" for label in manifest.labels[:40]) or "the characters of its alphabet"
    worst = max(row.max_absolute_error for row in proof.rows)
    parts = [
        "# A character model",
        f"{DOES[manifest.task]} Task `{manifest.task}`; {network['input']}{size} → "
        f"{network['num_layers']} × {network['cell'].upper()} of {network['hidden_size']}, {ways} → "
        f"{'linear' if network['head'] == 'linear' else 'the hidden state is the answer'}.",
        f"It knows {len(manifest.alphabet.characters)} characters; texts are normalised to "
        f"{manifest.alphabet.normalisation} first. It answers with: {labels}"
        + (" …" if len(manifest.labels) > 40 else "")
        + ".",
        _metrics(manifest.metrics),
        "## Files",
        "\n".join(f"- `{name}`: {WHAT[name]}" for name in files if name in WHAT)
        + "\n- `manifest.json`: every fact about the model, and the sha256 of every file"
        + "\n- `test_data_set_*/`: inputs and expected outputs in ONNX's own test-data format",
        "## Inputs and outputs",
        _contract(manifest),
        f"Proved against PyTorch when exported: {len(proof.rows)} rows, largest difference {worst:.1e}, "
        "every label equal, ties within the tolerance aside.",
        "## Use",
        "With ohlol, which needs neither torch nor onnx:",
        '```python\nimport ohlol\n\nmodel = ohlol.load("path/to/this/folder")\nprint(model("a text"))\n```',
        "With ONNX Runtime alone, in any language that can list a string's code points:",
        _snippet(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metrics(metrics: dict[str, Any]) -> str:
    rows = [
        f"| {split} | {name.replace('_', ' ')} | {value:.4f} |"
        for split, values in metrics.items()
        for name, value in values.items()
    ]
    return "\n".join(["| data | metric | value |", "|---|---|---|", *rows]) if rows else ""


def _contract(manifest: Manifest) -> str:
    facts = manifest.facts()
    rows = [
        f"| {kind} | `{t['name']}` | `({', '.join(map(str, t['shape']))}{',' if len(t['shape']) == 1 else ''})` "
        f"| {t['dtype']} |"
        for kind in ("inputs", "outputs")
        for t in facts[kind]
    ]
    head = ["| | name | shape | dtype |", "|---|---|---|---|"]
    note = (
        "\n\nContract version "
        + str(contract.VERSION)
        + ": at least one row and one time step; `lengths` from 1 to `time`."
    )
    return "\n".join([*head, *rows]) + note


def _snippet(manifest: Manifest) -> str:
    form = manifest.alphabet.normalisation
    text = '"a text"' if form == "none" else f'unicodedata.normalize("{form}", "a text")'
    output = contract.outputs(manifest.task)[-1].name
    return f"""```python
import unicodedata
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{Layout.onnx}")
points = np.array([[ord(c) for c in {text}]], dtype=np.int32)  # (batch, time)
lengths = np.array([points.shape[1]], dtype=np.int32)  # (batch,)
({output},) = session.run(["{output}"], {{"codepoints": points, "lengths": lengths}})
```"""

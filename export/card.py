"""The model card: the README.md inside a bundle."""

from __future__ import annotations

from typing import Any

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.artifacts.parity import TOLERANCE, Proof

DOES = {
    "tag": "Gives every character of a text a label.",
    "classify": "Gives a text one label.",
    "lm": "Says which character comes next.",
}
WHAT = {
    Layout.onnx: "the model, complete by itself: code points in, answers out",
    Layout.batch: "the same, in a form for many rows at once; `ohlol bench` says from how many it is faster",
    Layout.half: "the same, weights in float16: about half the size",
    Layout.int8: "the same, weights and products in int8",
    Layout.stream: "text in chunks: `codepoints` and `state` in, the same outputs and `next_state`; {state}",
    Layout.text: "strings in, strings out; ONNX Runtime only, texts normalised, without NUL",
    Layout.program: "a `torch.export` program, same inputs and outputs (load only files you trust)",
    Layout.torchscript: "the traced twin, same inputs and outputs, for apps that already load TorchScript "
    "(deprecated upstream since PyTorch 2.11; load only files you trust)",
}


def card(manifest: Manifest, proof: Proof, files: dict[str, Entry]) -> str:
    """The card's Markdown."""
    network = manifest.network
    ways = "both ways" if network["bidirectional"] else "one way"
    size = f" of {network['embedding_size']}" if network["input"] == "embedding" else ""
    labels = ", ".join(f"`{label}`" for label in manifest.labels[:40]) or "the characters of its alphabet"
    exact = [row for row in proof.rows if row.tolerance <= TOLERANCE]
    worst = max(row.max_absolute_error for row in exact)
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
        "\n".join(
            f"- `{name}`: {what.replace('{state}', _state(manifest))}{_measured(files[name])}"
            for name, what in WHAT.items()
            if name in files
        )
        + f"\n- `{Layout.proof}`: how closely each file answers as PyTorch does, case by case"
        + "\n- `manifest.json`: every fact about the model, and the sha256 of every file"
        + "\n- `test_data_set_*/`: inputs and expected outputs in ONNX's own test-data format",
        "## Inputs and outputs",
        _contract(manifest),
        f"Proved against PyTorch when exported: {len(exact)} rows, largest difference {worst:.1e}, "
        "every label equal, ties within the tolerance aside.",
        "## Use",
        "With ohlol, which needs neither torch nor onnx:",
        '```python\nimport ohlol\n\nmodel = ohlol.load("path/to/this/folder")\nprint(model("a text"))\n```',
        "With ONNX Runtime alone, in any language that can list a string's code points:",
        _snippet(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _state(manifest: Manifest) -> str:
    shape = manifest.shape(contract.inputs("stream")[1])
    return f"the state is `({', '.join(map(str, shape))})` float32, zeros where a text begins"


def _measured(entry: Entry) -> str:
    """What a lower precision cost, in the task's metrics."""
    if not entry.measured:
        return ""
    changes = (f"{key.replace('_', ' ')} {value:+.4f}" for key, value in entry.measured["change"].items())
    return f" ({', '.join(changes)} on {entry.measured['split']})"


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

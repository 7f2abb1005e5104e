"""The model card: the README.md inside a bundle."""

from __future__ import annotations

import re
from typing import Any

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.artifacts.parity import TOLERANCE, Proof
from ohlol.export.snippets import LANGUAGES, fits, program

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
    labels = ", ".join(map(_code, manifest.labels[:40])) or "the characters of its alphabet"
    exact = [row for row in proof.rows if row.tolerance <= TOLERANCE]
    worst = max(row.max_absolute_error for row in exact)
    parts = [
        "# A character model",
        f"{DOES[manifest.task]} Task `{manifest.task}`; {network['input']}{size} → "
        f"{network['num_layers']} × {network['cell'].upper()} of {network['hidden_size']}, {ways} → "
        f"{'linear' if network['head'] == 'linear' else 'the hidden state is the answer'}.",
        f"It knows {len(manifest.alphabet.characters)} characters; texts are {_normalised(manifest)}. It answers with: {labels}"
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
        "## In other languages",
        _about_programs(manifest),
        *(
            _folded(
                language.name,
                f"For {language.binding}; {language.checked}.",
                _block(language.template, program(manifest, language)),
            )
            for language in LANGUAGES
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _normalised(manifest: Manifest) -> str:
    form = manifest.alphabet.normalisation
    return "taken as they are" if form == "none" else f"normalised to {form} first"


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


PRINTS = {
    "tag": "each character and its label",
    "classify": "the label and its probability",
    "lm": "the likeliest next character and its probability",
}


def _about_programs(manifest: Manifest) -> str:
    about = (
        "With ONNX Runtime alone, in any language that can list a string's code points. Each program takes a text from "
        f"its command line and prints {PRINTS[manifest.task]}; it looks for `{Layout.onnx}` where it runs. ONNX Runtime's "
        "own builds may report home: set `ORT_DISABLE_TELEMETRY=1` in the environment if they should not."
    )
    if fits(manifest):
        return about
    what, first = (
        ("characters", "2 is the first of `alphabet.characters`")
        if manifest.task == "lm"
        else ("labels", "0 is the first of `labels`")
    )
    return f"{about} The model's {what} are too many to stand here: programs print their numbers; {first} in `manifest.json`."


def _folded(title: str, *parts: str) -> str:
    """Parts that a click opens; Markdown wants empty lines around them."""
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *parts, "</details>"])


def _block(kind: str, code: str) -> str:
    """A block of code, fenced by more backticks than stand anywhere in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{kind}\n{code.rstrip()}\n{fence}"


def _code(text: str) -> str:
    """`text` as code inside a line; what cannot be printed is escaped, as Python does."""
    if not text:
        return "(the empty label)"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = (
        " " if shown.strip() and (shown[0] in "` " or shown[-1] in "` ") else ""
    )  # Markdown takes one space away
    return f"{fence}{pad}{shown}{pad}{fence}"

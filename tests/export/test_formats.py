"""Each cell of the table in docs/formats.md: file × cell × direction × runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ohlol.artifacts.bundle import Layout
from ohlol.export import proof

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
HEAD = ["file", "cell", "direction", "torch", "onnxruntime", "onnx", "openvino"]


def table():
    """The rows of the page's table, as lists of words."""
    rows = [
        [cell.strip(" `") for cell in line.strip().strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    start = rows.index(HEAD)
    inside = [row for row in rows[start + 2 :] if len(row) == len(HEAD)]
    return [row for row in inside if row[1] in ("rnn", "gru", "lstm")]


CELLS = [
    (file, cell, direction, runtime)
    for file, cell, direction, *said in table()
    for runtime, word in zip(HEAD[3:], said, strict=True)
    if word == "proved"
]


def test_the_table_is_complete():
    """Every file there is, every cell, both directions: what is not proved is said, nothing is forgotten."""
    spelled = [
        name for key, name in vars(Layout).items() if isinstance(name, str) and not key.startswith("_")
    ]
    files = {name for name in spelled if name.endswith((".onnx", ".pt", ".pt2"))}
    expected = {
        (file, cell, way)
        for file in files
        for cell in ("rnn", "gru", "lstm")
        for way in ("one way", "both ways")
    }
    assert {tuple(row[:3]) for row in table()} == expected
    assert {word for row in table() for word in row[3:]} == {"proved", "–"}
    onnx = [
        (file, cell, way) for file, cell, way, *_ in table() if file.endswith(".onnx") and file != Layout.text
    ]
    possible = [
        key
        for key in onnx
        if (key[0], key[2]) != (Layout.stream, "both ways") and key[:2] != (Layout.batch, "rnn")
    ]
    missing = [key for key in possible for runtime in HEAD[4:] if (*key, runtime) not in CELLS]
    assert missing == []


@cache
def answered(make, write, claims, file, cell, direction):
    """The proof of one file of a two-layer network, for all three tasks, in every runtime."""
    rows = []
    for task in ("tag", "classify", "lm"):
        if task == "lm" and direction == "both ways":
            continue
        network, manifest = make(task, cell, direction == "both ways", 2)
        found = claims(file, write(file, network, manifest), manifest)
        cases = proof.draw_cases(manifest.alphabet, seed=3)
        rows += proof.prove(network, manifest.alphabet, found, cases).rows
    return rows


@pytest.mark.parametrize(("file", "cell", "direction", "runtime"), CELLS)
def test_a_cell_of_the_table(file, cell, direction, runtime, make, write, claims):
    """What the page says of a runtime holds, ragged batches included."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    rows = [row for row in answered(make, write, claims, file, cell, direction) if row.runtime == runtime]
    assert len(rows) == 10 * (3 if direction == "one way" else 2)
    assert [(row.case, row.problem) for row in rows if not row.passed] == []

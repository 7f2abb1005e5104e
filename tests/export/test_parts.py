"""A line of text that comes in parts, by networks just exported: every task and cell, one way with the state carried."""

from __future__ import annotations

import pytest

from ohlol.artifacts.bundle import Layout
from ohlol.serve import long_line, runner
from ohlol.serve.long_line import Answering
from ohlol.serve.model import TASKS
from ohlol.serve.results import line

TEXT = "hello é lole\u0301h 中😀 " * 40


@pytest.mark.parametrize("task", ["tag", "classify", "lm"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("length", [1, 65, 97, 600])
def test_parts_answer_as_the_whole(make, write, monkeypatch, task, cell, length):
    """Labels, what comes next, and a classifier's answer, which is that of the last part."""
    network, manifest = make(task, cell, False, 2)
    files = {name: write(name, network, manifest) for name in (Layout.onnx, Layout.stream)}
    model = TASKS[task](manifest, files, "drawn")
    text = manifest.alphabet.normalise(TEXT)[:length]
    whole = model(text)
    monkeypatch.setattr(long_line, "PART", 64)
    monkeypatch.setattr(runner, "STRETCH", 32)
    monkeypatch.setattr(runner, "LONG", 64)
    assert model.runner.carries_state
    made = "".join(Answering(model).lines([text[:5], text[5:]]))
    if task == "lm":
        bits, following = made.rstrip("\n").split("\t")
        assert following == str(whole).split("\t")[1]
        expected = whole.bits_per_character
        assert (bits == "") if expected is None else float(bits) == pytest.approx(expected, abs=1e-3)
    else:
        assert made == line(whole) + "\n"

"""Bundles of every task and cell, nasty strings, and Python's answers to them: what each host is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ohlol
from ohlol.artifacts import words
from ohlol.artifacts.parity import allowed
from ohlol.export.adopt import adopt
from ohlol.export.bundle import export
from ohlol.serve.results import Classified, Tagged

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
KNOWN = "\n BIOSacdehlnotuw.éêñệ\u0301\u0302\u0323中文한😀👩"  # accents, marks, other pages, other planes
LABELS = ("a", "é", "中 文", "😀😀", 'quote"\\', "")
# name: task, cell, both ways, layers, normalisation, labels
KINDS = {
    "tag-rnn": ("tag", "rnn", False, 2, "NFC", LABELS),
    "tag-gru": ("tag", "gru", False, 1, "NFD", LABELS),
    "tag-lstm": ("tag", "lstm", False, 2, "NFKC", LABELS),
    "tag-rnn-both": ("tag", "rnn", True, 1, "NFKD", LABELS),
    "tag-gru-both": ("tag", "gru", True, 2, "none", LABELS),
    "words-lstm-both": ("tag", "lstm", True, 1, "NFC", words.LABELS),
    "words-gru": ("tag", "gru", False, 1, "NFC", words.LABELS),
    "classify-rnn": ("classify", "rnn", False, 1, "NFC", LABELS),
    "classify-gru": ("classify", "gru", False, 2, "NFD", LABELS),
    "classify-lstm": ("classify", "lstm", False, 1, "none", LABELS),
    "classify-rnn-both": ("classify", "rnn", True, 2, "NFC", LABELS),
    "classify-gru-both": ("classify", "gru", True, 1, "NFKC", LABELS),
    "classify-lstm-both": ("classify", "lstm", True, 2, "NFC", LABELS),
    "lm-rnn": ("lm", "rnn", False, 2, "NFC", None),
    "lm-gru": ("lm", "gru", False, 1, "NFD", None),
    "lm-lstm": ("lm", "lstm", False, 2, "NFC", None),
}
NASTY = {
    "empty": "",
    "one character": "h",
    "plain": "hello",
    "spaces": "  hello  world ",
    "line ends": "hello\r\nworld\n\ttab\x0b\u2028\u2029end",
    "NUL": "h\0llo\0",
    "controls": "\x01\x1b[31m\x7f\x85",
    "composed": "h\u00e9llo \u1ec7",
    "decomposed": "he\u0301llo e\u0323\u0302",
    "marks out of order": "e\u0302\u0323 o\u0301\u0323\u0302",
    "a mark first": "\u0301hello",
    "only marks": "\u0301\u0302\u0323",
    "many marks": "e" + "\u0301\u0323" * 300 + "h",
    "singletons": "\u212b \u2126 \u0340 \u0344 \u2000",
    "compatibility": "\ufb01ne \u2460 \uff48\uff45 \u00bd \u33a1 \u3392",
    "Hangul": "\ud55c\uae00 \u1112\u1161\u11ab \ud558\u11ab \u1161\u11ab",
    "long expansions": "\ufdfa \u1e9b\u0323 \u0390 \u03b0 \U0001d160",
    "emoji": "👩\u200d💻 😀👍🏽 🇻🇳 h\ufe0f",
    "other planes": "\U00010400\U0001d54f\U000e0001\U0010ffff",
    "ideographs": "中文 \uf900\U0002f800",
    "right to left": "\u05e9\u05bc\u05c1 \u202eabc\u202c \u0628\u0651\u064e",
    "zero width": "a\u200bb\u200cc\u200dd\u2060\ufeffe",
    "noncharacters": "\ufffe\uffff\ufdd0\ufffd",
    "Indic": "\u0915\u094d\u0937\u093f \u09c7\u09be \u0b94 \u1026",
    "Kirat Rai": "\U00016d67\U00016d67 \U00016d63\U00016d67",
    "words": "Hello new world. The end... ok",
    "long": "hello 中文 e\u0301 😀 " * 60,
}
# No UTF-8 holds these; each is one unknown character where a string can hold them at all.
SURROGATES = {"high": "h\ud800o", "low": "\udc00", "turned round": "\ude00\ud83d", "last": "hello\ud83d"}


class Net(nn.Module):
    """Random weights; the last ones are large, so that labels are seldom near each other."""

    def __init__(self, ids: int, task: str, cell: str, both: bool, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, 7)
        self.cell = CELLS[cell](7, 6, layers, bidirectional=both, batch_first=True)
        self.linear = nn.Linear(12 if both else 6, classes)
        self.task, self.both = task, both
        with torch.no_grad():
            for weight in self.linear.parameters():
                weight.uniform_(-3, 3)

    def forward(self, ids):
        hidden, last = self.cell(self.embedding(ids))
        if self.task == "classify":
            last = last[0] if isinstance(last, tuple) else last
            hidden = torch.cat([last[-2], last[-1]], -1) if self.both else last[-1]
        return self.linear(hidden)


def _made(folder: Path, name: str, known: str = KNOWN) -> None:
    task, cell, both, layers, form, labels = KINDS[name]
    alphabet = [None, None, *known]
    classes = len(alphabet) if labels is None else len(labels)
    torch.manual_seed(len(name))
    scheme = words.SCHEME if labels == words.LABELS else None
    module = Net(len(alphabet), task, cell, both, layers, classes)
    run = adopt(
        module,
        alphabet=alphabet,
        labels=labels,
        output=folder / f"{name}.run",
        unknown=1,
        normalisation=form,
        task=task,
        label_scheme=scheme,
    )
    export(run, folder / name, ("onnx", "stream"))


@pytest.fixture(scope="session")
def bundles(shared_folder) -> dict[str, Path]:
    """A bundle of random weights for each of `KINDS`."""

    def make(folder: Path) -> None:
        for name in KINDS:
            _made(folder, name)

    folder = shared_folder("bundles", make)
    return {name: folder / name for name in KINDS}


@pytest.fixture(scope="session")
def wide(shared_folder) -> Path:
    """A bundle of a language model of 5,000 characters: Chinese, by their numbers. It normalises by NFD."""
    chinese = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    return shared_folder("wide", lambda folder: _made(folder, "lm-gru", chinese)) / "lm-gru"


def answer(model: Any, text: str) -> dict[str, Any]:
    """Python's answer to a text, as JSON has it; a host's is held against it by `assert_same`."""
    found = model(text)
    if isinstance(found, Tagged):
        told: dict[str, Any] = {
            "text": found.text,
            "labels": list(found.labels),
            "probabilities": found.probabilities.tolist(),
        }
        if model.manifest.label_scheme:
            told |= {"words": found.words, "sentences": found.sentences}
        return told
    if isinstance(found, Classified):
        return {"text": found.text, "label": found.label, "probabilities": found.probabilities}
    return {
        "text": found.text,
        "next": found.next,
        "probability": found.probability,
        "nats": found.nats_per_character,
    }


def assert_same(host: dict[str, Any], python: dict[str, Any]) -> None:
    """The same texts and labels; numbers within the proof's tolerance, on a scale of 1."""
    assert host.keys() == python.keys()
    for key, expected in python.items():
        if key in ("probabilities", "probability", "nats") and expected is not None:
            if isinstance(expected, dict):
                assert host[key].keys() == expected.keys()
                host[key], expected = [host[key][label] for label in expected], list(expected.values())
            found, expected = np.array(host[key], dtype=np.float64), np.array(expected)
            assert found.size == expected.size, key
            if not found.size:  # of an empty text
                continue
            assert (np.abs(found.reshape(expected.shape) - expected) <= allowed(expected)).all(), key
        else:
            assert host[key] == expected, key


@pytest.fixture(scope="session")
def answers(bundles) -> dict[str, dict[str, dict[str, Any]]]:
    """By bundle and by the name of a nasty string: Python's answer."""
    models = {name: ohlol.load(path) for name, path in bundles.items()}
    return {
        name: {key: answer(model, text) for key, text in (NASTY | SURROGATES).items()}
        for name, model in models.items()
    }


@pytest.fixture(scope="session")
def nasty() -> dict[str, str]:
    return NASTY


@pytest.fixture(scope="session")
def surrogates() -> dict[str, str]:
    return SURROGATES


@pytest.fixture(scope="session")
def same():
    return assert_same


@pytest.fixture(scope="session")
def python():
    """Python's answer by a model to a text, in the form of `answers`."""
    return answer

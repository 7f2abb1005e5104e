"""text.onnx answers in Node as it does in Python: strings need no code of ours on either side."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import allowed
from ohlol.export.formats import to_onnx
from ohlol.serve.runtimes import run_in
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection

ALPHABET = Alphabet("ehlo é\u0301ñ中文😀")  # accents, a combining mark, other pages, another plane
LABELS = ("a", "é", "中", "😀😀")
NETWORKS = {
    "tag": ("gru", True),
    "classify": ("lstm", True),
    "lm": ("rnn", False),
}
BATCHES = {
    "one row": ["hello"],
    "one character": ["h"],
    "an accent": ["héllo ñ"],
    "a combining mark": ["he\u0301llo"],
    "another plane": ["😀 hello 😀"],
    "unknown characters": ["xyz q𝒳"],
    "joined emoji": ["👨\u200d👩\u200d👧 hello 👍🏽"],
    "spaces": ["  hello  "],
    "one empty text": [""],
    "empty texts": ["", "", ""],
    "empty text in company": ["", "hello", ""],
    "several rows": ["hello", "中文", "e\u0301", "", "é", "😀", "x", " ", "hello hello hello"],
    "a long row": ["hello 中文😀é" * 40, "h"],
}
# What a binding may change on the way in. Each batch's answer is that of Python to the second list.
CHANGED = {
    "NUL": (["h\0llo", "hello", "\0"], ["h", "hello", ""]),  # cut there
    "lone surrogates": (["h\ud800o", "\udc00", "hello"], ["h\ufffdo", "\ufffd", "hello"]),  # exchanged
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A text.onnx of random weights for each task."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for task, (cell, two_way) in NETWORKS.items():
        classes = len(ALPHABET) if task == "lm" else len(LABELS)
        model = ModelSection(embedding_size=7, cell=cell, hidden_size=6, num_layers=2, bidirectional=two_way)
        torch.manual_seed(1)
        network = Network(model, task, len(ALPHABET), classes).eval()
        manifest = Manifest(task, ALPHABET, () if task == "lm" else LABELS, None, model.model_dump())
        found[task] = folder / f"{task}.text.onnx"
        found[task].write_bytes(to_onnx(network, manifest, "text"))
    return found


@pytest.fixture(scope="module")
def in_node(program, node_modules, files):
    """Node's answers to every batch by every file, of one process."""
    batches = BATCHES | {name: given for name, (given, _) in CHANGED.items()}
    models = {task: str(path) for task, path in files.items()}
    ran = subprocess.run(
        [program("node"), Path(__file__).with_name("node_text.mjs"), node_modules],
        input=json.dumps({"models": models, "batches": batches}),  # in ASCII, so lone surrogates get there
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def in_python(files):
    runs = {task: run_in("onnxruntime", path.read_bytes(), str(path)) for task, path in files.items()}
    return lambda task, texts: runs[task]({"text": np.array(texts, dtype=object)})


def assert_same(node, python):
    assert node.keys() == python.keys() == {"labels", "probabilities"}
    for name, expected in python.items():
        assert node[name]["dims"] == list(expected.shape), name
    assert node["labels"]["data"] == python["labels"].ravel().tolist()
    expected = python["probabilities"]
    found = np.array(node["probabilities"]["data"], dtype=np.float32).reshape(expected.shape)
    assert (np.abs(found - expected) <= allowed(expected)).all()


@pytest.mark.parametrize("task", NETWORKS)
@pytest.mark.parametrize("batch", BATCHES)
def test_node_answers_as_python(task, batch, in_node, in_python):
    """The same shapes, the same labels and, within the proof's tolerance, the same probabilities."""
    assert_same(in_node[task][batch], in_python(task, BATCHES[batch]))


@pytest.mark.parametrize("task", NETWORKS)
@pytest.mark.parametrize("batch", CHANGED)
def test_what_node_changes_on_the_way_in(task, batch, in_node, in_python):
    """Its binding cuts a string at a NUL and puts U+FFFD for a lone surrogate; docs/formats.md says so."""
    _, changed = CHANGED[batch]
    assert_same(in_node[task][batch], in_python(task, changed))


@pytest.mark.parametrize("task", NETWORKS)
def test_what_python_does_with_them(task, in_python):
    """A NUL is an unknown character, and a lone surrogate never gets to the model."""
    whole, unknown = in_python(task, ["h\0llo"]), in_python(task, ["h\ufffdllo"])
    assert whole["labels"].tolist() == unknown["labels"].tolist()
    assert (whole["probabilities"] == unknown["probabilities"]).all()
    with pytest.raises(BundleError, match="surrogates not allowed"):
        in_python(task, ["\ud800"])

"""Every network the recipe can describe exports, and its files answer as PyTorch does."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from ohlol.artifacts.bundle import Layout
from ohlol.export import proof

NETWORKS = [
    (task, cell, two_way, layers, given, head)
    for task, cell, two_way, layers, given, head in itertools.product(
        ("tag", "classify", "lm"),
        ("rnn", "gru", "lstm"),
        (False, True),
        (1, 2, 3),
        ("embedding", "one_hot"),
        ("linear", "none"),
    )
    if not (task == "lm" and two_way)
]


@pytest.mark.parametrize("described", NETWORKS, ids=lambda d: "-".join(map(str, d)))
def test_all_files_answer_as_pytorch(described, make, write, claims):
    """The promise of the project, on sizes that were not traced, one step, ragged rows, unknown characters."""
    network, manifest = make(*described)
    files = [Layout.onnx, Layout.batch, Layout.int8, Layout.half, Layout.text, Layout.torchscript]
    if not described[2]:
        files.append(Layout.stream)
    claimed = [proof.eager(network, manifest.alphabet)]
    for file in files:  # OpenVINO and onnx's evaluator: tests/export/test_formats.py
        found = claims(file, write(file, network, manifest), manifest)
        claimed += [claim for claim in found if claim.runtime in ("onnxruntime", "torch")]
    cases = proof.draw_cases(manifest.alphabet, seed=7)
    table = proof.prove(network, manifest.alphabet, claimed, cases)
    assert table.passed, table.table()
    assert len(table.rows) == (len(files) + 1) * len(cases)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_loop_is_exported_as_a_layer(cell, make, write, claims):
    """Trained cell by cell, exported as a layer with the same weights: the length stays free."""
    network, manifest = make("tag", cell, False, 1, "one_hot", "none", loop=True)
    claimed = []
    for file in (Layout.onnx, Layout.stream, Layout.torchscript, Layout.program):
        claimed += claims(file, write(file, network, manifest), manifest)
    table = proof.prove(network, manifest.alphabet, claimed, proof.draw_cases(manifest.alphabet))
    assert table.passed, table.table()


def test_the_trap_a_traced_loop_freezes_its_length(make):
    """What the export above avoids: tracing the loop itself unrolls it for the example's length."""
    network, _ = make("tag", "rnn", False, 1, "one_hot", "none", loop=True)
    five = (torch.full((1, 5), 2), torch.tensor([5]))
    with warnings.catch_warnings(record=True) as said, torch.inference_mode():
        traced = torch.jit.trace(network, five, check_trace=False)
    assert [w for w in said if not issubclass(w.category, DeprecationWarning)] == [], "the trap is silent"
    seven = (torch.full((1, 7), 2), torch.tensor([7]))
    with torch.inference_mode():
        expected, found = network(*seven), traced(*seven)
    assert tuple(expected.shape) == (1, 7, 4)
    assert tuple(found.shape) == (1, 5, 4)

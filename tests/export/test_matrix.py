"""Every network the recipe can describe exports, and both files answer as PyTorch does."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.contract import INPUTS, IR_VERSION, OPSET, outputs
from ohlol.artifacts.manifest import Manifest
from ohlol.export import proof
from ohlol.export.formats import to_onnx, to_torchscript
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection

ALPHABET = Alphabet("ehlo é\u0301中😀")  # accents, a combining mark, another page, another plane
LABELS = ("a", "b", "c", "d")

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


def make(task, cell, two_way, layers, given, head, loop=False):
    """A network with random weights and the manifest it would be exported with."""
    classes = len(ALPHABET) if task == "lm" else len(LABELS)
    width = classes // (2 if two_way else 1)
    model = ModelSection(
        input=given,
        embedding_size=7,
        cell=cell,
        hidden_size=width if head == "none" else 6,
        num_layers=layers,
        bidirectional=two_way,
        head=head,
        loop=loop,
    )
    torch.manual_seed(layers)
    network = Network(model, task, len(ALPHABET), classes).eval()
    return network, Manifest(task, ALPHABET, () if task == "lm" else LABELS, None, model.model_dump())


@pytest.mark.parametrize("described", NETWORKS, ids=lambda d: "-".join(map(str, d)))
def test_both_files_answer_as_pytorch(described):
    """The promise of the project, on sizes that were not traced, one step, ragged rows, unknown characters."""
    network, manifest = make(*described)
    model = to_onnx(network, manifest)
    script = to_torchscript(network, ALPHABET)
    runners = {
        "model.onnx": proof.onnx_runner(model),
        "model.torchscript.pt": proof.torchscript_runner(script, manifest.task),
    }
    cases = proof.draw_cases(ALPHABET, seed=7)
    table = proof.prove(network, ALPHABET, runners, cases)
    assert table.passed, table.table()
    assert len(table.rows) == 2 * len(cases)

    graph = onnx.load_model_from_string(model)
    _, cell, two_way, layers, _, _ = described
    ops = Counter(node.op_type for node in graph.graph.node)
    assert ops[cell.upper()] == layers * (1 + two_way), "a layer or a direction was dropped"
    if cell == "gru":
        flags = [a.i for n in graph.graph.node for a in n.attribute if a.name == "linear_before_reset"]
        assert flags == [1] * ops["GRU"], "ONNX's default GRU is not PyTorch's"


@pytest.fixture(scope="module")
def tagger():
    network, manifest = make("tag", "gru", True, 2, "embedding", "linear")
    return network, manifest, to_onnx(network, manifest)


def test_the_file_follows_the_contract(tagger):
    """Names, types and symbolic axes of inputs and outputs, opset, IR version, metadata: what apps rely on."""
    _, manifest, model = tagger
    graph = onnx.load_model_from_string(model)
    types = {onnx.TensorProto.INT32: "int32", onnx.TensorProto.FLOAT: "float32"}

    def described(values):
        return [
            (
                v.name,
                types[v.type.tensor_type.elem_type],
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        ]

    classes = {"classes": len(LABELS)}
    expected = [(t.name, t.dtype, [classes.get(a, a) for a in t.shape]) for t in INPUTS]
    assert described(graph.graph.input) == expected
    expected = [(t.name, t.dtype, [classes.get(a, a) for a in t.shape]) for t in outputs("tag")]
    assert described(graph.graph.output) == expected
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", OPSET)]
    assert graph.ir_version == IR_VERSION
    assert {p.key: p.value for p in graph.metadata_props} == manifest.to_metadata()


def test_the_file_is_complete_by_itself(tagger):
    """No second file with weights, which breaks loading in a browser; nothing of this machine in it."""
    _, _, model = tagger
    graph = onnx.load_model_from_string(model)
    assert [t.name for t in graph.graph.initializer if t.data_location or t.external_data] == []
    assert str(proof.__file__).encode().rpartition(b"/")[0] not in model
    assert all(not node.doc_string and not node.metadata_props for node in graph.graph.node)


def test_every_initialiser_is_used(tagger):
    """A weight that no node reads is dead weight in every app."""
    _, _, model = tagger
    graph = onnx.load_model_from_string(model).graph
    used = {name for node in graph.node for name in node.input}
    assert [t.name for t in graph.initializer if t.name not in used] == []


def test_the_same_network_gives_the_same_bytes(tagger):
    """Two exports of one checkpoint are one file, so a digest says which model it is."""
    network, manifest, model = tagger
    assert to_onnx(network, manifest) == model


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (7, 3), (64, 5), (3, 129)])
def test_sizes_that_were_not_traced(tagger, shape):
    """Batch and time were frozen by exporters of others; here both run at any size from 1."""
    network, _, model = tagger
    random = np.random.default_rng(0)
    points = random.integers(0, 0x3000, size=shape).astype(np.int32)
    lengths = random.integers(1, shape[1] + 1, size=shape[0]).astype(np.int32)
    case = proof.Case("drawn", points, lengths)
    found = proof.onnx_runner(model)(case)
    row = proof.compare("model.onnx", case, found, proof.expected_outputs(network, ALPHABET, case), "tag")
    assert row.problem == ""


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_loop_is_exported_as_a_layer(cell):
    """Trained cell by cell, exported as a layer with the same weights: the length stays free."""
    network, manifest = make("tag", cell, False, 1, "one_hot", "none", loop=True)
    model = to_onnx(network, manifest)
    ops = [node.op_type for node in onnx.load_model_from_string(model).graph.node]
    assert ops.count(cell.upper()) == 1
    runners = {
        "model.onnx": proof.onnx_runner(model),
        "model.torchscript.pt": proof.torchscript_runner(to_torchscript(network, ALPHABET), "tag"),
    }
    table = proof.prove(network, ALPHABET, runners, proof.draw_cases(ALPHABET))
    assert table.passed, table.table()


def test_the_trap_a_traced_loop_freezes_its_length():
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

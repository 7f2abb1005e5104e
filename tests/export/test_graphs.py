"""What stands in the ONNX files: few nodes, nothing dead, named, pinned, the same bytes every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import ONNX, Layout
from ohlol.artifacts.contract import IR_VERSION, OPSET, inputs, outputs
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.onnx_file import DIGEST, summary
from ohlol.export import onnx_graph, proof, recurrent
from ohlol.export.nodes import LEVELS, quantised
from ohlol.export.recurrent import ONE_HOT

CELLS = ("rnn", "gru", "lstm")
TYPES = {
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.STRING: "string",
}

# One layer, one way, `tag`: code points to ids, vectors, layer, head, mask, answers.
AROUND = {
    "Transpose": 2, "Clip": 1, "Div": 1, "Mod": 1, "Gather": 3, "Add": 2, "Cast": 3, "MatMul": 1,
    "Shape": 1, "Squeeze": 1, "Range": 1, "Unsqueeze": 2, "Less": 1, "Mul": 2, "Softmax": 1, "ArgMax": 1, "Where": 1,
}  # fmt: skip
SCAN = {"Scan": 1, "Shape": 1, "Concat": 1, "ConstantOfShape": 1}  # with a state of zeros
STEP = {"Gemm": 1, "Tanh": 1, "Identity": 1}


def graph_of(content):
    return onnx.load_model_from_string(content).graph


def operators(graph):
    return Counter(node.op_type for node in graph.node)


def subgraphs(graph):
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from subgraphs(attribute.g)


@pytest.mark.parametrize("cell", CELLS)
def test_the_nodes_of_one_layer(cell, make, write):
    """At most 40 nodes, each of them with a reason: the counts by type are held."""
    graph = graph_of(write(Layout.onnx, *make("tag", cell, False, 1)))
    own = SCAN if cell == "rnn" else {cell.upper(): 1, "Squeeze": 1}
    assert operators(graph) == Counter(AROUND) + Counter(own)
    inside = sum((operators(inner) for inner in subgraphs(graph)), Counter())
    assert inside == (Counter(STEP) if cell == "rnn" else Counter())
    assert len(graph.node) + inside.total() <= 40


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("two_way", [False, True])
def test_the_nodes_of_each_further_layer(cell, two_way, make, write):
    """A layer costs at most 3 nodes more, both ways 8; no weight is split, joined or reordered at run time."""
    counts = [
        operators(graph_of(write(Layout.onnx, *make("tag", cell, two_way, layers)))) for layers in (1, 2, 3)
    ]
    further = {
        ("rnn", False): {"MatMul": 1, "Add": 1, "Scan": 1},
        ("rnn", True): {"MatMul": 2, "Add": 2, "Scan": 1, "ReverseSequence": 2, "Concat": 1},
    }
    operator = {
        False: {cell.upper(): 1, "Squeeze": 1},
        True: {cell.upper(): 2, "Squeeze": 2, "ReverseSequence": 2, "Concat": 1},
    }
    expected = Counter(further.get((cell, two_way), operator[two_way]))
    assert [counts[1] - counts[0], counts[2] - counts[1]] == [expected, expected]
    assert expected.total() <= (8 if two_way else 3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("file", ONNX)
def test_nothing_is_dead_and_everything_has_a_name(file, two_way, cell, make, write):
    """A weight that no node reads is dead weight in every app; a node without a name cannot be talked about."""
    if file == Layout.stream and two_way:
        pytest.skip("a network that reads both ways has no stream")
    model = onnx.load_model_from_string(write(file, *make("tag", cell, two_way, 2)))
    graphs = [model.graph, *subgraphs(model.graph)]
    used = {name for graph in graphs for node in graph.node for name in node.input}
    used |= {output.name for graph in graphs for output in graph.output}
    made = {name for graph in graphs for node in graph.node for name in node.output if name}
    assert [t.name for t in model.graph.initializer if t.name not in used] == []
    states = {name for name in made if ".after" in name}  # a Scan's last states
    assert [name for name in made - states if name not in used] == []
    names = [node.name for graph in graphs for node in graph.node]
    assert "" not in names
    assert len(set(names)) == len(names)
    assert [t.name for t in model.graph.initializer if t.data_location or t.external_data] == []
    assert all(graph.initializer == [] for graph in graphs[1:])


@pytest.mark.parametrize("task", ["tag", "classify", "lm"])
@pytest.mark.parametrize("file", ONNX)
def test_the_file_follows_the_contract(file, task, make, write):
    """Names, types and symbolic axes of inputs and outputs, opset, IR version, metadata: what apps rely on."""
    network, manifest = make(task, "lstm", False, 2)
    model = onnx.load_model_from_string(write(file, network, manifest))
    kind = ONNX[file]

    def described(values):
        return [
            (
                v.name,
                TYPES[v.type.tensor_type.elem_type],
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        ]

    classes = len(manifest.alphabet) if task == "lm" else 4
    sizes = {"classes": classes, "states": 4, "hidden": 6}
    expected = [(t.name, t.dtype, [sizes.get(a, a) for a in t.shape]) for t in inputs(kind)]
    assert described(model.graph.input) == expected
    expected = [(t.name, t.dtype, [sizes.get(a, a) for a in t.shape]) for t in outputs(task, kind)]
    assert described(model.graph.output) == expected
    versions = {o.domain: o.version for o in model.opset_import}
    assert versions == {"": OPSET} | ({"ai.onnx.ml": 3, "com.microsoft": 1} if kind == "text" else {})
    assert model.ir_version == IR_VERSION
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata.pop(DIGEST).strip('"').isalnum()
    assert metadata == manifest.to_metadata(kind)


@pytest.mark.parametrize("file", [*ONNX, Layout.program])
def test_the_same_network_gives_the_same_bytes(file, make, write):
    """Two exports of one checkpoint are one file, so a digest says which model it is."""
    described = make("tag", "gru", False, 2)
    content = write(file, *described)
    assert write(file, *described) == content
    assert str(proof.__file__).encode().rpartition(b"/")[0] not in content


@pytest.mark.parametrize("task", ["tag", "classify", "lm"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("two_way", [False, True])
def test_int8_is_really_quantised(task, cell, two_way, make, write):
    """Every product of a hidden state is one of integers: what tools call quantised is often a Cast beside one."""
    if task == "lm" and two_way:
        pytest.skip("an lm reads one way")
    graph = graph_of(write(Layout.int8, *make(task, cell, two_way, 2)))
    whole = sum((operators(inner) for inner in subgraphs(graph)), operators(graph))
    ways, parts = 1 + two_way, 2 if cell == "gru" else 1
    recurrent = 2 * ways * parts  # in the steps
    assert sum((operators(inner)["MatMulInteger"] for inner in subgraphs(graph)), 0) == recurrent
    assert whole["MatMulInteger"] == recurrent + ways * parts + 1  # the second layer's inputs, and the head
    assert whole["MatMul"] == whole["RNN"] == whole["GRU"] == whole["LSTM"] == 0
    stored = {t.name: t for t in graph.initializer}
    matrices = [t for t in stored.values() if len(t.dims) == 2 and not t.name.endswith("scale")]
    assert {t.data_type for t in matrices} == {onnx.TensorProto.INT8}
    assert all(np.abs(numpy_helper.to_array(t)).max() <= LEVELS for t in matrices)


def test_int8_and_fp16_are_smaller(make, write):
    """What they are for, on a network of a usual size."""
    described = make("tag", "gru", True, 2, embedding_size=64, hidden_size=64)
    size = {file: len(write(file, *described)) for file in (Layout.onnx, Layout.half, Layout.int8)}
    assert size[Layout.half] < 0.55 * size[Layout.onnx]
    assert size[Layout.int8] < 0.35 * size[Layout.onnx]


def test_quantised_rows_come_back_within_half_a_step():
    """The scale is each row's own; a row of zeros stays one."""
    rows = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * [[1e-6], [1], [1e6], [0], [3]]
    values, scales = quantised(rows.astype(np.float32))
    assert values.dtype == np.int8
    assert (np.abs(values * scales - rows) <= scales * 0.500001).all()
    assert (values[3] == 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_one_hot_of_a_large_alphabet_stays_small(cell, make, write, claims):
    """One-hot vectors of 6,000 characters as a table would be 144 MB; a look-up of weights is enough."""
    alphabet = Alphabet("".join(map(chr, range(0x4E00, 0x4E00 + 6000))))
    network, manifest = make("tag", cell, True, 1, "one_hot", alphabet=alphabet)
    assert len(alphabet) > ONE_HOT
    for file in (Layout.onnx, Layout.half, Layout.int8, Layout.torchscript):
        content = write(file, network, manifest)
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
        assert len(content) < 2 * gates * 6 * 6000 * 4 + 250_000
        found = [claim for claim in claims(file, content, manifest) if claim.runtime != "openvino"]
        table = proof.prove(network, alphabet, found, proof.draw_cases(alphabet)[:7])
        assert table.passed, table.table()


def test_the_summary_counts_what_onnx_counts(make, write):
    """`ohlol inspect` reads the file without onnx; it must see the same."""
    content = write(Layout.int8, *make("tag", "lstm", True, 2))
    model = onnx.load_model_from_string(content)
    found = summary(content, "a file")
    whole = sum((operators(inner) for inner in subgraphs(model.graph)), operators(model.graph))
    assert found.nodes == whole
    assert found.opsets == {"": OPSET}
    assert found.ir_version == IR_VERSION
    expected = [(t.name, numpy_helper.to_array(t).dtype.name, tuple(t.dims)) for t in model.graph.initializer]
    assert found.weights == expected


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("file", [Layout.onnx, Layout.batch, Layout.half, Layout.int8])
def test_a_table_that_would_be_too_large_is_not_made(file, cell, monkeypatch, make, write, claims):
    """Behind a large alphabet the first layer multiplies vectors, as the others do; the answers are the same."""
    monkeypatch.setattr(recurrent, "TABLE", 10)
    network, manifest = make("tag", cell, True, 2)
    content = write(file, network, manifest)
    assert not [name for name, *_ in summary(content, file).weights if name.endswith(".table")]
    table = proof.prove(
        network, manifest.alphabet, claims(file, content, manifest), proof.draw_cases(manifest.alphabet)
    )
    assert table.passed, table.table()


def test_more_than_one_file_can_hold_is_refused(monkeypatch, make, write):
    """ONNX's files end at 2 GB; weights beside the file are what breaks in browsers."""
    monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
    with pytest.raises(ProofError, match="one ONNX file holds at most 1,000"):
        write(Layout.onnx, *make("tag", "gru", False, 1))

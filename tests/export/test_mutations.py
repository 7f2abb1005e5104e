"""Exports broken on purpose, in each way that is known from others: the proof must see it."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
import onnx
import pytest
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.errors import ProofError
from ohlol.export import nodes, proof, recurrent

ALPHABET = Alphabet("ehlo")
GRAPHS = (Layout.onnx, Layout.batch, Layout.half, Layout.int8)


def failing(make, write, claims, file, cell, two_way=True, task="tag", edit=None, alphabet=ALPHABET, **sizes):
    """The cases that fail of a file written while something is broken, against the network that is whole."""
    network, manifest = make(task, cell, two_way, 2, alphabet=alphabet, **{"hidden_size": 16, **sizes})
    with torch.no_grad():  # a network that was trained answers with larger numbers than one just made
        for weight in network.parameters():
            weight.mul_(3)
    content = write(file, network, manifest)
    if edit:
        model = onnx.load_model_from_string(content)
        edit(model)
        content = model.SerializeToString()
    return {
        row.case
        for row in proof.prove(
            network, ALPHABET, claims(file, content, manifest), proof.draw_cases(ALPHABET)
        ).rows
        if not row.passed
    }


@pytest.mark.parametrize("file", [*GRAPHS, Layout.stream, Layout.text])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_wrong_order_of_gates_is_caught(file, cell, monkeypatch, make, write, claims):
    """PyTorch's order kept where ONNX has another one."""
    two_way = file != Layout.stream
    assert failing(make, write, claims, file, cell, two_way) == set(), "the proof holds of what is whole"
    monkeypatch.setitem(recurrent.GATES, cell, {"gru": (0, 1, 2), "lstm": (0, 1, 2, 3)}[cell])
    assert len(failing(make, write, claims, file, cell, two_way)) >= 8


def test_the_other_gru_is_caught(make, write, claims):
    """ONNX's default GRU resets before the product: up to 14 % off, without a warning."""

    def reset_before(model):
        nodes = [node for node in model.graph.node if node.op_type == "GRU"]
        flags = [a for node in nodes for a in node.attribute if a.name == "linear_before_reset"]
        assert [flag.i for flag in flags] == [1] * len(nodes)
        for flag in flags:
            flag.i = 0

    for file in (Layout.onnx, Layout.half):
        assert len(failing(make, write, claims, file, "gru", edit=reset_before)) >= 8


@pytest.mark.parametrize("axis", ["batch", "time"])
@pytest.mark.parametrize("file", GRAPHS)
def test_a_frozen_axis_is_caught(file, axis, make, write, claims):
    """Time or batch fixed at an example's size: every other size is refused by the runtime, so the proof fails."""

    def frozen(model):
        for tensor in (*model.graph.input, *model.graph.output):
            for dimension in tensor.type.tensor_type.shape.dim:
                if dimension.dim_param == axis:
                    dimension.dim_value = 4

    assert len(failing(make, write, claims, file, "lstm", edit=frozen)) >= 8


@pytest.mark.parametrize("file", [*GRAPHS, Layout.text])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_lengths_ignored_are_caught(file, cell, monkeypatch, make, write, claims):
    """Rows reversed whole, padding first: what runtimes do that ignore `sequence_lens`."""

    def whole(s, x, ends, out):
        last, step = s.numbers(-1), s.numbers(-(2**31))
        return s.add("Slice", x, last, step, s.numbers(0), last, out=out)

    monkeypatch.setattr(recurrent, "reverse", whole)
    found = failing(make, write, claims, file, cell)
    assert {"ragged rows", "many ragged rows", "garbage in padding"} <= found
    if file != Layout.text:  # whose rows have a step of padding
        assert "a batch" not in found, "rows of one length are right: only ragged ones show it"


@pytest.mark.parametrize("file", GRAPHS)
def test_a_layer_dropped_is_caught(file, monkeypatch, make, write, claims):
    """Two layers in the network, one in the file."""
    real = recurrent.Layers.__init__

    def one_less(self, *given, **more):
        real(self, *given, **more)
        self.layers = self.layers[:1]

    monkeypatch.setattr(recurrent.Layers, "__init__", one_less)
    assert len(failing(make, write, claims, file, "lstm", two_way=False, embedding_size=16)) >= 8


@pytest.mark.parametrize("file", [*GRAPHS, Layout.stream])
def test_swapped_biases_are_caught(file, monkeypatch, make, write, claims):
    """A GRU's two biases are not one: that of the state stands inside the reset."""
    real = recurrent.direction

    def swapped(layer, cell):
        own = real(layer, cell)
        return own._replace(w=own.r, r=own.w)

    monkeypatch.setattr(recurrent, "direction", swapped)
    assert len(failing(make, write, claims, file, "gru", two_way=file != Layout.stream)) >= 8


@pytest.mark.parametrize("task", ["tag", "classify", "lm"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_state_dropped_is_caught(cell, task, make, write, claims):
    """The state output that is never filled: every chunk begins as if it were the first."""

    def dropped(model):
        node = next(node for node in model.graph.node if "next_state" in node.output)
        node.output[0] = "real_state"
        model.graph.node.append(
            onnx.helper.make_node("Sub", ["real_state", "real_state"], ["next_state"], name="no")
        )

    found = failing(make, write, claims, Layout.stream, cell, False, task, dropped)
    assert {"a batch", "ragged rows", "long rows"} <= found
    assert "one character" not in found, "one chunk needs no state"


def test_states_exchanged_are_caught(make, write, claims):
    """h where c belongs, and the reverse."""

    def exchanged(model):
        node = next(node for node in model.graph.node if "next_state" in node.output)
        node.input[:] = [node.input[1], node.input[0], *node.input[2:]]

    assert "long rows" in failing(make, write, claims, Layout.stream, "lstm", False, edit=exchanged)


@pytest.mark.parametrize("file", [*GRAPHS, Layout.stream, Layout.text, Layout.torchscript, Layout.program])
def test_an_alphabet_shifted_by_one_is_caught(file, make, write, claims):
    """The vocabulary beside the model gets swapped; inside, the proof looks it up independently."""
    shifted = Alphabet("hloe")
    assert len(failing(make, write, claims, file, "gru", file != Layout.stream, alphabet=shifted)) >= 8


@pytest.mark.parametrize("file", [Layout.torchscript, Layout.program])
def test_a_twin_of_another_network_is_caught(file, make, write, claims):
    """PyTorch's own formats are held to the same oracle."""
    network, manifest = make("tag", "lstm", True, 2, alphabet=ALPHABET)
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    found = claims(file, write(file, other, manifest), manifest)
    table = proof.prove(network, ALPHABET, found, proof.draw_cases(ALPHABET))
    assert {row.problem.partition(" ")[0] for row in table.rows} >= {"`logits`"}
    assert not table.passed


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("weight", ["layer0.0.R", "layer1.1.W", "head"])
def test_a_wrong_scale_in_int8_is_caught(weight, cell, make, write, claims):
    """Its tolerance is wider, for single steps of rounding; a number that is 5 % off moves every answer a little."""
    part = "zr" if cell == "gru" and weight != "head" else ""

    def wrong(model):
        name = f"{weight}{part}.scale"
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        scale.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.05), name)
        )

    assert len(failing(make, write, claims, Layout.int8, cell, edit=wrong)) >= 8


def test_labels_exchanged_in_text_are_caught(make, write, claims):
    """text.onnx names its answers: a name in the wrong place is a wrong answer."""

    def exchanged(model):
        names = next(tensor for tensor in model.graph.initializer if tensor.name == "label_names")
        names.string_data[:2] = [names.string_data[1], names.string_data[0]]

    assert len(failing(make, write, claims, Layout.text, "gru", edit=exchanged)) >= 1


class Misread(Alphabet):
    """An alphabet whose page table takes one character for unknown."""

    @cached_property
    def page_table(self):
        pages, table = super().page_table
        last = self.characters[-1]
        table[pages[ord(last) // 256] + ord(last) % 256] = 1
        return pages, table


def test_a_wrong_page_table_is_caught_for_any_character(make, write, claims):
    """The proof looks every known character up by itself, in another way than the exported files do."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    network, manifest = make("tag", "gru", False, 1, alphabet=Misread(characters))
    for file in (Layout.onnx, Layout.torchscript):
        found = claims(file, write(file, network, manifest), manifest)
        whole = Alphabet(characters)
        table = proof.prove(network, whole, found, proof.draw_cases(whole)[:7])
        assert "every character" in {row.case for row in table.rows if not row.passed}


def test_names_after_a_texts_end_are_caught(make, write, claims):
    """text.onnx that goes on naming labels where a shorter text has ended."""

    def unmasked(model):
        node = next(node for node in model.graph.node if node.op_type == "Where")
        node.op_type, node.input[:] = "Identity", [node.input[1]]

    found = failing(make, write, claims, Layout.text, "gru", edit=unmasked)
    assert "ragged rows" in found


@pytest.mark.parametrize(
    ("output", "kind"), [("logits", onnx.TensorProto.DOUBLE), ("label_ids", onnx.TensorProto.INT64)]
)
def test_another_type_in_chunks_is_caught(output, kind, make, write, claims):
    """Chunks put together by numpy would fit any type in without a word."""

    def cast(model):
        for node in model.graph.node:
            node.input[:] = ["own" if name == output else name for name in node.input]
            node.output[:] = ["own" if name == output else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Cast", ["own"], [output], name="cast", to=kind))
        next(o for o in model.graph.output if o.name == output).type.tensor_type.elem_type = kind

    assert len(failing(make, write, claims, Layout.stream, "gru", False, edit=cast)) >= 8


def test_rounding_that_is_too_coarse_is_caught(monkeypatch, make, write, claims):
    """The graph and its oracle round weights by the same function, so that function is held apart from both."""
    real = nodes.quantised
    monkeypatch.setattr(nodes, "quantised", lambda rows: (real(rows)[0] * 0, real(rows)[1]))
    with pytest.raises(ProofError, match="a weight is rounded further than int8 has to"):
        failing(make, write, claims, Layout.int8, "gru")

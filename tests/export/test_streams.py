"""Streams of networks drawn at random: every cell, task and number of layers; whole is chunked."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.artifacts.onnx_file import DIGEST, digest
from ohlol.artifacts.parity import TOLERANCE
from ohlol.serve.generate import Sampling, generate
from ohlol.serve.model import of_file
from ohlol.serve.score import Scorer
from ohlol.serve.stream import StreamFile

CELLS = ("rnn", "gru", "lstm")
TEXTS = st.text(st.sampled_from("ehlo é\u0301中😀x\n"), max_size=40)


@cache
def opened(make, write, task, cell, layers, form="NFC"):
    """The same network as a model for whole texts and as one for pieces; its weights twice what they are drawn as."""
    alphabet = Alphabet("ehlo é\u0301中😀\n", form)
    network, manifest = make(task, cell, False, layers, alphabet=alphabet, hidden_size=9)
    for weight in network.parameters():
        weight.data.mul_(2)
    whole = of_file(manifest, write(Layout.onnx, network, manifest), Layout.onnx)
    return whole, StreamFile(manifest, write(Layout.stream, network, manifest), Layout.stream)


def pieces(text, places):
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:stop] for start, stop in pairwise(ends)]


def near(expected, found):
    """Within the tolerance of the proof, which each of the two files keeps by itself."""
    expected, found = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    assert expected.shape == found.shape
    assert np.abs(expected - found).max(initial=0) <= 2 * TOLERANCE * (1 + np.abs(expected).max(initial=0))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("form", ["NFC", "NFKD", "none"])
@settings(max_examples=25)
@given(text=TEXTS, places=st.lists(st.integers(0, 40), max_size=6))
def test_tags_in_pieces(make, write, cell, layers, form, text, places):
    """Text, probabilities and labels, whatever the cuts and the normal form."""
    whole, file = opened(make, write, "tag", cell, layers, form)
    stream, expected = file.stream(), whole(text)
    results = [*map(stream.feed, pieces(text, places)), stream.finish()]
    assert expected.text == "".join(result.text for result in results)
    found = np.concatenate([result.probabilities for result in results])
    near(expected.probabilities, found)
    labels = [label for result in results for label in result.labels]
    sure = np.sort(expected.probabilities)
    clear = sure[:, -1] - sure[:, -2] > 4 * TOLERANCE
    assert [a for a, c in zip(expected.labels, clear, strict=True) if c] == [
        b for b, c in zip(labels, clear, strict=True) if c
    ]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@settings(max_examples=25)
@given(text=TEXTS, places=st.lists(st.integers(0, 40), max_size=6))
def test_a_class_in_pieces(make, write, cell, layers, text, places):
    """After every piece the answer is that of the text so far, at the end that of the whole; through its bytes too."""
    whole, file = opened(make, write, "classify", cell, layers)
    stream, sofar = file.stream(), ""
    for piece in [*pieces(text, places), None]:
        result = stream.finish() if piece is None else stream.feed(piece)
        sofar += result.text
        expected = whole(sofar)
        assert (expected.label is None) == (result.label is None)
        assert expected.probabilities.keys() == result.probabilities.keys()
        near([expected.probabilities[k] for k in result.probabilities], [*result.probabilities.values()])
        assert result.probability == max(result.probabilities.values(), default=None)
        if piece is not None:
            other = file.stream()
            other.load_state_dict(stream.state_dict())
            assert other.feed("").probabilities == result.probabilities
            stream = other
    assert whole(text).text == sofar


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@settings(max_examples=25)
@given(text=TEXTS, places=st.lists(st.integers(0, 40), max_size=6))
def test_a_score_in_pieces(make, write, cell, layers, text, places):
    """The nats of all pieces are those of the whole text, and so is what comes next; `Scorer` says the same."""
    whole, file = opened(make, write, "lm", cell, layers)
    stream, expected = file.stream(), whole(text)
    nats, characters = 0.0, 0
    for piece in [*pieces(text, places), None]:
        before = stream.characters
        result = stream.finish() if piece is None else stream.feed(piece)
        scored = stream.characters - max(before, 1) if stream.characters else 0
        assert (result.nats_per_character is None) == (scored <= 0)
        nats += (result.nats_per_character or 0) * max(scored, 0)
        characters += max(scored, 0)
    assert max(0, len(expected.text) - 1) == characters
    near((expected.nats_per_character or 0) * characters, nats)
    near(expected.probability or 0, result.probability or 0)
    near(expected.bits_per_character or 0, Scorer(file)([text])[0] or 0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_generated_text_is_the_whole_texts(make, write, cell, layers):
    """Each character that was made is the likeliest one after the text before it, read anew by model.onnx."""
    whole, file = opened(make, write, "lm", cell, layers)
    text = "he中" + "".join(generate(file, "he中", length=30, sampling=Sampling(0)))
    points = np.array([[ord(character) for character in text]], dtype=np.int32)
    logits = whole.outputs(points, np.array([len(text)], dtype=np.int32))["logits"][0, 2:-1].astype(
        np.float64
    )
    logits[:, :2] = -np.inf
    made = whole.manifest.alphabet.encode(text)[3:]
    best = logits.max(axis=1)
    assert (logits[np.arange(len(made)), made] >= best - 2 * TOLERANCE * (1 + np.abs(best))).all()
    assert len(text) == 33


def test_the_first_character_of_all(make, write):
    """Without a prompt and a line end in the alphabet, every known character may begin the text, equally likely; an
    alphabet of none makes nothing."""
    network, manifest = make("lm", "gru", False, 1, alphabet=Alphabet("abcd"))
    file = StreamFile(manifest, write(Layout.stream, network, manifest), Layout.stream)
    firsts = [next(generate(file, length=1, seed=seed)) for seed in range(400)]
    counts = [firsts.count(character) for character in "abcd"]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 21.1  # chi-square, 99.99 %
    assert next(generate(file, sampling=Sampling(0))) == "a"
    network, manifest = make("lm", "gru", False, 1, alphabet=Alphabet(""))
    nothing = StreamFile(manifest, write(Layout.stream, network, manifest), Layout.stream)
    with pytest.raises(InputError, match="alphabet is empty"):
        generate(nothing, "hello")


@pytest.mark.parametrize("cell", CELLS)
def test_a_silent_stream_keeps_its_state(make, write, cell):
    """In a batch where others go on, a stream without a new character is as it was: a row of length 0 would lose its
    state in the runtime."""
    _, file = opened(make, write, "tag", cell, 2)
    silent, other = file.stream(), file.stream()
    silent.feed("hel ")
    before = silent.state_dict()
    file.feed_all([(other, "hello "), (silent, ""), (file.stream(), "he ")])
    assert before == silent.state_dict()
    alone = file.stream()
    alone.feed("hel ")
    near(alone.feed("lo ").probabilities, silent.feed("lo ").probabilities)


def test_states_of_another_cell_are_refused(make, write):
    """The bytes name the file they are of, so that equal shapes are no matter."""
    (_, gru), (_, rnn) = (opened(make, write, "tag", cell, 2) for cell in ("gru", "rnn"))
    stream = gru.stream()
    stream.feed("hel")
    assert stream.state_dict()[8:36] == rnn.stream().state_dict()[8:24] + stream.state_dict()[24:36]
    with pytest.raises(InputError, match=r"of another stream\.onnx"):
        rnn.stream().load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: setattr(graph.input[1], "name", "h0"), "no input `state`, found codepoints, h0"),
        (lambda graph: graph.output.pop(), "no output `next_state`"),
        (
            lambda graph: graph.input[1].type.tensor_type.shape.dim[0].ClearField("dim_value"),
            "input `state` is",
        ),
    ],
)
def test_a_stream_file_outside_of_the_contract_is_refused(make, write, change, message):
    """Names, types and shapes are those of the contract, or the file is not run."""
    network, manifest = make("tag", "gru", False, 1)
    model = onnx.load_from_string(write(Layout.stream, network, manifest))
    renamed = model.graph.input[1].name
    change(model.graph)
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == renamed:
                node.input[k] = model.graph.input[1].name
    sealed = model.SerializeToString()
    for entry in model.metadata_props:
        if entry.key == DIGEST:
            entry.value = f'"{digest(sealed)}"'
    with pytest.raises(BundleError, match=message):
        StreamFile(manifest, model.SerializeToString(), "stream.onnx")

"""Loading and answering in Python, without torch."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.serve.model import WINDOW
from ohlol.serve.results import Classified, Scored, Tagged

TASKS = ("words", "classify", "lm")
TEXTS = st.text(st.sampled_from("ehlo xin 田ü.\u0301👋\0\n\ud800"), max_size=40)


@pytest.fixture(scope="module")
def models(golden):
    return {"tag": ohlol.load("hello"), **{name: ohlol.load(golden / name) for name in TASKS}}


def test_hello():
    """The first thing the project ever learnt."""
    assert str(ohlol.load("hello")("hello")) == "ohlol"


def test_golden_bundles_answer_as_they_did(models):
    """Bundles of format version 1 load and answer the same, whatever this version writes."""
    words = models["words"]("chào bạn. xin chào New York")
    assert words.words == ["chào", "bạn", ".", "xin chào", "New York"]
    assert words.word_spans == [(0, 4), (5, 8), (8, 9), (10, 18), (19, 27)]
    assert words.sentences == ["chào bạn.", "xin chào New York"]
    labels = [result.label for result in models["classify"](["Rossi", "田中", "Müller"])]
    assert labels == ["it", "ja", "de"]
    scored = models["lm"]("hello 👋 ohl")
    assert (scored.next, round(scored.bits_per_character, 3)) == ("o", 0.078)


def test_results_are_typed(models):
    """Each task has its own type, with the fields its documentation names."""
    tagged, classified, scored = models["tag"]("hel"), models["classify"]("林"), models["lm"]("he")
    assert (type(tagged), type(classified), type(scored)) == (Tagged, Classified, Scored)
    assert tagged.probabilities.shape == (3, 4)
    assert tagged.probability.tolist() == tagged.probabilities.max(axis=1).tolist()
    assert next(iter(classified.probabilities)) == classified.label
    assert abs(sum(classified.probabilities.values()) - 1) < 1e-5
    assert classified.probability == max(classified.probabilities.values())
    assert scored.bits_per_character == pytest.approx(scored.nats_per_character / np.log(2))


def test_the_answers_are_those_of_the_file(models, golden):
    """What the API returns is what a bare session returns, no more and no less."""
    session = onnxruntime.InferenceSession((golden / "classify" / Layout.onnx).read_bytes())
    points = codepoints("Bianchi")[None]
    feed = {"codepoints": points, "lengths": np.array([points.shape[1]], dtype=np.int32)}
    probabilities, label = session.run(["probabilities", "label_ids"], feed)
    result = models["classify"]("Bianchi")
    assert models["classify"].manifest.labels[label[0]] == result.label
    assert sorted(result.probabilities.values()) == pytest.approx(sorted(probabilities[0].tolist()), abs=1e-6)


def test_lists_tuples_and_iterators(models):
    """One text gives one result, a list a list, any other iterable an iterator."""
    model = models["tag"]
    assert [str(r) for r in model(["hello", "", "he"])] == ["ohlol", "", str(model("he"))]
    assert model(()) == []
    lazy = model(text for text in ["hello", "h"])
    assert iter(lazy) is lazy
    assert [str(r) for r in lazy] == ["ohlol", str(model("h"))]


def test_an_iterator_reads_ahead_by_a_window_only(models):
    """A file of any size runs in the same memory."""
    read = []

    def texts():
        for number in range(3 * WINDOW):
            read.append(number)
            yield "hello"

    next(models["tag"](texts()))
    assert len(read) == 2 * WINDOW


@pytest.mark.parametrize("name", ["tag", *TASKS])
@settings(max_examples=25)
@given(texts=st.lists(TEXTS, max_size=12))
def test_alone_as_in_company(models, name, texts):
    """Neither the other texts of a batch nor their order change an answer; nothing raises."""
    model = models[name]
    for text, result in zip(texts, model(texts), strict=True):
        alone = model(text)
        assert type(result) is type(alone)
        if isinstance(result, Tagged):
            assert len(result.labels) == len(result.text)
            np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-5)
        elif isinstance(result, Classified):
            assert result.probability == pytest.approx(alone.probability, abs=1e-5)
        else:
            assert result.nats_per_character == pytest.approx(alone.nats_per_character, abs=1e-4)


def test_texts_are_normalised(models):
    """NFC and NFD of one text have one answer, and the result says which text it is about."""
    composed, decomposed = models["classify"](["Schäfer", "Scha\u0308fer"])
    assert composed == decomposed
    assert decomposed.text == "Schäfer"


def test_empty_texts_never_reach_the_model(models, monkeypatch):
    """With no row ONNX Runtime would end the process; an empty text has an empty answer."""
    for name, expected in [
        ("tag", ("", ())),
        ("words", ("", ())),
        ("classify", ("", None)),
        ("lm", ("", None)),
    ]:
        model = models[name]
        for owner in (model, model.runner):
            monkeypatch.setattr(owner, "_session", None)
        result = model("")
        assert (result.text, getattr(result, "labels", getattr(result, "label", None))) == expected
        assert [r.text for r in model(["", ""])] == ["", ""]
    assert models["words"]("").words == []


@pytest.mark.parametrize("wrong", [3, b"hello", None, ["hello", 3], [None]])
def test_what_is_no_text_is_refused(models, wrong):
    """One clear message that names what was found."""
    with pytest.raises(InputError, match="expected a str"):
        models["tag"](wrong)


def test_words_of_a_model_without_words(models):
    """Asking for words where labels do not mark them says what to do."""
    with pytest.raises(InputError, match="label_scheme"):
        _ = models["tag"]("hello").words


def test_a_long_text(models):
    """Nothing is cut: a hundred thousand characters have a hundred thousand labels."""
    assert len(models["tag"]("hello" * 20_000).labels) == 100_000


@pytest.mark.parametrize(
    ("points", "lengths"),
    [
        (np.zeros((0, 3), np.int32), np.zeros(0, np.int32)),
        (np.zeros((1, 0), np.int32), np.zeros(1, np.int32)),
        (np.zeros((1, 3), np.int64), np.ones(1, np.int32)),
        (np.zeros((1, 3), np.int32), np.ones(2, np.int32)),
        (np.zeros((1, 3), np.int32), np.zeros(1, np.int32)),
        (np.zeros((1, 3), np.int32), np.full(1, 4, np.int32)),
        (np.zeros(3, np.int32), np.ones(1, np.int32)),
    ],
)
def test_arrays_outside_the_contract_are_refused(models, points, lengths):
    """B = 0 with an LSTM kills the process, so no array reaches the runtime unchecked."""
    with pytest.raises(InputError, match="expected codepoints"):
        models["classify"].outputs(points, lengths)


def test_one_model_in_many_threads(models):
    """A loaded model may be shared: sixteen threads get the answers of one."""
    model, texts = models["classify"], [name * k for name in ("Rossi", "田中", "Koch") for k in range(1, 30)]
    expected = model(texts)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(model, texts)) == expected


def test_a_single_file(golden, tmp_path, models):
    """`model.onnx` is complete by itself: alphabet, labels and scheme are inside."""
    shutil.copy(golden / "words" / Layout.onnx, tmp_path / "w.onnx")
    alone = ohlol.load(tmp_path / "w.onnx")
    assert alone("xin chào bạn").words == models["words"]("xin chào bạn").words
    assert alone.manifest.labels == models["words"].manifest.labels


def test_many_rows_are_answered_by_the_file_for_them(golden, tmp_path, monkeypatch):
    """A batch of many texts goes through model.batch.onnx where that is the faster one; the answers are the same."""
    assert contract.many_rows({"cell": "gru", "hidden_size": 64}) == 64
    assert contract.many_rows({"cell": "gru", "hidden_size": 256}) == 32
    assert contract.many_rows({"cell": "gru", "hidden_size": 8}) == 128
    assert contract.many_rows({"cell": "lstm", "hidden_size": 64}) == 64
    assert contract.many_rows({"cell": "rnn", "hidden_size": 64}) == 0
    assert contract.many_rows({"cell": "gru", "hidden_size": "64"}) == 0
    monkeypatch.setattr(contract, "many_rows", lambda network: 16)
    texts = [f"hello {k} ohlol" for k in range(40)]
    whole = ohlol.load(golden / "files")
    opened = []
    whole.runner._open_batch = lambda make=whole.runner._open_batch: opened.append(1) or make()
    shutil.copy(golden / "files" / Layout.onnx, tmp_path / Layout.onnx)
    alone = ohlol.load(tmp_path / Layout.onnx)
    expected, found = ([r.nats_per_character for r in model(texts)] for model in (alone, whole))
    assert found == pytest.approx(expected, abs=1e-4)
    assert [r.next for r in whole(texts)] == [r.next for r in alone(texts)]
    assert opened, "40 rows are many"
    opened.clear()
    whole(texts[:3])
    assert opened == []


def foreign_model(tmp_path, name, dtype):
    """A valid ONNX file that is none of ours, without the onnx package: one Identity node, as protobuf bytes."""

    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    value = field(1, name) + field(2, field(1, bytes([8, dtype]) + field(2, field(1, field(2, b"batch")))))
    output = field(1, b"y") + value[len(field(1, name)) :]
    graph = field(1, field(1, name) + field(2, b"y") + field(4, b"Identity")) + field(2, b"g")
    graph += field(11, value) + field(12, output)
    path = tmp_path / "foreign.onnx"
    path.write_bytes(bytes([8, 8]) + field(7, graph) + field(8, bytes([16, 15])))
    return path


def test_a_foreign_file_is_refused(tmp_path):
    """An ONNX file that ohlol did not export says so, and what to do."""
    with pytest.raises(BundleError, match="ohlol did not export"):
        ohlol.load(foreign_model(tmp_path, b"x", 1))


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    """A truncated or foreign file gets one message, not the runtime's traceback."""
    (tmp_path / "m.onnx").write_bytes((shipped() / Layout.onnx).read_bytes()[:500])
    with pytest.raises(BundleError, match="not an ONNX file"):
        ohlol.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", ["h", "e", "l", "o"], "`labels` differs"),
        ("labels", ["e", "h", "l"], "not those of a tag model with 3 classes"),
        ("alphabet", {"characters": "hloe", "normalisation": "NFC"}, "`alphabet` differs"),
        ("alphabet", {"characters": "ehlo", "normalisation": "NFD"}, "`alphabet` differs"),
        ("task", "classify", "not those of a classify model"),
    ],
)
def test_a_manifest_that_is_not_the_models_own(tmp_path, key, value, message):
    """No digest covers the manifest: swapped labels would give wrong answers without a word."""
    shutil.copytree(shipped(), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / Layout.manifest).read_text())
    (tmp_path / "b" / Layout.manifest).write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(BundleError, match=message):
        ohlol.load(tmp_path / "b")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None, 10**12])
def test_threads(threads):
    """A number of threads that cannot be is refused before the runtime sees it."""
    with pytest.raises(InputError, match="threads is"):
        ohlol.load("hello", threads=threads)

"""Rows out: whatever a row and a label hold, what is written reads back as what was answered."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.serve.answers import TagAnswers
from ohlol.serve.blocks import Place
from ohlol.serve.output import Sink
from ohlol.serve.results import Labels
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Window
from ohlol.serve.writers import WRITERS, Look

TEXTS = st.text(st.sampled_from('ab"\\,\n\r\té👋\0\u2028'), max_size=9)
NAMES = st.sampled_from(
    [("a", "b"), ("a", '"'), ("ab", "c\td"), ("\n", "é"), ("\n\n", "\\"), ("", "x"), ("\ud800", "b")]
)


def tagged(texts, names, seed):
    """A window of texts, and random labels for them."""
    rows = Rows.of(texts, Alphabet("ab", "none"))
    answers = object.__new__(TagAnswers)
    answers.rows, answers.labels = rows, Labels(names)
    answers.label_ids = np.random.default_rng(seed).integers(0, 2, len(rows.points)).astype(np.int32)
    answers.probabilities = np.full((len(rows.points), 2), 0.5, dtype=np.float32)
    kept = [{"n": k, "text": text} for k, text in enumerate(texts)]
    return Window(rows, str, Place(), kept, "text"), answers


def written(form, window, answers, **look):
    file = io.BytesIO()
    writer = WRITERS[form](Sink(file), Look(**look), {})
    writer.window(window, answers)
    writer.close()
    return file.getvalue().decode()


@given(texts=st.lists(TEXTS, max_size=6), names=NAMES, seed=st.integers(0, 9), probabilities=st.booleans())
def test_json(texts, names, seed, probabilities):
    """The quick way of labels alone, and the way of all others: the same rows."""
    window, answers = tagged(texts, names, seed)
    rows = [
        json.loads(line)
        for line in written("jsonl", window, answers, probabilities=probabilities).split("\n")[:-1]
    ]
    assert [(row["n"], row["text"], row["labels"]) for row in rows] == [
        (k, text, list(result.labels))
        for k, (text, result) in enumerate(zip(texts, answers.results(), strict=True))
    ]


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables(form, delimiter):
    """Labels as one string, probabilities as JSON, each in one cell."""

    @given(
        texts=st.lists(TEXTS, max_size=6), names=NAMES, seed=st.integers(0, 9), probabilities=st.booleans()
    )
    def holds(texts, names, seed, probabilities):
        window, answers = tagged(texts, names, seed)
        text = written(form, window, answers, probabilities=probabilities)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        expected = [str(result).replace("\ud800", "?") for result in answers.results()]
        assert [(row["text"], row["labels"]) for row in rows] == list(zip(texts, expected, strict=True))
        if probabilities:
            assert [json.loads(row["probabilities"]) for row in rows] == [[0.5] * len(text) for text in texts]

    holds()


def test_a_sink_without_compression_and_with():
    """What was settled can be read alone, and the sizes are those of the file."""
    import gzip
    import zlib

    for make in (None, lambda: zlib.compressobj(6, zlib.DEFLATED, 31)):
        file = io.BytesIO()
        sink = Sink(file, make)
        sink.write(b"hello")
        first = sink.settle()
        sink.write(b"world")
        sink.close()
        data = file.getvalue()
        read = gzip.decompress if make else bytes
        assert (read(data[:first]), read(data), sink.settle()) == (b"hello", b"helloworld", len(data))

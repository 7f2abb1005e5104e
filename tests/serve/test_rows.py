"""Many texts as one array: nothing is lost, cut or mixed up."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import FORMS, Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.serve.results import Labels, Tagged, line
from ohlol.serve.rows import Pieces, Rows
from ohlol.serve.spelling import joined_labels, words

TEXTS = st.text(st.sampled_from("ab \n\r\té\u0301\u1100\u1161가👋\ud800\0\u2028"), max_size=12)


def normal(text, form):
    return text if form == "none" else unicodedata.normalize(form, text)


@given(texts=st.lists(TEXTS, max_size=8), form=st.sampled_from(FORMS))
def test_rows_of_texts(texts, form):
    """Each text, normalised by itself: a newline between them joins with nothing."""
    rows = Rows.of(texts, Alphabet("ab", form))
    assert rows.texts() == [normal(text, form) for text in texts]
    assert [rows.text(k) for k in range(len(rows))] == rows.texts()
    assert rows.inside.sum() == rows.lengths.sum()


@given(lines=st.lists(TEXTS.map(lambda t: t.replace("\n", "")), max_size=8), ended=st.booleans())
def test_rows_of_lines(lines, ended):
    """Lines end at a newline, with or without a return before it, and nowhere else."""
    block = "\n".join(lines) + "\n" * (ended and bool(lines))
    expected = block.split("\n")
    expected = expected[:-1] if not expected[-1] else expected
    rows = Rows.of_lines(block, Alphabet("ab", "NFC"))
    assert rows.texts() == [normal(text.removesuffix("\r"), "NFC") for text in expected]


@pytest.mark.parametrize("wrong", [[b"a"], ["a", None], [3]])
def test_what_is_no_text(wrong):
    """The first that is no text is named."""
    with pytest.raises(InputError, match="expected a str"):
        Rows.of(wrong, Alphabet("ab"))


@given(lengths=st.lists(st.integers(1, 60), max_size=40), size=st.integers(1, 40), before=st.integers(0, 9))
def test_pieces_answer_every_character_once(lengths, size, before):
    """Windows of long rows: each character is answered by one piece, whose context stays inside its row."""
    rows = Rows.of(["x" * n for n in lengths], Alphabet("x"))
    pieces = Pieces.whole(rows, np.arange(len(rows))).windows(size, before, before)
    answered = np.zeros(len(rows.points), dtype=int)
    for batch in pieces.batches(50):
        assert len(batch) == 1 or len(batch) * batch.length.max() <= 50
        for row, start, length, skip, keep in zip(*vars(batch).values(), strict=True):
            assert 0 <= skip <= before
            assert rows.starts[row] <= start
            assert start + length <= rows.starts[row] + rows.lengths[row]
            answered[start + skip : start + skip + keep] += 1
    assert answered.tolist() == rows.inside.astype(int).tolist()


@given(
    texts=st.lists(TEXTS, max_size=6),
    names=st.sampled_from([("a", "b", "c"), ("a", "bc", ""), ("\n", "é", "👋"), ("a\tb", "c", "d")]),
    seed=st.integers(0, 99),
)
def test_labels_as_lines(texts, names, seed):
    """Every line at once is what each result by itself writes."""
    labels = Labels(names)
    rows = Rows.of(texts, Alphabet("ab", "none"))
    ids = np.random.default_rng(seed).integers(0, len(names), len(rows.points)).astype(np.int32)
    assert joined_labels(rows, ids, labels) == one_by_one(rows, ids, labels, "labels")


@given(texts=st.lists(TEXTS, max_size=6), seed=st.integers(0, 99))
def test_words_as_lines(texts, seed):
    """Words divided by tabs, whatever the labels say, as each result by itself writes them."""
    labels = Labels(("B", "I", "O", "S"), "words")
    rows = Rows.of(texts, Alphabet("ab", "none"))
    ids = np.random.default_rng(seed).integers(0, 4, len(rows.points)).astype(np.int32)
    assert words(rows, ids, labels) == one_by_one(rows, ids, labels, "words")


def one_by_one(rows, ids, labels, as_):
    made = []
    for text, start in zip(rows.texts(), rows.starts.tolist(), strict=True):
        made.append(
            line(Tagged(text, ids[start : start + len(text)], np.zeros((0, 3)), labels), as_=as_) + "\n"
        )
    return "".join(made)

"""The figures are what their names say, against the plainest code that computes them and what others publish by."""

from __future__ import annotations

import math
import re
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from seqeval.metrics import f1_score as entity_f1
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.run import Vocabulary
from ohlol.artifacts.words import LABELS, SCHEME, Span, sentence_spans, word_spans
from ohlol.train.batches import Rows, Whole
from ohlol.train.data import Split
from ohlol.train.metrics import Metrics, better, label_metrics, lm_metrics, tag_metrics
from ohlol.train.packed import Examples, pack
from ohlol.train.readers import Example

VOCABULARY = Vocabulary(Alphabet("ab"), LABELS, SCHEME)

answers = st.integers(1, 5).flatmap(
    lambda labels: st.tuples(
        st.just(labels), st.lists(st.tuples(*[st.integers(0, labels - 1)] * 2), min_size=1, max_size=60)
    )
)
rows = st.lists(
    st.lists(
        st.tuples(st.sampled_from("ab \u00a0\u3000"), *[st.sampled_from(LABELS)] * 2), min_size=1, max_size=25
    ),
    min_size=1,
    max_size=5,
)
# A character, and whether a word (B), a sentence (S) or nothing begins there, twice.
marked = st.lists(
    st.lists(st.tuples(st.sampled_from("ab \u00a0\u3000"), *[st.sampled_from("BSI")] * 2), max_size=25),
    min_size=1,
    max_size=5,
)


def numbers(labels: list[str] | str) -> NDArray[np.int64]:
    return np.array([LABELS.index(label) for label in labels], dtype=np.int64)


def split_of(examples: list[Example]) -> Split:
    packed = pack(examples, per_example=False)
    ids = np.zeros(packed.highest + 1, dtype=np.int64)
    return Split(Examples(packed), Rows(packed, Whole(packed.offsets), ids, numbers(list(packed.names))))


def scored(texts: list[str], gold: list[str], predicted: list[str]) -> Metrics:
    """The metrics of rows given as strings of labels."""
    examples = [Example(text, tuple(labels), 1) for text, labels in zip(texts, gold, strict=True)]
    return tag_metrics(split_of(examples), [numbers(labels) for labels in predicted], VOCABULARY)


def naive_f1(right: int, found: int, gold: int) -> float:
    precision = right / found if found else 0.0
    recall = right / gold if gold else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def naive_span_f1(texts: list[str], gold: list[list[Span]], predicted: list[list[Span]]) -> float:
    """F1 over the sets of characters that spans cover, spaces left out."""

    def covered(spans: list[list[Span]]) -> set[tuple[int, frozenset[int]]]:
        sets = {
            (row, frozenset(at for at in range(start, end) if not texts[row][at].isspace()))
            for row, own in enumerate(spans)
            for start, end in own
        }
        return {(row, characters) for row, characters in sets if characters}

    have, want = covered(predicted), covered(gold)
    return naive_f1(len(have & want), len(have), len(want))


@given(answers)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Macro-F1 is the plain mean over the labels that occur in either; no rare label is forgotten."""
    labels, pairs = case
    gold, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    macro = f1_score(gold, predicted, average="macro", zero_division=0)
    expected = {"accuracy": accuracy_score(gold, predicted), "macro_f1": macro}
    assert pytest.approx(expected) == label_metrics(gold, predicted, labels)


@given(rows)
def test_span_f1_agrees_with_sets_of_characters(drawn: list[list[tuple[str, str, str]]]) -> None:
    """Words and sentences F1 over any labels are what plain sets give."""
    texts, gold, predicted = (["".join(cell[k] for cell in row) for row in drawn] for k in range(3))
    found = scored(texts, gold, predicted)
    for name, spans in (("words_f1", word_spans), ("sentences_f1", sentence_spans)):
        expected = naive_span_f1(texts, [spans(row) for row in gold], [spans(row) for row in predicted])
        assert pytest.approx(expected) == found[name]


def forms(texts: list[str], marks: list[str], begins: str) -> list[str]:
    """The letters of all texts in pieces, one beginning at each of the marks `begins`, as CoNLL-U lists them."""
    letters = ((c, mark) for row in zip(texts, marks, strict=True) for c, mark in zip(*row, strict=True))
    return "".join("|" * (mark in begins) + c for c, mark in letters if not c.isspace()).split("|")[1:]


def shared_task_f1(gold: list[str], system: list[str]) -> float:
    """F1 as the CoNLL 2018 shared task defines it: a form is right where it covers the same characters of the
    text, whose spaces are removed; precision is right / system, recall right / gold.
    """
    assert "".join(gold) == "".join(system)
    have, want = (set(pairwise(accumulate(map(len, pieces), initial=0))) for pieces in (system, gold))
    return 2 * len(have & want) / (len(gold) + len(system))


def labels_of(text: str, marks: str) -> str:
    """Letters are labelled by their marks; a space between two words is outside both or still in the first."""
    labels, after = "", "O"
    for character, mark in zip(reversed(text), reversed(marks), strict=True):
        label = mark if not character.isspace() else "I" if "I" in (mark, after) else "O"
        labels, after = label + labels, label
    return labels


@given(marked)
def test_span_f1_is_that_of_the_shared_task(drawn: list[list[tuple[str, str, str]]]) -> None:
    """Two ways of cutting letters into words and sentences score as published figures do, wherever spaces are."""
    texts, *both = (["".join(cell[k] for cell in row) for row in drawn] for k in range(3))
    # The first letter of a row begins a sentence.
    texts, gold, system = ["a" + text for text in texts], *(["S" + row for row in marks] for marks in both)
    labels = ([labels_of(*row) for row in zip(texts, marks, strict=True)] for marks in (gold, system))
    found = scored(texts, *labels)
    for name, begins in (("words_f1", "BS"), ("sentences_f1", "S")):
        expected = shared_task_f1(forms(texts, gold, begins), forms(texts, system, begins))
        assert pytest.approx(expected) == found[name]


@given(rows)
def test_words_f1_is_that_of_seqeval(drawn: list[list[tuple[str, str, str]]]) -> None:
    """Words without spaces are entities of one kind; strict IOB2 knows no `I` that follows no word."""
    texts = ["".join(cell[0] for cell in row) for row in drawn]
    gold, predicted = (
        [re.sub("(^|O)I+", lambda stray: "O" * len(stray[0]), "".join(labels)) for labels in both]
        for both in (
            (["O" if cell[0].isspace() else cell[k] for cell in row] for row in drawn) for k in (1, 2)
        )
    )
    tags = {"O": "O", "B": "B-word", "S": "B-word", "I": "I-word"}
    truth, answer = ([[tags[label] for label in row] for row in both] for both in (gold, predicted))
    expected = entity_f1(truth, answer, mode="strict", scheme=IOB2, zero_division=0)
    assert pytest.approx(expected) == scored(texts, gold, predicted)["words_f1"]


@pytest.mark.parametrize(
    ("text", "gold", "predicted", "words", "sentences"),
    [
        ("ab ba", "SIOBI", "SIOBI", 1.0, 1.0),
        ("ab ba", "SIOBI", "SIIBI", 1.0, 1.0),  # a space more in a word changes nothing
        ("ab ba", "SIOBI", "SIBBI", 1.0, 1.0),  # nor does a word of a space alone
        ("ab ba", "SIOBI", "SIIII", 0.0, 1.0),
        ("ab ba", "SIOBI", "SIOSI", 1.0, 0.0),
        ("ab ba", "SIOSI", "SBOSI", 0.4, 1.0),  # one of two words right, of three found
        ("ab", "SI", "OO", 0.0, 0.0),
        (" ", "O", "O", 0.0, 0.0),
    ],
)
def test_spaces_do_not_count(text: str, gold: str, predicted: str, words: float, sentences: float) -> None:
    """The convention of the CoNLL 2018 shared task, so that figures compare with published ones."""
    found = scored([text], [gold], [predicted])
    assert (pytest.approx(words), pytest.approx(sentences)) == (found["words_f1"], found["sentences_f1"])


def test_spans_are_pooled_over_rows() -> None:
    """F1 is over all spans of the split, not the mean of the rows' own."""
    found = scored(["aaaa", "ab"], ["SBBB", "SB"], ["SBBB", "SI"])
    assert pytest.approx(2 * 4 / (5 + 6)) == found["words_f1"]


def test_span_figures_need_the_scheme() -> None:
    """Labels that do not mark words have no F1 over words."""
    vocabulary = Vocabulary(Alphabet("ab"), LABELS, None)
    ids = numbers("SI")
    split = split_of([Example("ab", ("S", "I"), 1)])
    assert tag_metrics(split, [ids], vocabulary) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_lm_figures_are_per_character() -> None:
    """A uniform guess among eight characters costs ln 8 nats, which is 3 bits."""
    found = lm_metrics(10 * math.log(8), 10)
    assert pytest.approx({"nats_per_character": math.log(8), "bits_per_character": 3.0}) == found


@pytest.mark.parametrize(
    ("name", "value", "than", "expected"),
    [
        ("accuracy", 0.5, None, True),
        ("accuracy", 0.6, 0.5, True),
        ("accuracy", 0.5, 0.5, False),
        ("words_f1", 0.4, 0.5, False),
        ("nats_per_character", 1.4, 1.5, True),
        ("nats_per_character", 1.6, 1.5, False),
    ],
)
def test_better_knows_which_way_is_up(name: str, value: float, than: float | None, expected: bool) -> None:
    """The best checkpoint is the best one, and of two equal ones the first."""
    assert expected == better(name, value, than)

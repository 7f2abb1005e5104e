"""The figures are what their names say, against the plainest code that computes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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
def test_accuracy_and_macro_f1_agree_with_their_definition(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Macro-F1 is the plain mean over the labels that occur in either; no rare label is forgotten."""
    labels, pairs = case
    scores = []
    for label in sorted({label for pair in pairs for label in pair}):
        right = sum(pair == (label, label) for pair in pairs)
        gold, found = sum(g == label for g, _ in pairs), sum(p == label for _, p in pairs)
        scores.append(naive_f1(right, found, gold))
    expected = {"accuracy": sum(g == p for g, p in pairs) / len(pairs), "macro_f1": sum(scores) / len(scores)}
    gold_ids, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    assert pytest.approx(expected) == label_metrics(gold_ids, predicted, labels)


@given(rows)
def test_span_f1_agrees_with_sets_of_characters(drawn: list[list[tuple[str, str, str]]]) -> None:
    """Words and sentences F1 over any labels are what plain sets give."""
    texts, gold, predicted = (["".join(cell[k] for cell in row) for row in drawn] for k in range(3))
    found = scored(texts, gold, predicted)
    for name, spans in (("words_f1", word_spans), ("sentences_f1", sentence_spans)):
        expected = naive_span_f1(texts, [spans(row) for row in gold], [spans(row) for row in predicted])
        assert pytest.approx(expected) == found[name]


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

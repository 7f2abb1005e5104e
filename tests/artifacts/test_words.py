"""Words and sentences out of labels on characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.words import LABELS, Span, sentence_spans, word_spans

labellings = st.lists(st.sampled_from(LABELS), max_size=60)


def words_by_loop(labels: list[str]) -> list[Span]:
    spans: list[list[int]] = []
    open_word = False
    for position, label in enumerate(labels):
        if label in "BS" or (label == "I" and not open_word):
            spans.append([position, position + 1])
        elif label == "I":
            spans[-1][1] = position + 1
        open_word = label != "O"
    return [(start, end) for start, end in spans]


def sentences_by_loop(labels: list[str]) -> list[Span]:
    groups: list[list[Span]] = []
    for span in words_by_loop(labels):
        if not groups or labels[span[0]] == "S":
            groups.append([])
        groups[-1].append(span)
    return [(group[0][0], group[-1][1]) for group in groups]


@pytest.mark.parametrize(
    ("labels", "words", "sentences"),
    [
        ("", [], []),
        ("OOO", [], []),
        ("S", [(0, 1)], [(0, 1)]),
        ("SIIOBI", [(0, 3), (4, 6)], [(0, 6)]),
        ("SIBIOSI", [(0, 2), (2, 4), (5, 7)], [(0, 4), (5, 7)]),
        ("SSB", [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 3)]),
        ("IIOI", [(0, 2), (3, 4)], [(0, 4)]),  # an I that follows no word begins one
        ("OBIOO", [(1, 3)], [(1, 3)]),  # the first word begins a sentence, whatever its label
    ],
)
def test_spans_of_examples(labels: str, words: list[Span], sentences: list[Span]) -> None:
    """The scheme as its docstring tells it, and what a network may answer against the scheme."""
    assert words == word_spans(labels)
    assert sentences == sentence_spans(labels)


@given(labellings)
def test_spans_agree_with_a_plain_loop(labels: list[str]) -> None:
    """The arrays find what a loop that reads like the definition finds."""
    assert words_by_loop(labels) == word_spans(labels)
    assert sentences_by_loop(labels) == sentence_spans(labels)

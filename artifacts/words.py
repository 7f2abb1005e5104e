"""Words and sentences from labels on characters.

The scheme `"words"` has four labels: `B` begins a word, `S` begins a word that begins a sentence,
`I` continues a word, `O` is outside every word. Spaces inside a word are `I`, so words of several
syllables (Vietnamese) are words like others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SCHEME = "words"
LABELS = ("B", "I", "O", "S")

Span = tuple[int, int]
Marks = Sequence[str] | NDArray[np.str_]  # a label for each character


def word_spans(labels: Marks) -> list[Span]:
    """`(start, end)` of each word, in characters. An `I` that follows no word begins one."""
    inside, begins = boundaries(labels)
    starts = np.flatnonzero(begins)
    stops = np.append(np.flatnonzero(begins | ~inside), len(inside))
    ends = stops[np.searchsorted(stops, starts, side="right")]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def sentence_spans(labels: Marks) -> list[Span]:
    """`(start, end)` of each sentence: from a word that begins one to the end of its last word."""
    words = word_spans(labels)
    spans: list[Span] = []
    for start, end in words:
        if labels[start] == "S" or not spans:
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
    return spans


def boundaries(labels: Marks) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each character, whether it is inside a word and whether it begins one."""
    # A list: numpy takes a string for one scalar.
    marks = labels if isinstance(labels, np.ndarray) else np.array(list(labels), dtype="U1")
    inside = marks != "O"
    after_outside = np.concatenate(([True], ~inside[:-1])) if len(marks) else inside
    return inside, (marks == "B") | (marks == "S") | (inside & after_outside)

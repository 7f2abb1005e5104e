"""The examples a network does worst on, in pieces that a page can mark."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import RESERVED, Alphabet
from ohlol.artifacts.run import Vocabulary
from ohlol.artifacts.words import word_spans
from ohlol.train.data import Split

SHOWN = 30  # examples
AROUND = 24  # characters shown on either side of a mistake
LONGEST = 400  # characters shown of one example, about


class Piece(NamedTuple):
    """Some text, and what it is: "word", "wrong", "sentence" (it begins one), "gap", or several; or "".

    `labels` are the label in the data and the one answered in its place; `nats` is how surprising the text was,
    None where it was not predicted.
    """

    text: str
    kind: str = ""
    labels: tuple[str, str] | None = None
    nats: float | None = None


class Row(NamedTuple):
    """One example. `score` is its number of mistakes, the probability of the wrong answer, or nats a character.

    `line` is where it stands in its file, 0 where that says nothing.
    `lines` has one line, or two for words: as they are in the data, and as the network divides them.
    """

    line: int
    score: float
    lines: list[list[Piece]]
    gold: str = ""
    predicted: str = ""


def worst_tagged(split: Split, predicted: Sequence[NDArray[np.int64]], vocabulary: Vocabulary) -> list[Row]:
    """The rows with the most wrong labels, most first; long ones are shown around their mistakes."""
    targets = split.rows.targets
    ends = np.cumsum([0, *map(len, predicted)])
    wrong = targets != np.concatenate(predicted)
    mistakes = np.diff(np.concatenate(([0], np.cumsum(wrong)))[ends])
    rows = []
    for k in _highest(mistakes, mistakes > 0):
        inside = slice(ends[k], ends[k + 1])
        gold, found = ([vocabulary.labels[i] for i in ids] for ids in (targets[inside], predicted[k]))
        text, windows = split.examples[k].text, _around(wrong[inside])
        if vocabulary.label_scheme:
            pair = (gold, found), (found, gold)
            lines = [list(_words(text, labels, other, windows)) for labels, other in pair]
        else:
            lines = [list(_labelled(text, gold, found, windows))]
        rows.append(Row(split.examples[k].line, int(mistakes[k]), lines))
    return rows


def worst_classified(
    split: Split, predicted: NDArray[np.int64], sure: NDArray[np.float32], labels: Sequence[str]
) -> list[Row]:
    """The wrong answers, the most confident first."""
    gold = split.rows.targets
    return [
        Row(
            split.examples[k].line,
            float(sure[k]),
            [list(_start(split.examples[k].text))],
            labels[gold[k]],
            labels[predicted[k]],
        )
        for k in _highest(sure, predicted != gold)
    ]


def worst_predicted(split: Split, surprises: Sequence[NDArray[np.float32]], alphabet: Alphabet) -> list[Row]:
    """The passages with the highest nats per character; of a long row, the worst part.

    A passage is shown as the network reads it, its unknown characters as �.
    """
    means = np.array([nats.mean() for nats in surprises])
    rows = []
    for k in _highest(means, np.ones(len(means), dtype=bool)):
        ids, _, targets = split.rows.batch(np.array([k]))
        text = "".join(_character(number, alphabet) for number in [ids[0, 0], *targets[0]])
        nats = [None, *surprises[k].tolist()]
        start = _heaviest(surprises[k]) if len(nats) > LONGEST else 0
        shown = _shaded(text[start : start + LONGEST], nats[start : start + LONGEST])
        rows.append(Row(0, float(means[k]), [list(shown)]))
    return rows


def _character(number: int, alphabet: Alphabet) -> str:
    return alphabet.characters[number - RESERVED] if number >= RESERVED else "�"


def _highest(scores: NDArray[np.generic], which: NDArray[np.bool_]) -> list[int]:
    """The places of the highest of the `scores` that are meant, highest first."""
    places = np.flatnonzero(which)
    order: list[int] = places[np.argsort(-scores[places].astype(float), kind="stable")][:SHOWN].tolist()
    return order


def _around(wrong: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Parts of a row, `(start, end)`, that hold its mistakes with what stands around them."""
    windows: list[tuple[int, int]] = []
    for place in np.flatnonzero(wrong).tolist():
        start, end = max(place - AROUND, 0), min(place + AROUND + 1, len(wrong))
        if windows and start <= windows[-1][1]:
            start = windows.pop()[0]
        windows.append((start, end))
        if sum(end - start for start, end in windows) > LONGEST:
            break
    return windows


def _labelled(
    text: str, gold: Sequence[str], predicted: Sequence[str], windows: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """The text with its wrong characters apart, those with the same mistake together."""

    def mistake(k: int) -> tuple[str, str] | None:
        return (gold[k], predicted[k]) if gold[k] != predicted[k] else None

    for start, end in _with_gaps(windows, len(text)):
        if start < 0:
            yield Piece("…", "gap")
            continue
        for labels, places in groupby(range(start, end), mistake):
            run = list(places)
            yield Piece(text[run[0] : run[-1] + 1], "wrong" if labels else "", labels)


def _words(
    text: str, labels: Sequence[str], other: Sequence[str], windows: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """The text as words; those that the other labels do not have just so are wrong."""
    known = {(*span, other[span[0]] == "S") for span in word_spans(other)}
    spans = word_spans(labels)
    for start, end in _with_gaps(windows, len(text)):
        if start < 0:
            yield Piece("…", "gap")
            continue
        place = start
        for first, last in spans:
            if last <= start or first >= end:
                continue
            if place < first:
                yield Piece(text[place:first])
            begins = labels[first] == "S"
            right = (first, last, begins) in known
            kind = "word" + (" sentence" if begins else "") + ("" if right else " wrong")
            yield Piece(text[max(first, start) : min(last, end)], kind)
            place = min(last, end)
        if place < end:
            yield Piece(text[place:end])


def _with_gaps(windows: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """The windows, and (-1, -1) wherever characters before, between or after them are left out."""
    place = 0
    for start, end in windows:
        if start > place:
            yield -1, -1
        yield start, end
        place = end
    if place < length:
        yield -1, -1


def _start(text: str) -> Iterator[Piece]:
    yield Piece(text[:LONGEST])
    if len(text) > LONGEST:
        yield Piece("…", "gap")


def _heaviest(nats: NDArray[np.float32]) -> int:
    """Where the `LONGEST` characters begin that have the most nats."""
    total = np.concatenate(([0.0], np.cumsum(nats, dtype=float)))
    return int(np.argmax(total[LONGEST:] - total[:-LONGEST])) + 1 if len(nats) > LONGEST else 0


def _shaded(text: str, nats: Iterable[float | None]) -> Iterator[Piece]:
    """Each character with its nats; an accent goes with its letter, and adds its own."""
    last: Piece | None = None
    for character, own in zip(text, nats, strict=True):
        if last is not None and own is not None and unicodedata.category(character)[0] == "M":
            last = Piece(last.text + character, nats=(last.nats or 0.0) + own)
            continue
        if last is not None:
            yield last
        last = Piece(character, nats=own)
    if last is not None:
        yield last

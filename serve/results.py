"""The answers of a model, one type for each task."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.words import Span, sentence_spans, word_spans

AS = ("labels", "words", "sentences")  # what of a tagged text is wanted
DIVIDERS = codepoints("\t\r\n")  # what divides columns and lines of text output
FLAT = str.maketrans("\t\r\n", "   ")


@dataclass(frozen=True)
class Labels:
    """A model's labels in the order of their ids, and how they are written."""

    names: tuple[str, ...]
    scheme: str | None = None

    @cached_property
    def separator(self) -> str:
        """Stands between the labels of a text, where one of the model's is longer than a character."""
        return "" if all(len(name) == 1 for name in self.names) else " "

    @cached_property
    def flat(self) -> tuple[str, ...]:
        """The labels as they stand in a line of text."""
        return tuple(name.translate(FLAT) for name in self.names)

    @cached_property
    def marks(self) -> NDArray[np.str_]:
        """The labels of the scheme `"words"`, which are one character each."""
        return np.array(self.names, dtype="U1")

    @cached_property
    def _points(self) -> NDArray[np.int32]:
        return codepoints("".join(self.names))

    def join(self, ids: NDArray[np.int32]) -> str:
        """The labels of a text in one string."""
        if self.separator:
            return self.separator.join(map(self.names.__getitem__, ids.tolist()))
        return self._points[ids].tobytes().decode("utf-32-le", "surrogatepass")


class Tagged:
    """A label for every character of `text`, which is the text given, normalised.

    `label_ids (T,) int32`; `probabilities (T, C) float32` has the model's labels as columns; `probability (T,)` is
    that of each character's label. `str()` joins the labels. Equal to another with the same text and labels.
    """

    __slots__ = ("_labels", "label_ids", "probabilities", "text")

    def __init__(
        self, text: str, label_ids: NDArray[np.int32], probabilities: NDArray[np.float32], labels: Labels
    ) -> None:
        self.text = text
        self.label_ids = label_ids
        self.probabilities = probabilities
        self._labels = labels

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(self._labels.names.__getitem__, self.label_ids.tolist()))

    def __str__(self) -> str:
        return self._labels.join(self.label_ids)

    def __repr__(self) -> str:
        return f"Tagged(text={self.text!r}, labels={self.labels!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tagged):
            return NotImplemented
        return (self.text, self.labels) == (other.text, other.labels)

    def __hash__(self) -> int:
        return hash((self.text, self.labels))

    @property
    def probability(self) -> NDArray[np.float32]:
        best: NDArray[np.float32] = self.probabilities.max(axis=1, initial=0.0)
        return best

    @property
    def word_spans(self) -> list[Span]:
        """`(start, end)` of each word in `text`. Raises `InputError` where the labels do not mark words."""
        return word_spans(self._marks())

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.word_spans]

    @property
    def sentences(self) -> list[str]:
        return [self.text[start:end] for start, end in sentence_spans(self._marks())]

    def _marks(self) -> NDArray[np.str_]:
        if self._labels.scheme is None:
            raise InputError(
                'this model\'s labels do not mark words; train it with data.label_scheme = "words", or read `labels`'
            )
        return self._labels.marks[self.label_ids]


@dataclass(frozen=True, slots=True)
class Classified:
    """A label for `text`; None, with no probabilities, for an empty one.

    `probabilities` has every label of the model, the most probable first.
    """

    text: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.label or ""


@dataclass(frozen=True, slots=True)
class Scored:
    """How well the model foresaw `text`, and what comes next.

    `nats_per_character` is the mean of −ln p over the characters after the first: None for a text of
    fewer than two. `next` is the most probable next character (None: an unknown one, or the text is
    empty) and `probability` its probability.
    """

    text: str
    next: str | None
    probability: float | None
    nats_per_character: float | None

    @property
    def bits_per_character(self) -> float | None:
        return None if self.nats_per_character is None else self.nats_per_character / float(np.log(2))

    def __str__(self) -> str:
        bits = "" if self.bits_per_character is None else f"{self.bits_per_character:.4f}"
        return f"{bits}\t{'' if self.next is None else json.dumps(self.next, ensure_ascii=False)}"


Result = Tagged | Classified | Scored


def fields(result: Result, *, probabilities: bool = False, as_: str = "labels") -> dict[str, Any]:
    """A result as JSON values, without its text."""
    if isinstance(result, Tagged):
        row: dict[str, Any] = {"labels": list(result.labels)}
        if as_ == "words":
            row = {"words": result.words, "spans": [list(span) for span in result.word_spans]}
        elif as_ == "sentences":
            row = {"sentences": result.sentences}
        return row | ({"probabilities": _rounded(result.probability)} if probabilities else {})
    if isinstance(result, Classified):
        row = {"label": result.label}
        if probabilities:
            row |= {"probability": result.probability, "probabilities": result.probabilities}
        return row
    row = {"bits_per_character": result.bits_per_character, "next": result.next}
    return row | ({"probability": result.probability} if probabilities else {})


def line(result: Result, *, probabilities: bool = False, as_: str = "labels") -> str:
    """A result as one line of text; columns are divided by tabs."""
    if isinstance(result, Tagged):
        text = _flat(str(result))
        if as_ != "labels":
            parts = result.words if as_ == "words" else result.sentences
            text = "\t".join(map(_flat, parts))
        return text + ("\t" + " ".join(f"{p:.4f}" for p in result.probability) if probabilities else "")
    if isinstance(result, Classified) and probabilities:
        by_label = (f"{_flat(name)}={p:.4f}" for name, p in result.probabilities.items())
        return "\t".join([_flat(str(result)), *by_label])
    if isinstance(result, Scored) and probabilities:
        return f"{result}\t{'' if result.probability is None else f'{result.probability:.4f}'}"
    return str(result) if isinstance(result, Scored) else _flat(str(result))


def _flat(text: str) -> str:
    """Without what would divide a line or a column of the output."""
    return text.translate(FLAT)


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [round(value, 6) for value in values.tolist()]

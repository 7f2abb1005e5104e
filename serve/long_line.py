"""A line of text of any length, answered in parts at flat memory.

Where the network reads one way its state is carried from part to part, so that the answers are those of the whole
line. Else the parts overlap, with the context that the runner gives to any long text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import Alphabet, codepoints
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.words import sentence_spans
from ohlol.serve import runner
from ohlol.serve.answers import ANSWERS, Answers, ScoreAnswers, TagAnswers
from ohlol.serve.blocks import Place, not_utf8
from ohlol.serve.cut import ready
from ohlol.serve.model import Model
from ohlol.serve.results import FLAT, Labels, line
from ohlol.serve.rows import NEWLINE, Pieces, Rows

PART = 1 << 20  # characters, a multiple of a stretch


@dataclass(frozen=True)
class LongLine:
    """A line in normalised parts, without its end; `end`, once they are all read, is where reading goes on."""

    where: str
    parts: Iterator[str]
    end: Callable[[], Place]


def parts_of(pieces: Iterator[bytes], alphabet: Alphabet, where: str) -> Iterator[str]:
    """The normalised text of a line that comes in pieces, in parts that together are the whole, normalised.

    Raises `InputError` where it is not UTF-8, and where it has so many combining characters in a row that it cannot be
    normalised in parts (serve/cut.py).
    """
    held = ""
    rest = b""
    offset = 0
    for piece in pieces:
        data = rest + piece
        try:
            text, read = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            raise not_utf8(where, data[error.start], offset + error.start + 1) from None
        rest, offset = data[read:], offset + read
        line = (held + text).removesuffix("\n")
        ended_by = "\r" if line.endswith("\r") else ""  # what may be half of the line's end waits
        try:
            part, held = ready(line.removesuffix("\r"), alphabet.normalisation)
        except InputError as error:
            raise InputError(f"{where}: {error}; --on-error skip leaves the line out") from None
        held += ended_by
        if part:
            yield part
    if rest:
        raise not_utf8(where, rest[0], offset + 1)
    yield alphabet.normalise(held.removesuffix("\r"))


class Answering:
    """Answers one line, part by part."""

    def __init__(self, model: Model[Any], *, probabilities: bool = False, as_: str = "labels") -> None:
        self._model = model
        self._runner = model.runner
        self._probabilities = probabilities
        self._joined = Joined(model.labels, as_)
        self._state: NDArray[np.float32] | None = None
        self._before = np.zeros(0, dtype=np.int32)  # characters that were answered, for context
        self._length = 0
        self._nats = 0.0

    def lines(self, parts: Iterable[str]) -> Iterator[str]:
        """The line that answers a text, which is not empty, in pieces; the last one ends it."""
        held = np.zeros(0, dtype=np.int32)
        for part in parts:
            held = np.concatenate((held, codepoints(part)))
            while (
                len(held) > PART + self._runner.stretch
            ):  # so that what is left is never a scrap without its context
                yield self._part(self._answered(held[:PART], held[PART:]))
                held = held[PART:]
        last = self._answered(held, held[:0])
        yield self._part(last)
        yield self._end(last) + "\n"

    def _answered(self, points: NDArray[np.int32], following: NDArray[np.int32]) -> Answers[Any]:
        """The answers to `points`, between what is before and what is `following`."""
        carried = self._runner.carries_state
        # Of a language model's text, one character more says how well it was foreseen.
        following = following[: 1 if carried else runner.CONTEXT + 1]
        before = self._before[: 0 if carried else None]
        whole = np.concatenate((before, points, following, [NEWLINE])).astype(np.int32)
        rows = Rows(whole, np.zeros(1, dtype=np.int64), np.array([len(whole) - 1]))
        manifest = self._model.manifest
        answers = ANSWERS[manifest.task](rows, self._model.labels, manifest, self._probabilities)
        mine = Rows(whole, np.array([len(before)]), np.array([len(points)]))
        if carried:
            piece = Pieces.whole(mine, np.zeros(1, dtype=np.int64))
            self._state = self._runner.in_chunks(piece, answers, self._state)
        else:
            for work in self._runner.begin(rows, answers):
                work.result()
            self._before = points[-self._runner.stretch :]
        answers.rows = mine
        return answers

    def _part(self, answers: Answers[Any]) -> str:
        self._length += int(answers.rows.lengths[0])
        if isinstance(answers, ScoreAnswers):
            self._nats += float(answers.nats[0])
        return self._joined.part(answers) if isinstance(answers, TagAnswers) else ""

    def _end(self, last: Answers[Any]) -> str:
        if isinstance(last, TagAnswers):
            return ""
        result = last.result(0, last.rows.text(0))
        if isinstance(last, ScoreAnswers):
            mean = self._nats / (self._length - 1) if self._length > 1 else None
            result = replace(result, nats_per_character=mean)
        return line(result, probabilities=self._probabilities)


class Joined:
    """The labels, words or sentences of a text whose parts come one after another, as one line."""

    def __init__(self, labels: Labels, as_: str) -> None:
        self._labels = labels
        self._as = as_
        self._any = False  # something stands in the line
        self._in_word = False  # the last character was in a word
        self._between = ""  # what came after the last sentence: the next word may belong to it

    def part(self, answers: TagAnswers) -> str:
        if self._as == "sentences":
            return self._sentences(answers)
        text = answers.lines(as_=self._as).removesuffix("\n")
        divider = self._labels.separator
        if self._as == "words":
            marks = self._marks(answers)
            divider = "" if self._in_word and marks[0] == "I" else "\t"
            self._in_word = marks[-1] != "O"
        divider = divider if self._any and text else ""
        self._any |= bool(text)
        return divider + text

    def _sentences(self, answers: TagAnswers) -> str:
        marks = self._marks(answers)
        text = answers.rows.text(0)
        spans = sentence_spans(marks)
        if not spans:
            self._between += text if self._any else ""
            return ""
        parts = [text[start:end] for start, end in spans]
        lead = "\t" if self._any else ""
        if self._any and marks[spans[0][0]] != "S":  # it goes on with the sentence before
            lead, parts[0] = "", self._between + text[: spans[0][1]]
        self._any, self._between = True, text[spans[-1][1] :]
        return lead + "\t".join(part.translate(FLAT) for part in parts)

    def _marks(self, answers: TagAnswers) -> NDArray[np.str_]:
        start = int(answers.rows.starts[0])
        return self._labels.marks[answers.label_ids[start : start + int(answers.rows.lengths[0])]]

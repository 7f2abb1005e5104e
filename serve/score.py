"""How odd each line of a text is to a language model, on stream.onnx, which is run in parts: the state is carried."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.errors import InputError
from ohlol.serve.piecewise import nats
from ohlol.serve.rows import Pieces, Rows
from ohlol.serve.stream import StreamFile
from ohlol.serve.windows import Row, Window


class Scorer:
    """Bits per character of lines: of their characters after the first, each given those before it in the line.

    With `carry` the lines are one running text, and each ends with a line break that counts as its last
    character: its characters, the first too, are given all the lines before it.
    """

    def __init__(self, file: StreamFile[Any], *, carry: bool = False) -> None:
        """Raises `InputError` where the model is not for `lm`."""
        if file.manifest.task != "lm":
            raise InputError(
                f"scoring needs a language model (task lm), this one is for {file.manifest.task}"
            )
        self._file = file
        self._carry = carry
        self._hidden = file.beginning().hidden[:, None]  # after the lines so far, with their last logits
        self._last = np.zeros((1, 0, file.manifest.classes), dtype=np.float32)

    def __call__(self, texts: Sequence[str] | Rows) -> list[float | None]:
        """Of each, in order; None where there is no character to score."""
        rows = texts if isinstance(texts, Rows) else Rows.of(texts, self._file.manifest.alphabet)
        return self._running(rows) if self._carry else self._each(rows)

    def _each(self, rows: Rows) -> list[float | None]:
        bits: list[float | None] = [None] * len(rows)
        for batch in Pieces.whole(rows, np.flatnonzero(rows.lengths)).batches(self._file.most):
            # After a row stands what does not belong to it: what the network makes of that nobody asks for.
            points = batch.of(rows)
            hidden = np.repeat(self._hidden, len(batch), axis=1)
            last = np.repeat(self._last, len(batch), axis=0)
            scores, _, _ = self._read(points, hidden, last)  # (B, T - 1)
            for k, length, score in zip(batch.row.tolist(), batch.length.tolist(), scores, strict=True):
                bits[k] = _bits(score[: length - 1])
        return bits

    def _running(self, rows: Rows) -> list[float | None]:
        if not len(rows):
            return []
        scores, self._hidden, self._last = self._read(rows.ended()[None], self._hidden, self._last)
        stops = np.cumsum(rows.lengths + 1)  # each with the line's end after it
        missing = (
            int(stops[-1]) - scores.shape[1]
        )  # 1 at the very first character, which nothing stands before
        parts = np.split(scores[0], stops[:-1] - missing)
        return [_bits(part) for part in parts]

    def _read(
        self, points: NDArray[np.int32], hidden: NDArray[np.float32], last: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """−ln p of the characters of `points (B, T)`, T of them, or T − 1 where `last (B, 0 or 1, V)`, the logits after
        the characters before, is empty; and the state and the logits after them. In parts of so many characters that
        memory stays flat."""
        B, T = points.shape
        alphabet = self._file.manifest.alphabet
        size = max(1, self._file.most // B)
        scores = []
        for start in range(0, T, size):
            (logits,), hidden = self._file.run(("logits",), points[:, start : start + size], hidden)
            before = np.concatenate([last, logits[:, :-1]], axis=1)
            stop = start + logits.shape[1]
            scores.append(nats(before, alphabet.ids(points[:, stop - before.shape[1] : stop])))
            last = logits[:, -1:]
        return np.concatenate(scores, axis=1), hidden, last


class Line(NamedTuple):
    """A line, its number from 1, and its bits per character."""

    number: int
    text: str
    row: Row
    bits: float | None


def score(scorer: Scorer, windows: Iterable[Window]) -> Iterator[Line]:
    """Every line, in order."""
    for window in windows:
        bits = scorer(window.rows)
        for k, (row, of_line) in enumerate(zip(window.records, bits, strict=True)):
            yield Line(_number(window.wheres(k)), row[window.field], row, of_line)


def oddest(lines: Iterable[Line], count: int) -> list[Line]:
    """The `count` lines of the most bits per character, the oddest first, of equals the first; only so many are
    kept. Lines without a score are left out."""
    scored = (line for line in lines if line.bits is not None)
    return heapq.nlargest(count, scored, key=lambda line: (line.bits, -line.number))


def _number(where: str) -> int:
    """Of `name:3`, `name:3 to 5`, `name: row 1,234` and `argument 3`."""
    found = re.search(r"\d[\d,]*", where.rpartition(":")[2])
    return int(found[0].replace(",", "")) if found else 0


def _bits(score: NDArray[np.float64]) -> float | None:
    return float(score.mean() / np.log(2)) if len(score) else None

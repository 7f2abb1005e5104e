"""A model's answers to many rows, as arrays; one type for each task, which are filled batch by batch.

`put` takes the outputs of a batch, from any thread: no two batches write to the same place. What a batch's outputs are
called is in `ASKS`; those that are not wanted are not asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.results import Classified, Labels, Scored, Tagged, line
from ohlol.serve.rows import Pieces, Rows
from ohlol.serve.spelling import joined, joined_labels, words

R = TypeVar("R", Tagged, Classified, Scored)
Outputs = list[NDArray[Any]]


class Answers(ABC, Generic[R]):
    """The answers to `rows`."""

    ASKS: ClassVar[tuple[str, ...]]  # outputs, in order; the second only if probabilities are wanted

    def __init__(self, rows: Rows, labels: Labels, manifest: Manifest, probabilities: bool) -> None:
        self.rows = rows
        self.labels = labels
        self.manifest = manifest
        self.asks = self.ASKS if probabilities else self.ASKS[:1]

    @abstractmethod
    def put(self, pieces: Pieces, outputs: Outputs) -> None:
        """Keep what `asks` names of a batch, one row for each of `pieces`."""

    @abstractmethod
    def result(self, row: int, text: str) -> R: ...

    def results(self) -> Iterator[R]:
        return map(self.result, range(len(self.rows)), self.rows.texts())

    def lines(self, *, probabilities: bool = False, as_: str = "labels") -> str:
        """Each result as a line of text, with its end."""
        made = [line(result, probabilities=probabilities, as_=as_) + "\n" for result in self.results()]
        return "".join(made)


class TagAnswers(Answers[Tagged]):
    """`label_ids (N,) int32`, −1 between texts, and `probabilities (N, C) float32`, for the places of `rows.points`."""

    ASKS = ("label_ids", "probabilities")

    def __init__(self, rows: Rows, labels: Labels, manifest: Manifest, probabilities: bool) -> None:
        super().__init__(rows, labels, manifest, probabilities)
        N, C = len(rows.points), manifest.classes
        self.label_ids = np.full(N, -1, dtype=np.int32)
        self.probabilities = np.zeros((N, C) if probabilities else (0, C), dtype=np.float32)

    def put(self, pieces: Pieces, outputs: Outputs) -> None:
        time = np.arange(outputs[0].shape[1])
        answered = (time >= pieces.skip[:, None]) & (time < (pieces.skip + pieces.keep)[:, None])
        places = (pieces.start[:, None] + time)[answered]
        self.label_ids[places] = outputs[0][answered]
        if len(outputs) > 1:
            self.probabilities[places] = outputs[1][answered]

    def result(self, row: int, text: str) -> Tagged:
        start = int(self.rows.starts[row])
        end = start + int(self.rows.lengths[row])
        return Tagged(text, self.label_ids[start:end], self.probabilities[start:end], self.labels)

    def spelled(self, names: Sequence[str], divider: str) -> list[str]:
        """Each row's labels under these names, none of which has a newline, with `divider` between them."""
        return joined(self.rows, self.label_ids, names, divider).split("\n")[:-1]

    def lines(self, *, probabilities: bool = False, as_: str = "labels") -> str:
        if probabilities or as_ == "sentences":
            return super().lines(probabilities=probabilities, as_=as_)
        make = words if as_ == "words" else joined_labels
        return make(self.rows, self.label_ids, self.labels)


class ClassifyAnswers(Answers[Classified]):
    """`label_ids (R,) int32`, −1 for an empty text, and `probabilities (R, C) float32`."""

    ASKS = ("label_ids", "probabilities")

    def __init__(self, rows: Rows, labels: Labels, manifest: Manifest, probabilities: bool) -> None:
        super().__init__(rows, labels, manifest, probabilities)
        R, C = len(rows), manifest.classes
        self.label_ids = np.full(R, -1, dtype=np.int32)
        self.probabilities = np.zeros((R, C if probabilities else 0), dtype=np.float32)

    def put(self, pieces: Pieces, outputs: Outputs) -> None:
        self.label_ids[pieces.row] = outputs[0]
        if len(outputs) > 1:
            self.probabilities[pieces.row] = outputs[1]

    def result(self, row: int, text: str) -> Classified:
        if not self.rows.lengths[row]:
            return Classified("", None, None, {})
        return classified(text, int(self.label_ids[row]), self.probabilities[row], self.labels)

    def lines(self, *, probabilities: bool = False, as_: str = "labels") -> str:
        if probabilities:
            return super().lines(probabilities=True)
        flat = [*self.labels.flat, ""]  # the last one is that of an empty text
        return "".join([flat[k] + "\n" for k in self.label_ids.tolist()])


class ScoreAnswers(Answers[Scored]):
    """`nats (R,) float64`, summed over the characters after the first, and the likeliest next character's id,
    `next (R,)`, with its probability."""

    ASKS = ("logits",)

    def __init__(self, rows: Rows, labels: Labels, manifest: Manifest, probabilities: bool) -> None:
        super().__init__(rows, labels, manifest, probabilities)
        self._ids = manifest.alphabet.ids(rows.points)
        self._nats = np.zeros(len(rows.points), dtype=np.float32)  # of the character after each place
        self.next = np.zeros(len(rows), dtype=np.int64)
        self.probability = np.zeros(len(rows), dtype=np.float64)

    def put(self, pieces: Pieces, outputs: Outputs) -> None:
        logits = outputs[0]  # (B, T, V)
        B, T, _ = logits.shape
        time = np.arange(T)
        row_ends = self.rows.starts[pieces.row] + self.rows.lengths[pieces.row]
        places = pieces.start[:, None] + time
        answered = (time >= pieces.skip[:, None]) & (time < (pieces.skip + pieces.keep)[:, None])
        answered &= places + 1 < row_ends[:, None]
        highest = logits.max(axis=-1)
        total = np.log(np.exp(logits - highest[..., None]).sum(axis=-1)) + highest
        following = self._ids[np.minimum(places + 1, len(self._ids) - 1)]
        nats = total - np.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
        self._nats[places[answered]] = nats[answered]
        last = pieces.skip + pieces.keep - 1
        at_end = pieces.start + last + 1 == row_ends
        which = np.arange(B)[at_end]
        ends = last[at_end]
        best = logits[which, ends].argmax(axis=-1)
        rows = pieces.row[at_end]
        self.next[rows] = best
        self.probability[rows] = np.exp(logits[which, ends, best] - total[which, ends])

    @property
    def nats(self) -> NDArray[np.float64]:
        total = np.concatenate(([0.0], np.cumsum(self._nats, dtype=np.float64)))
        difference: NDArray[np.float64] = (
            total[self.rows.starts + self.rows.lengths] - total[self.rows.starts]
        )
        return difference

    def results(self) -> Iterator[Scored]:
        nats = self.nats.tolist()
        for row, text in enumerate(self.rows.texts()):
            yield self._scored(row, text, nats[row])

    def result(self, row: int, text: str) -> Scored:
        start = int(self.rows.starts[row])
        return self._scored(row, text, float(self._nats[start : start + len(text)].sum(dtype=np.float64)))

    def _scored(self, row: int, text: str, nats: float) -> Scored:
        if not text:
            return Scored("", None, None, None)
        following = self.manifest.alphabet.character(int(self.next[row]))
        mean = nats / (len(text) - 1) if len(text) > 1 else None
        return Scored(text, following, float(self.probability[row]), mean)


def classified(text: str, label_id: int, probabilities: NDArray[np.float32], labels: Labels) -> Classified:
    """The result for a text that is not empty."""
    values = probabilities.tolist()
    order = np.argsort(-probabilities, kind="stable").tolist()
    by_label = {labels.names[k]: values[k] for k in order}
    return Classified(text, labels.names[label_id], values[label_id] if values else None, by_label)


ANSWERS: dict[Task, type[Answers[Any]]] = {"tag": TagAnswers, "classify": ClassifyAnswers, "lm": ScoreAnswers}

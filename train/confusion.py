"""Which labels are taken for which: figures of each label, the matrix, the most frequent confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COUNTED = 1000  # labels whose pairs are counted in a table of them all


@dataclass(frozen=True)
class Score:
    """Of one label. What there is nothing to divide by for is None."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Confusion:
    """`gold` and `predicted` hold label ids, `count` how often that pair occurs; pairs that do not are left out.

    So it is small for any number of labels.
    """

    labels: Sequence[str]
    gold: NDArray[np.int64]
    predicted: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, gold: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Confusion:
        """From the label ids of every answer, `(N,)` each."""
        pairs = gold * len(labels) + predicted
        if len(labels) <= COUNTED:  # ten times as fast as sorting
            counts = np.bincount(pairs)
            pairs = np.flatnonzero(counts)
            count = counts[pairs]
        else:
            pairs, count = np.unique(pairs, return_counts=True)
        return cls(labels, pairs // len(labels), pairs % len(labels), count)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return np.not_equal(self.gold, self.predicted)

    def scores(self) -> list[Score]:
        """Of every label, the lowest F1 first, those that do not occur last."""
        right = self._by(self.gold, ~self.wrong)
        support, found = self._by(self.gold), self._by(self.predicted)
        scores = [
            Score(label, _share(r, f), _share(r, s), _share(2 * r, f + s), s)
            for label, r, s, f in zip(
                self.labels, right.tolist(), support.tolist(), found.tolist(), strict=True
            )
        ]
        return sorted(scores, key=lambda score: (score.f1 is None, score.f1 or 0.0, -score.support))

    def most_confused(self, most: int) -> list[int]:
        """The ids of the labels with the most mistakes, given or taken, in the order of the labels."""
        mistakes = self._by(self.gold, self.wrong) + self._by(self.predicted, self.wrong)
        return sorted(np.argsort(-mistakes, kind="stable")[:most].tolist())

    def matrix(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """`(n, n)`: how often each label of `ids`, a row, was answered by each, a column."""
        place = np.full(len(self.labels), -1)
        place[list(ids)] = np.arange(len(ids))
        rows, columns = place[self.gold], place[self.predicted]
        shown = (rows >= 0) & (columns >= 0)
        cells = np.zeros((len(ids), len(ids)), dtype=np.int64)
        cells[rows[shown], columns[shown]] = self.count[shown]
        return cells

    def support(self) -> NDArray[np.int64]:
        return self._by(self.gold)

    def most_frequent(self, most: int) -> list[tuple[str, str, int]]:
        """The mistakes that are made most often: gold, predicted, how often."""
        mistakes = np.flatnonzero(self.wrong)
        order = mistakes[np.argsort(-self.count[mistakes], kind="stable")][:most]
        return [
            (self.labels[self.gold[k]], self.labels[self.predicted[k]], int(self.count[k])) for k in order
        ]

    def _by(self, ids: NDArray[np.int64], which: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """How many answers there are by label, of all pairs or of `which`."""
        count = self.count if which is None else self.count * which
        return np.bincount(ids, count, len(self.labels)).astype(np.int64)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

"""Rows of ids, cut from packed examples, and the order in which an epoch reads them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ohlol.train.packed import FEW, Packed

IGNORE = -100  # the target of padding; torch's cross entropy leaves it out
BUCKET = 50  # batches in one window of rows that are sorted by length
SHUFFLED_SINGLY = 1 << 20  # rows; of more, neighbours are shuffled together, so that memory stays flat
TOGETHER = 1 << 12  # rows of data in memory that are handled at once
AHEAD = 4  # batches read before they are asked for

Index = NDArray[np.int64]


class Batch(NamedTuple):
    """`ids (B, T) int64`, `lengths (B,) int64`, `targets (B, T) int64` or, for `classify`, `(B,)`."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]

    def part(self, ours: slice) -> Batch:
        """Some of the rows, as wide as all of them."""
        return Batch(self.ids[ours], self.lengths[ours], self.targets[ours])


@dataclass(frozen=True)
class Whole:
    """Each example is a row, `shorter` by so many characters at its end; those of `part`, or all."""

    offsets: Index
    part: Index | None = None
    shorter: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.part is None else len(self.part)

    def __getitem__(self, index: Index) -> tuple[Index, Index]:
        """Row numbers to starts and lengths, all of `(B,) int64`."""
        number = self.examples(index)
        starts = self.offsets[number]
        return starts, self.offsets[number + 1] - starts - self.shorter

    def examples(self, index: Index) -> Index:
        return index if self.part is None else self.part[index]


@dataclass(frozen=True)
class Windows:
    """Rows of `size` characters, one after the other, over `total` of them."""

    total: int
    size: int

    def __len__(self) -> int:
        return -(-self.total // self.size)

    def __getitem__(self, index: Index) -> tuple[Index, Index]:
        starts = index * self.size
        return starts, np.minimum(self.total - starts, self.size)


@dataclass(frozen=True)
class Rows:
    """Rows of packed code points, as ids and targets.

    `ids` holds the id of every code point up to the highest, `classes` that of every number of a label; None
    for `lm`, where a character's target is the next one.
    """

    packed: Packed
    spans: Whole | Windows
    ids: NDArray[np.int64]
    classes: NDArray[np.int64] | None
    per_row: bool = False  # `classify`: one target for a row

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def lengths(self) -> Index:
        """Of every row, `(R,) int64`."""
        return self.spans[np.arange(len(self))][1]

    @property
    def characters(self) -> int:
        """In all rows together."""
        return sum(int(self.spans[index][1].sum()) for index in self._blocks(TOGETHER))

    @property
    def targets(self) -> NDArray[np.int64]:
        """Of every row, end to end: `(N,) int64`; for `classify` `(R,)`."""
        found = [self._targets(index) for index in self._blocks(self._few)]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def batch(self, index: Index) -> Batch:
        """The rows of `index (B,)`, padded to the longest of them."""
        batch = self.cut(*self.spans[index])
        return batch if not self.per_row else batch._replace(targets=self._targets(index))

    def cut(self, starts: Index, lengths: Index) -> Batch:
        """Rows that begin at `starts (B,)` and have `lengths (B,)`; their targets are those of characters."""
        inside = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        ids = np.zeros(inside.shape, dtype=np.int64)
        targets = np.full(inside.shape, IGNORE, dtype=np.int64)
        for start in range(0, len(starts), self._few):
            few = slice(start, start + self._few)
            own = inside[few]
            where = (starts[few, None] + np.arange(lengths.max()))[own]
            ids[few][own] = self.ids[self.packed.codes[where]]
            if not self.per_row:
                targets[few][own] = self._answers(where)
            self.packed.forget()
        return Batch(ids, lengths, targets)

    def batches_in(self, batch_size: int) -> int:
        """Batches of an epoch in which rows are shuffled."""
        return -(-len(self) // batch_size)

    def shuffled(self, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `skip` on: random, rows of like length together.

        The same `seed` and `epoch` give the same batches.
        """
        return map(self.batch, self.order(batch_size, seed, epoch, skip))

    def order(self, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Index]:
        """The numbers of the rows in each of those batches."""
        random = np.random.default_rng([seed, epoch])
        together = max(1, len(self) // SHUFFLED_SINGLY)  # neighbours; those that are left over come last
        order = random.permutation(len(self) // together)
        size = batch_size * BUCKET
        for window in range(0, len(self), size):
            own = np.random.default_rng([seed, epoch, window])
            place = np.arange(window, min(window + size, len(self)))
            rows = place.copy()
            moved = place < len(order) * together
            rows[moved] = order[place[moved] // together] * together + place[moved] % together
            rows = rows[own.permutation(len(rows))] if together > 1 else rows
            batches = _cut(rows[np.argsort(self.spans[rows][1], kind="stable")], batch_size)
            for number in own.permutation(len(batches)):
                if skip > 0:
                    skip -= 1
                    continue
                yield batches[number]

    def streams_in(self, batch_size: int, length: int) -> int:
        """Batches of an epoch in which `batch_size` streams are read side by side."""
        assert isinstance(self.spans, Windows)
        own = self.spans.total // batch_size
        return max((own - 1) // length, min(own // length, 1))

    def streams(self, batch_size: int, length: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One running text as `batch_size` streams, `length` characters at a time, each from where it ended.

        Every epoch begins at another character, so that rows are not always cut at the same places.
        """
        assert isinstance(self.spans, Windows)
        own = self.spans.total // batch_size
        count = self.streams_in(batch_size, length)
        first = np.random.default_rng([seed, epoch]).integers(own - count * length + 1)
        starts = np.arange(batch_size) * own + first
        for number in range(skip, count):
            yield self.cut(starts + number * length, np.full(batch_size, length))

    def _targets(self, index: Index) -> NDArray[np.int64]:
        if self.per_row:
            assert isinstance(self.spans, Whole)
            assert self.classes is not None
            return self.classes[self.packed.labels[self.spans.examples(index)]]
        starts, lengths = self.spans[index]
        ends = np.cumsum(lengths)
        return self._answers(np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths))

    def _answers(self, where: Index) -> NDArray[np.int64]:
        """The targets of the characters that stand at `where`."""
        if self.classes is None:
            return self.ids[self.packed.codes[where + 1]]
        return self.classes[self.packed.labels[where]]

    @property
    def _few(self) -> int:
        """Rows that are read at once, from anywhere in the file."""
        return FEW if self.packed.maps else TOGETHER

    def _blocks(self, size: int) -> Iterator[Index]:
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))
            self.packed.forget()


def _cut(order: Index, size: int) -> list[Index]:
    return [order[start : start + size] for start in range(0, len(order), size)]


T = TypeVar("T")


def ahead(batches: Iterable[T], depth: int = AHEAD) -> Iterator[T]:
    """The same, read by a thread of its own, `depth` at most in advance."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    wanted = True

    def read() -> None:
        try:
            for batch in batches:
                ready.put((batch, None))
                if not wanted:
                    return
            ready.put((None, None))
        except BaseException as error:
            ready.put((None, error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        wanted = False
        while thread.is_alive():  # it may wait for room
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                thread.join(0.01)

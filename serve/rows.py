"""Many texts as one array of code points, and the pieces of it that are answered together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import Alphabet, codepoints, is_normal
from ohlol.artifacts.errors import InputError

Numbers = NDArray[np.int64]

NEWLINE, RETURN = 10, 13


@dataclass(frozen=True)
class Rows:
    """R normalised texts, one after another in `points (N,) int32`; `starts (R,)`, `lengths (R,)` say where.

    Between two texts, and after the last, stands what belongs to none: a line's end at least.
    """

    points: NDArray[np.int32]
    starts: Numbers
    lengths: Numbers

    @classmethod
    def of(cls, texts: Sequence[str], alphabet: Alphabet) -> Rows:
        """Raises `InputError` where a text is not a `str`."""
        try:
            joined = "\n".join(texts)
        except TypeError:
            odd = next(text for text in texts if not isinstance(text, str))
            raise InputError(f"expected a str, found {type(odd).__name__}: {odd!r:.60}") from None
        # A newline joins with nothing, so the whole is normal just where every text is.
        if not is_normal(joined, alphabet.normalisation):
            texts = [alphabet.normalise(text) for text in texts]
            joined = "\n".join(texts)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        starts = np.cumsum(lengths + 1) - lengths - 1
        return cls(codepoints(joined + "\n"), starts, lengths)

    @classmethod
    def of_lines(cls, block: str, alphabet: Alphabet) -> Rows:
        """The lines of `block`, which end at `\\n` or `\\r\\n`; the last one may lack its end."""
        if block and not block.endswith("\n"):
            block += "\n"
        points = codepoints(alphabet.normalise(block))
        ends = np.flatnonzero(points == NEWLINE)
        starts = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1] + 1))[: len(ends)]
        lengths = ends - starts
        after = lengths > 0
        after[after] = points[ends[after] - 1] == RETURN
        return cls(points, starts, lengths - after)

    def __len__(self) -> int:
        return len(self.starts)

    def text(self, row: int) -> str:
        start = self.starts[row]
        return spell(self.points[start : start + self.lengths[row]])

    def texts(self) -> list[str]:
        whole = spell(self.points)
        ends = (self.starts + self.lengths).tolist()
        return [whole[start:end] for start, end in zip(self.starts.tolist(), ends, strict=True)]

    def ended(self) -> NDArray[np.int32]:
        """The texts as one running text, a newline after each."""
        points, keep = self.points.copy(), self.inside.copy()
        ends = self.starts + self.lengths
        points[ends], keep[ends] = NEWLINE, True
        return points[keep]

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """`(N,)`: whether a place belongs to a text."""
        change = np.zeros(len(self.points) + 1, dtype=np.int8)
        change[self.starts] += 1
        change[self.starts + self.lengths] -= 1  # an empty text begins where it ends
        return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def spell(points: NDArray[np.int32]) -> str:
    """The string of code points; the inverse of `codepoints`."""
    return points.tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class Pieces:
    """P stretches of rows that a model answers, each array `(P,)`.

    Of the `length` characters from `start`, the first `skip` are only read for context, and `keep` after them
    are answered; what is left is context again. A row that is not long is one piece, whole.
    """

    row: Numbers
    start: Numbers
    length: Numbers
    skip: Numbers
    keep: Numbers

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: Numbers) -> Pieces:
        return Pieces(*(getattr(self, name)[which] for name in ("row", "start", "length", "skip", "keep")))

    @classmethod
    def whole(cls, rows: Rows, which: Numbers) -> Pieces:
        """Each row of `which` as one piece."""
        lengths = rows.lengths[which]
        return cls(which, rows.starts[which], lengths, np.zeros_like(which), lengths)

    def of(self, rows: Rows) -> NDArray[np.int32]:
        """Their code points `(P, T)`, T that of the longest; behind a shorter one stands whatever follows it."""
        places = self.start[:, None] + np.arange(int(self.length.max()))
        found: NDArray[np.int32] = rows.points.take(places, mode="clip")
        return found

    def windows(self, size: int, before: int, after: int) -> Pieces:
        """These pieces, which are whole rows, each cut in stretches of `size` with context around them."""
        counts = -(-self.length // size)
        which = np.repeat(np.arange(len(self)), counts)
        first = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        offset = first * size
        keep = np.minimum(size, self.length[which] - offset)
        skip = np.minimum(before, offset)
        rest = np.minimum(after, self.length[which] - offset - keep)
        return Pieces(self.row[which], self.start[which] + offset - skip, skip + keep + rest, skip, keep)

    def batches(self, characters: int) -> Iterator[Pieces]:
        """Those of like length together, at most `characters` with padding (or one piece); the longest first."""
        order = np.argsort(self.length, kind="stable")
        lengths, end = self.length[order], len(order)
        while end:
            # Of the pieces before `end`, the longest decides the width of the batch.
            begin = max(0, min(end - 1, end - characters // max(1, int(lengths[end - 1]))))
            yield self[order[begin:end]]
            end = begin


def join(parts: Sequence[Pieces]) -> Pieces:
    return Pieces(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))

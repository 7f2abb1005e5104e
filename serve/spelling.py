"""Label ids of many rows as text: one line a row, without a loop over characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.words import boundaries
from ohlol.serve.results import DIVIDERS, Labels
from ohlol.serve.rows import NEWLINE, Rows, spell

SPACE, TAB = 32, 9


def joined_labels(rows: Rows, label_ids: NDArray[np.int32], labels: Labels) -> str:
    """The labels of each row, divided as `str` of a result divides them."""
    return joined(rows, label_ids, labels.flat, labels.separator)


def joined(rows: Rows, label_ids: NDArray[np.int32], names: Sequence[str], divider: str) -> str:
    """The names of each row's labels, none of which has a newline, with `divider` between them."""
    lengths = np.fromiter(map(len, names), dtype=np.int64)
    separator = len(divider)
    begins = np.cumsum(lengths + separator) - lengths - separator
    table = codepoints("".join(name + divider for name in names) or "\0")
    keep = rows.inside.copy()
    ends = rows.starts + rows.lengths
    keep[ends] = True  # the place after a row becomes its line's end
    ids = label_ids[keep]
    at_end = np.zeros(len(rows.points), dtype=bool)
    at_end[ends] = True
    at_end = at_end[keep]
    if not separator:
        out = table[ids]  # −1 at an end: any label, and not for long
        out[at_end] = NEWLINE
        return spell(out)
    # Each place is copied from the table, with a separator after it but for a row's last.
    last = np.append(at_end[1:], False) & ~at_end
    sizes = np.where(at_end, 1, lengths[ids] + separator - separator * last)
    which = np.repeat(np.arange(len(ids)), sizes)
    within = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out = table[np.minimum(begins[ids][which] + within, len(table) - 1)]
    out[at_end[which]] = NEWLINE
    return spell(out)


def words(rows: Rows, label_ids: NDArray[np.int32], labels: Labels) -> str:
    """The words of each row, divided by tabs; what is outside of words is left out."""
    within = rows.inside
    outside_label = labels.names.index("O")
    marks = np.where(within, label_ids, outside_label)  # the end of a row ends a word too
    inside, begins = boundaries(labels.marks[marks])
    points = rows.points.copy()
    points[np.isin(points, DIVIDERS) & inside] = SPACE
    first = np.zeros(len(points), dtype=bool)  # of a row: no tab before it
    starts = np.flatnonzero(begins)
    if len(starts):
        row = np.searchsorted(rows.starts, starts, side="right")
        first[starts[np.append(True, row[1:] != row[:-1])]] = True
    ends = rows.starts + rows.lengths
    keep = inside.copy()
    keep[ends] = True
    points[ends] = NEWLINE
    sizes = np.where(begins & ~first, 2, keep.astype(np.int64))
    out = np.repeat(points, sizes)
    out[np.cumsum(sizes)[begins & ~first] - 2] = TAB
    return spell(out)

"""From packed examples to batches: every row once, padded so that no loss sees it, in an order that can be repeated."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import PADDING
from ohlol.train import batches as batches_module
from ohlol.train.batches import BUCKET, IGNORE, Batch, Rows, Whole, Windows, ahead
from ohlol.train.packed import Packed


def rows_of(lengths: list[int], per_row: bool = False) -> Rows:
    """Rows whose ids say where they are: 1, 2, 3, … end to end; targets are their negatives."""
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    total, count = int(offsets[-1]), len(lengths) if per_row else int(offsets[-1])
    lines, names = np.ones(len(lengths), dtype=np.int64), tuple(map(str, range(count)))
    packed = Packed(np.arange(1, total + 1), np.arange(count), offsets, lines, names, total)
    return Rows(packed, Whole(offsets), np.arange(total + 1), -np.arange(1, count + 1), per_row)


def rows_in(batches: Iterable[Batch], rows: Rows) -> list[list[int]]:
    """The numbers of the rows in each batch, known by their first ids."""
    return [(np.searchsorted(rows.packed.offsets, batch.ids[:, 0] - 1)).tolist() for batch in batches]


lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@given(lengths_lists, st.integers(1, 7), st.sampled_from([1 << 20, 7, 3]), st.data())
def test_every_row_is_in_one_batch(lengths: list[int], size: int, singly: int, data: st.DataObject) -> None:
    """An epoch sees each row once, in batches of the size asked for, however many rows are shuffled together.

    Begun anywhere, it goes on with the batches that are left.
    """
    rows = rows_of(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "SHUFFLED_SINGLY", singly)
        found = rows_in(rows.shuffled(size, 0, 0), rows)
        skipped = data.draw(st.integers(0, len(found)))
        rest = rows_in(rows.shuffled(size, 0, 0, skipped), rows)
    assert list(range(len(lengths))) == sorted(row for batch in found for row in batch)
    assert size >= max(map(len, found))
    assert rows.batches_in(size) == len(found)
    assert found[skipped:] == rest


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 20), st.integers(0, 5), st.data())
def test_streams_read_on_where_they_were(
    total: int, size: int, length: int, epoch: int, data: st.DataObject
) -> None:
    """Each row of a batch goes on where it ended in the batch before, and no character is in two streams."""
    rows = replace(rows_of([total + 1]), spans=Windows(total, length), classes=None)
    count = rows.streams_in(size, length)
    found = [batch.ids for batch in rows.streams(size, length, 0, epoch)]
    assert count == len(found)
    if not found:
        assert total // size < length
        return
    together = np.concatenate(found, axis=1)  # (B, count * length)
    assert (np.diff(together, axis=1) == 1).all()
    assert together.size == len(np.unique(together))
    assert together.size >= total - 2 * size * length
    skipped = data.draw(st.integers(0, count))
    rest = [batch.ids.tolist() for batch in rows.streams(size, length, 0, epoch, skipped)]
    assert [ids.tolist() for ids in found[skipped:]] == rest


def test_what_is_read_ahead_comes_in_order() -> None:
    """All of it, errors too, and the thread ends with its reader."""

    def failing() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    assert list(ahead(iter(range(100)))) == list(range(100))
    with pytest.raises(OSError, match="gone"):
        list(ahead(failing()))
    before = threading.active_count()
    reader = ahead(iter(range(10**9)))
    assert next(reader) == 0
    reader.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("per_row", [False, True])
@given(lengths=lengths_lists, data=st.data())
def test_a_batch_is_its_rows_padded(per_row: bool, lengths: list[int], data: st.DataObject) -> None:
    """Ids, lengths and targets of each row are those of its place; the rest is padding that no loss sees."""
    rows = rows_of(lengths, per_row)
    index = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6)))
    ids, found_lengths, targets = rows.batch(index)
    assert [lengths[row] for row in index] == found_lengths.tolist()
    assert (len(index), max(found_lengths)) == ids.shape
    for place, row in enumerate(index):
        here = np.arange(rows.packed.offsets[row], rows.packed.offsets[row + 1]) + 1
        padding = ids.shape[1] - len(here)
        assert [*here, *[PADDING] * padding] == ids[place].tolist()
        if per_row:
            assert -(row + 1) == targets[place]
        else:
            assert [*-here, *[IGNORE] * padding] == targets[place].tolist()
    assert ((len(index),) if per_row else ids.shape) == targets.shape


def test_batches_follow_seed_and_epoch() -> None:
    """The same seed and epoch give the same batches (resuming needs it), others give others."""
    rows = rows_of([number % 9 + 1 for number in range(100)])

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return rows_in(rows.shuffled(8, seed, epoch), rows)

    assert batches(3, 5) == batches(3, 5)
    assert len({str(batches(*which)) for which in [(3, 5), (3, 6), (4, 5), (5, 3)]}) == 4


def test_rows_of_like_length_are_together() -> None:
    """Within one window the lengths of the batches do not overlap, so little is padding."""
    lengths = np.random.default_rng(0).integers(1, 500, size=8 * BUCKET)
    rows = rows_of(lengths.tolist())
    ranges = sorted((min(batch.lengths), max(batch.lengths)) for batch in rows.shuffled(8, 0, 0))
    assert all(upper <= lower for (_, upper), (lower, _) in pairwise(ranges))


def test_the_order_of_batches_is_random() -> None:
    """Training does not go from short to long."""
    rows = rows_of(list(range(1, 200)))
    longest = [max(batch.lengths) for batch in rows.shuffled(4, 0, 0)]
    assert longest != sorted(longest)

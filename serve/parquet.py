"""Texts from a column of a Parquet file, at flat memory, by pyarrow (`pip install 'ohlol[parquet]'`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ohlol.artifacts.errors import InputError
from ohlol.serve.blocks import Place
from ohlol.serve.model import WINDOW, WINDOW_CHARACTERS
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Reading, Row, Window, within

BATCH = 8 << 20  # bytes that are read at a time, about


@dataclass(frozen=True)
class TableWindow(Window):
    """Rows of a Parquet file; `kept` is a table of all their columns."""

    kept: Any

    @cached_property
    def records(self) -> Sequence[Row]:
        try:
            rows: list[Row] = self.kept.to_pylist()
        except (ValueError, OverflowError) as error:  # a year 60000, a string that is not UTF-8
            raise InputError(
                f"{self.wheres(0)} or one soon after: a column holds what has no form but in Parquet "
                f"({str(error).splitlines()[0]}); write Parquet, or leave that column out"
            ) from error
        return rows

    def kept_of(self, which: NDArray[np.int64]) -> Any:
        return self.kept.take(pa.array(which))


def windows(path: Path, start: Place, how: Reading, groups: range | None = None) -> Iterator[Window]:
    """The rows of a Parquet file after the first `start.offset`; the text is the column `how.field`.

    `groups`: those of these row groups alone. Where there are no rows, a window of none gives their columns.
    Raises `InputError` where the file is no Parquet, or has no such column of strings.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        check_column(schema, how.field, how.name)
        row, given = 0, False
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            end = row + count
            if end > start.offset and (groups is None or group in groups):
                for batch in file.iter_batches(
                    _batch_size(file.metadata.row_group(group)), row_groups=[group]
                ):
                    skip = min(max(0, start.offset - row), len(batch))
                    row += len(batch)
                    if skip < len(batch):
                        given = True
                        yield from _of_batch(batch.slice(skip), row - len(batch) + skip, how)
                if row != end:
                    raise InputError(
                        f"{path}: damaged: row group {group} lacks {end - row} of its {count} rows"
                    )
            row = end
        if not given and not start.offset:
            yield _window(schema.empty_table(), [], row, how)


def facts(path: Path) -> tuple[Any, Any]:
    """The `FileMetaData` and the `Schema` of a file. Raises `InputError` where it is no Parquet."""
    with _opened(path) as file:
        return file.metadata, file.schema_arrow


def rows_of(path: Path) -> int:
    """How many rows a file has; 0 where it cannot be told."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file whose mistakes, met wherever it is read, are one `InputError`. A disk's errors stay what they are."""
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _batch_size(group: Any) -> int:
    """How many rows of a row group are read at a time."""
    size = max(1, int(group.total_byte_size) // max(1, int(group.num_rows)))
    return max(1, min(WINDOW, BATCH // size))


def check_column(schema: Any, column: str, name: str) -> None:
    """Raise `InputError` where the file `name` has no such column of strings."""
    if column not in schema.names:
        raise InputError(
            f"{name}: no column {column!r}; it has {', '.join(schema.names) or 'none'}. Name another with --field"
        )
    twice = next((other for other in schema.names if schema.names.count(other) > 1), None)
    if twice is not None:
        raise InputError(f"{name}: column {twice!r} is there twice")
    found = schema.field(column).type
    if pa.types.is_dictionary(found):
        found = found.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(found) for is_kind in kinds):
        raise InputError(f"{name}: column {column!r} is {found}, expected strings")


def _of_batch(batch: Any, first: int, how: Reading) -> Iterator[Window]:
    """A batch in windows of about as many characters; where one ends depends on where it begins alone."""
    texts = list(map(_text, batch.column(how.field)))
    begin = characters = 0
    for end, text in enumerate(texts, start=1):
        characters += len(text) if isinstance(text, str) else 0
        if characters >= WINDOW_CHARACTERS or end == len(texts):
            table = pa.Table.from_batches([batch.slice(begin, end - begin)])
            yield _window(table, texts[begin:end], first + begin, how)
            begin, characters = end, 0


def _text(scalar: Any) -> str | InputError | None:
    try:
        text: str | None = scalar.as_py()
    except UnicodeDecodeError:
        return InputError("not UTF-8")
    return text


def _window(table: Any, texts: list[str | InputError | None], first: int, how: Reading) -> Window:
    good = []
    for k, text in enumerate(texts):
        problem = InputError("no text (null)") if text is None and not how.nulls else text
        if isinstance(problem, InputError):
            where = f"{how.name}: row {first + k + 1:,}"
            how.skip(InputError(f"{where}: {problem}; leave such rows out with --on-error skip"))
        else:
            good.append(k)
    if len(good) < len(texts):
        table = table.take(pa.array(good, pa.int64()))
    rows = Rows.of([str(texts[k] or "") for k in good], how.alphabet)
    nulls = frozenset(k for k, place in enumerate(good) if texts[place] is None)
    end = first + len(texts)
    found = TableWindow(
        rows, lambda k: f"{how.name}: row {first + good[k] + 1:,}", Place(end, end), table, how.field, nulls
    )
    return within(found, how)

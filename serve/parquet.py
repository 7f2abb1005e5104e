"""Parquet in and out, at flat memory, by pyarrow (`pip install 'ohlol[parquet]'`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import InputError
from ohlol.serve.answers import Answers
from ohlol.serve.blocks import Place
from ohlol.serve.model import WINDOW, WINDOW_CHARACTERS
from ohlol.serve.results import fields
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Reading, Row, Window, within
from ohlol.serve.writers import Look, Writer, taken

TYPES = {
    "labels": pa.list_(pa.string()),
    "words": pa.list_(pa.string()),
    "spans": pa.list_(pa.list_(pa.int64())),
    "sentences": pa.list_(pa.string()),
}
BATCH = 8 << 20  # bytes that are read at a time, about


@dataclass(frozen=True)
class TableWindow(Window):
    """Rows of a Parquet file; `kept` is a table of all their columns."""

    kept: Any

    @cached_property
    def records(self) -> Sequence[Row]:
        rows: list[Row] = self.kept.to_pylist()
        return rows

    def only(self, which: NDArray[np.int64]) -> Window:
        rows = Rows(self.rows.points, self.rows.starts[which], self.rows.lengths[which])
        numbers = which.tolist()
        return replace(
            self, rows=rows, wheres=lambda k: self.wheres(numbers[k]), kept=self.kept.take(pa.array(which))
        )


def windows(path: Path, start: Place, how: Reading) -> Iterator[Window]:
    """The rows of a Parquet file after the first `start.offset`; the text is the column `how.field`.

    Raises `InputError` where the file is no Parquet, or has no such column of strings.
    """
    try:
        yield from _windows(path, start, how)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def rows_of(path: Path) -> int:
    """How many rows a file has; 0 where it cannot be told."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return 0


def _windows(path: Path, start: Place, how: Reading) -> Iterator[Window]:
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        schema = file.schema_arrow
        _check_column(schema, how)
        row = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row + count <= start.offset:
                row += count
                continue
            size = max(1, file.metadata.row_group(group).total_byte_size // max(1, count))
            for batch in file.iter_batches(max(1, min(WINDOW, BATCH // size)), row_groups=[group]):
                skip = min(max(0, start.offset - row), len(batch))
                row += len(batch)
                if skip < len(batch):
                    yield from _of_batch(batch.slice(skip), row - len(batch) + skip, how)
        if row == 0:
            yield _window(schema.empty_table(), [], 0, how)


def _check_column(schema: Any, how: Reading) -> None:
    if how.field not in schema.names:
        raise InputError(
            f"{how.name}: no column {how.field!r}; it has {', '.join(schema.names) or 'none'}. Name another with --field"
        )
    if schema.names.count(how.field) > 1:
        raise InputError(f"{how.name}: column {how.field!r} is there twice")
    found = schema.field(how.field).type
    if pa.types.is_dictionary(found):
        found = found.value_type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)):
        raise InputError(f"{how.name}: column {how.field!r} is {found}, expected strings")


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


def _text(scalar: Any) -> str | InputError:
    try:
        text: str | None = scalar.as_py()
    except UnicodeDecodeError:
        return InputError("not UTF-8")
    return InputError("no text (null)") if text is None else text


def _window(table: Any, texts: list[str | InputError], first: int, how: Reading) -> Window:
    good = []
    for k, text in enumerate(texts):
        if isinstance(text, str):
            good.append(k)
        else:
            where = f"{how.name}: row {first + k + 1:,}"
            how.skip(InputError(f"{where}: {text}; leave such rows out with --on-error skip"))
    if len(good) < len(texts):
        table = table.take(pa.array(good, pa.int64()))
    rows = Rows.of([text for text in texts if isinstance(text, str)], how.alphabet)
    end = first + len(texts)
    found = TableWindow(
        rows, lambda k: f"{how.name}: row {first + good[k] + 1:,}", Place(end, end), table, how.field
    )
    return within(found, how)


class ParquetWriter(Writer):
    """Writes a file for each part, and at the end one of them all, with a row group for each.

    A Parquet file that was not closed cannot be read, a part that is whole can be gone on from. The schema is that of
    the first window; `state["parts"]` says how many parts are there.
    """

    def __init__(self, output: Path, task: Task, look: Look, state: dict[str, Any]) -> None:
        super().__init__(look, state)
        self._output = output
        self._task = task
        self._tables: list[Any] = []
        state.setdefault("parts", 0)
        try:
            self._schema = pq.read_schema(self._part(0)) if state["parts"] else None
        except (pa.ArrowException, FileNotFoundError) as error:
            raise InputError(f"{self._part(0)}: damaged ({error}); start anew without --resume") from error

    def window(self, window: Window, answers: Answers[Any]) -> None:
        table = window.kept if isinstance(window, TableWindow) else self._table(window.records, window.field)
        look = self._look
        results = [
            fields(result, probabilities=look.probabilities, as_=look.as_) for result in answers.results()
        ]
        for name, kind in answer_types(self._task, look).items():
            if look.prefix + name in table.column_names:
                raise taken(look.prefix + name)
            values = [result[name] for result in results]
            if pa.types.is_map(kind):
                values = [list(value.items()) for value in values]
            table = table.append_column(look.prefix + name, pa.array(values, kind))
        if self._schema is None:
            self._schema = table.schema
        self._tables.append(table.cast(self._schema))

    def settle(self) -> int:
        if self._tables:
            self._write(self._part(self.state["parts"]), self._tables)
            self._tables = []
            self.state["parts"] += 1
            self._schema = pq.read_schema(self._part(0))  # as a run that goes on knows it
        return int(self.state["parts"])

    def close(self) -> None:
        parts = [self._part(k) for k in range(self.settle())]
        self._write(self._output, map(pq.read_table, parts))

    def _part(self, number: int) -> Path:
        return self._output.with_name(f"{number:06}.parquet")

    def _write(self, path: Path, tables: Iterable[Any]) -> None:
        """A file with a row group for each table, or for all those of a part."""
        schema = self._schema or self._table([], self._look.field).schema
        with path.open("wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())

    def _table(self, rows: Sequence[Row], text: str) -> Any:
        """Rows of other formats as a table; the first ones say of what type each column is."""
        added = {self._look.prefix + name for name in answer_types(self._task, self._look)}
        if self._schema is None:
            names = list(dict.fromkeys(name for row in rows for name in row)) or [text]
            types: dict[str, Any] = dict.fromkeys(names)
        else:
            types = {name: self._schema.field(name).type for name in self._schema.names if name not in added}
        columns = {}
        for name, kind in types.items():
            values = [row.get(name) for row in rows]
            try:
                column = pa.array(values, kind)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
                expected = (
                    f"expected {kind}, as in the first rows" if kind else "its values are of several types"
                )
                raise InputError(
                    f"column {name!r} cannot be written as Parquet: {expected} "
                    f"({str(error).splitlines()[0]}); use --format jsonl"
                ) from error
            columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
        other = next((name for row in rows for name in row if name not in types), None)
        if other is not None:
            raise InputError(
                f"a Parquet file has the same columns in every row, and the first rows have no {other!r}; use --format jsonl"
            )
        return pa.table(columns)


def answer_types(task: Task, look: Look) -> dict[str, Any]:
    """The columns that are added, and their types; the same for every window."""
    if task == "tag":
        of_text = {"words": ("words", "spans"), "sentences": ("sentences",)}.get(look.as_, ("labels",))
        names: dict[str, Any] = {name: TYPES[name] for name in of_text}
        return names | ({"probabilities": pa.list_(pa.float32())} if look.probabilities else {})
    if task == "classify":
        names = {"label": pa.string()}
        by_label = {"probability": pa.float32(), "probabilities": pa.map_(pa.string(), pa.float32())}
        return names | (by_label if look.probabilities else {})
    names = {"bits_per_character": pa.float64(), "next": pa.string()}
    return names | ({"probability": pa.float32()} if look.probabilities else {})

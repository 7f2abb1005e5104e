"""Answers as Parquet, at flat memory, by pyarrow: columns behind those of the texts, of the same types in every file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import InputError
from ohlol.serve.answers import Answers
from ohlol.serve.parquet import TableWindow
from ohlol.serve.windows import Row, Window
from ohlol.serve.writers import Look, Writer, fields_of, taken

TYPES = {
    "labels": pa.list_(pa.string()),
    "words": pa.list_(pa.string()),
    "spans": pa.list_(pa.list_(pa.int64())),
    "sentences": pa.list_(pa.string()),
}


class Answered:
    """Windows with their answers as tables of one schema, that of the first of them."""

    def __init__(self, task: Task, look: Look, schema: Any = None) -> None:
        self._look = look
        self._types = {look.prefix + name: kind for name, kind in answer_types(task, look).items()}
        self._schema = schema

    @property
    def schema(self) -> Any:
        """Before any table, that of texts alone."""
        return self._schema or _stored(self._answered(self._table([], self._look.field), []).schema)

    def table(self, window: Window, answers: Answers[Any]) -> Any:
        table = window.kept if isinstance(window, TableWindow) else self._table(window.records, window.field)
        table = self._answered(table, list(fields_of(window, answers, self._look)))
        self._schema = self._schema or _stored(table.schema)
        return table.cast(self._schema)

    def _answered(self, table: Any, answers: Sequence[Row]) -> Any:
        """A table with the columns of its answers behind its own."""
        for name, kind in self._types.items():
            if name in table.column_names:
                raise taken(name)
            values = [answer[name.removeprefix(self._look.prefix)] for answer in answers]
            table = table.append_column(name, column(values, kind))
        return table

    def _table(self, rows: Sequence[Row], text: str) -> Any:
        """Rows of other formats as a table; the first ones say of what type each column is."""
        if self._schema is None:
            names = list(dict.fromkeys(name for row in rows for name in row)) or [text]
            types: dict[str, Any] = dict.fromkeys(names)
        else:
            types = {
                name: self._schema.field(name).type for name in self._schema.names if name not in self._types
            }
        columns = {}
        for name, kind in types.items():
            values = [row.get(name) for row in rows]
            try:
                found = pa.array(values, kind)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
                expected = (
                    f"expected {kind}, as in the first rows"
                    if kind
                    else "it holds what no type of Parquet can"
                )
                raise InputError(
                    f"column {name!r} cannot be written as Parquet: {expected} "
                    f"({str(error).splitlines()[0]}); use --format jsonl"
                ) from error
            columns[name] = found.cast(pa.string()) if pa.types.is_null(found.type) else found
        other = next((name for row in rows for name in row if name not in types), None)
        if other is not None:
            raise InputError(
                f"a Parquet file has the same columns in every row, and the first rows have no {other!r}; use --format jsonl"
            )
        try:
            return pa.table(columns)
        except UnicodeEncodeError as error:
            raise InputError(
                f"a column's name is no text that Parquet can hold ({error}); use --format jsonl"
            ) from error


def write(file: IO[bytes], schema: Any, tables: Iterable[Any]) -> None:
    """A whole Parquet file, with a row group for each table, or for all those of a part.

    Raises `InputError` where a column is of a type that Parquet cannot hold, an empty object for one.
    """
    try:
        with pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot be written as Parquet: {reason}; use --format jsonl") from error


def write_answers(
    file: IO[bytes], answered: Iterable[tuple[Window, Answers[Any]]], task: Task, look: Look
) -> None:
    """A whole Parquet file of these windows, at least one."""
    made = Answered(task, look)
    tables = (made.table(window, answers) for window, answers in answered)
    first = next(tables)
    write(file, made.schema, chain([first], tables))


class ParquetWriter(Writer):
    """Writes a file for each part, and at the end one of them all, with a row group for each.

    A Parquet file that was not closed cannot be read, a part that is whole can be gone on from. The schema is that of
    the first window; `state["parts"]` says how many parts are there.
    """

    def __init__(self, output: Path, task: Task, look: Look, state: dict[str, Any]) -> None:
        super().__init__(look, state)
        self._output = output
        self._tables: list[Any] = []
        state.setdefault("parts", 0)
        try:
            schema = pq.read_schema(self._part(0)) if state["parts"] else None
        except (pa.ArrowException, FileNotFoundError) as error:
            raise InputError(f"{self._part(0)}: damaged ({error}); start anew without --resume") from error
        self._answered = Answered(task, look, schema)

    def window(self, window: Window, answers: Answers[Any]) -> None:
        self._tables.append(self._answered.table(window, answers))

    def settle(self) -> int:
        if self._tables:
            self._write(self._part(self.state["parts"]), self._tables)
            self._tables = []
            self.state["parts"] += 1
        return int(self.state["parts"])

    def close(self) -> None:
        parts = [self._part(k) for k in range(self.settle())]
        self._write(self._output, map(pq.read_table, parts))

    def _part(self, number: int) -> Path:
        return self._output.with_name(f"{number:06}.parquet")

    def _write(self, path: Path, tables: Iterable[Any]) -> None:
        with path.open("wb") as file:
            write(file, self._answered.schema, tables)
            file.flush()
            os.fsync(file.fileno())


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


def _stored(schema: Any) -> Any:
    """A schema as Parquet gives it back (it calls the items of lists otherwise), so that every run has the same."""
    file = io.BytesIO()
    write(file, schema, [])
    return pq.read_schema(io.BytesIO(file.getvalue()))


def column(values: Sequence[Any], kind: Any) -> Any:
    """A column of answers, as JSON has them, None among them."""
    pairs = [list(value.items()) if isinstance(value, dict) else value for value in values]
    return pa.array(pairs, kind)

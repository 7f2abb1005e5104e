"""Answers out, window by window: lines of text, JSON lines, CSV and TSV."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from ohlol.artifacts.errors import InputError
from ohlol.serve.answers import Answers, TagAnswers
from ohlol.serve.output import Sink
from ohlol.serve.results import fields
from ohlol.serve.tables import DELIMITERS
from ohlol.serve.windows import Row, Window


@dataclass(frozen=True)
class Look:
    """How answers are written. `prefix` stands before the names of the fields that are added."""

    probabilities: bool = False
    as_: str = "labels"
    prefix: str = ""
    field: str = "text"


class Writer(ABC):
    """Writes the answers to windows, in order. `state` is what one that goes on must be given."""

    def __init__(self, look: Look, state: dict[str, Any]) -> None:
        self._look = look
        self.state = state

    @abstractmethod
    def window(self, window: Window, answers: Answers[Any]) -> None:
        """Write what is answered to each text of a window."""

    @abstractmethod
    def settle(self) -> int:
        """Pass on all that is written; how much it is, in bytes or in parts."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes."""


class LineWriter(Writer):
    """A writer of bytes, one window after another."""

    def __init__(self, sink: Sink, look: Look, state: dict[str, Any]) -> None:
        super().__init__(look, state)
        self._sink = sink

    def settle(self) -> int:
        return self._sink.settle()

    def close(self) -> None:
        self._sink.close()


class TextWriter(LineWriter):
    """A line for each text. A lone surrogate, which UTF-8 cannot hold, is written as `?`."""

    def window(self, window: Window, answers: Answers[Any]) -> None:
        self.text(answers.lines(probabilities=self._look.probabilities, as_=self._look.as_))

    def text(self, text: str) -> None:
        """A part of a line."""
        self._sink.write(text.encode("utf-8", "replace"))


class RowWriter(LineWriter):
    """A writer of rows, each a text's own fields and its answer's."""

    @abstractmethod
    def rows(self, rows: Iterable[Row]) -> None: ...


class JsonlWriter(RowWriter):
    """The row that each text is from, with the fields of the answer after its own."""

    def window(self, window: Window, answers: Answers[Any]) -> None:
        if _labels_alone(answers, self._look) and not window.nulls:
            self._sink.write("".join(self._labelled(window, cast(TagAnswers, answers))).encode("utf-8"))
        else:
            self.rows(answered(window, answers, self._look))

    def rows(self, rows: Iterable[Row]) -> None:
        self._sink.write("".join([_json(row) + "\n" for row in rows]).encode("utf-8"))

    def _labelled(self, window: Window, answers: TagAnswers) -> list[str]:
        """The same, without a loop over characters: as JSON, a row's labels are their names' JSON side by side."""
        field = self._look.prefix + "labels"
        lists = answers.spelled([_json(name) for name in answers.labels.names], ", ")
        made = []
        for row, labels in zip(window.records, lists, strict=True):
            if field in row:
                raise taken(field)
            made.append(f"{_json(row)[:-1]}, {_json(field)}: [{labels}]}}\n")
        return made


class CsvWriter(RowWriter):
    """The same as a table; lists and objects are JSON. `state["columns"]` are those of the header once it is there."""

    delimiter = DELIMITERS["csv"]

    def window(self, window: Window, answers: Answers[Any]) -> None:
        self.rows(answered(window, answers, self._look, joined=True))

    def rows(self, rows: Iterable[Row]) -> None:
        made: list[str] = []
        table = csv.writer(_Rows(made), delimiter=self.delimiter)
        for row in rows:
            if "columns" not in self.state:
                self.state["columns"] = list(row)
                table.writerow(self.state["columns"])
            columns = self.state["columns"]
            if row.keys() != set(columns):
                odd = ", ".join(sorted(row.keys() ^ set(columns)))
                raise InputError(
                    f"a CSV has the same fields in every row, these are not: {odd}; use --format jsonl"
                )
            table.writerow([_cell(row[column]) for column in columns])
        self._sink.write("".join(made).encode("utf-8", "replace"))


class TsvWriter(CsvWriter):
    delimiter = DELIMITERS["tsv"]


WRITERS: dict[str, type[LineWriter]] = {
    "text": TextWriter,
    "jsonl": JsonlWriter,
    "csv": CsvWriter,
    "tsv": TsvWriter,
}


def answered(window: Window, answers: Answers[Any], look: Look, *, joined: bool = False) -> Iterator[Row]:
    """Each row of a window with its answer; `joined`, the labels of characters as one string.

    Raises `InputError` where a field of the row would be replaced.
    """
    added: Iterator[Row]
    if joined and _labels_alone(answers, look) and "\n" not in "".join(answers.labels.names):
        labels = answers.labels
        added = (
            {"labels": text} for text in cast(TagAnswers, answers).spelled(labels.names, labels.separator)
        )
    else:
        added = fields_of(window, answers, look, joined=joined)
    for record, answer in zip(window.records, added, strict=True):
        row = dict(record)
        for key, value in answer.items():
            if look.prefix + key in row:
                raise taken(look.prefix + key)
            row[look.prefix + key] = value
        yield row


def fields_of(window: Window, answers: Answers[Any], look: Look, *, joined: bool = False) -> Iterator[Row]:
    """The fields of each answer, by their names without the prefix: all null where the text is."""
    for k, result in enumerate(answers.results()):
        row = fields(result, probabilities=look.probabilities, as_=look.as_)
        if joined and "labels" in row:
            row["labels"] = str(result)
        yield dict.fromkeys(row) if k in window.nulls else row


def _labels_alone(answers: Answers[Any], look: Look) -> bool:
    """Whether each character's label is all that is added."""
    return isinstance(answers, TagAnswers) and look.as_ == "labels" and not look.probabilities


def taken(name: str) -> InputError:
    return InputError(
        f"the input has a field {name!r}, which the answer would replace; put a word before the names of the answer's "
        "fields, such as --prefix predicted_"
    )


class _Rows:
    """Ends a CSV's rows with a plain newline. Told so itself, csv would leave a lone `\\r` unquoted."""

    def __init__(self, made: list[str]) -> None:
        self._made = made

    def write(self, row: str) -> None:
        self._made.append(row.removesuffix("\r\n") + "\n")


def _json(value: Any) -> str:
    """JSON that can be written as UTF-8: a lone surrogate stays an escape."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except RecursionError as error:
        raise InputError("a field is nested too deeply to be written as JSON; leave it out") from error
    except ValueError as error:
        raise InputError(
            "a field holds a number that is not finite, which JSON cannot hold; write Parquet, or leave that column out"
        ) from error
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    return text


def _cell(value: Any) -> Any:
    """A value in one field of a CSV; lists and objects as JSON."""
    return (
        _json(value) if isinstance(value, list | dict | bytes) else value
    )  # of bytes it says that it cannot


def _plain(value: Any) -> Any:
    """What Parquet can hold and JSON cannot."""
    import datetime  # late: Parquet alone needs them
    import decimal

    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise InputError(
        f"a field holds {type(value).__name__}, which JSON cannot hold; write Parquet, or leave that column out"
    )

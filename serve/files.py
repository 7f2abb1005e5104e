"""Texts in from arguments, stdin and files; answers out to stdout or a file. Order is kept."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import tee
from pathlib import Path
from typing import IO, Any, NamedTuple

from ohlol.artifacts.errors import InputError
from ohlol.serve.model import Model
from ohlol.serve.results import Result, fields, line

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
BOM = b"\xef\xbb\xbf"

Skip = Callable[[InputError], None]  # told of a line that cannot be read; raises to stop


class Record(NamedTuple):
    """A text and the fields of its line, in their order."""

    text: str
    fields: dict[str, Any]


def format_of(name: str | None, given: str | None) -> str:
    """The format `given`, or else the one a file's name says; text without either."""
    return given or SUFFIXES.get(Path(name).suffix.lower() if name else "", "text")


def opened(texts: tuple[str, ...], source: Path | None) -> AbstractContextManager[IO[bytes]]:
    """What texts are read from: a file, nothing where they are arguments, else stdin, which stays open."""
    if source is not None:
        return source.open("rb")
    if texts:
        return nullcontext(io.BytesIO())
    if sys.stdin is None:  # closed, as a daemon has it
        raise InputError("stdin is closed; give TEXT or -i FILE")
    return nullcontext(sys.stdin.buffer)


def arguments(texts: tuple[str, ...], skip: Skip) -> Iterator[Record]:
    """The texts of a command line."""
    for number, text in enumerate(texts, start=1):
        if _escaped(text):
            skip(InputError(f"argument {number}: not UTF-8"))
        else:
            yield Record(text, {})


def records(file: IO[bytes], name: str, format_: str, field: str, skip: Skip) -> Iterator[Record]:
    """The texts of a file, read line by line; `field` is the text's column or field (csv, jsonl)."""
    if format_ == "csv":
        yield from _csv(file, name, field, skip)
    elif format_ == "jsonl":
        yield from _jsonl(_lines(file, name, skip), name, field, skip)
    else:
        for _, text in _lines(file, name, skip):
            yield Record(text, {})


def write(
    model: Model[Any],
    inputs: Iterable[Record],
    out: IO[str],
    format_: str,
    *,
    field: str = "text",
    probabilities: bool = False,
    as_: str = "labels",
    prefix: str = "",
    at_once: bool = False,
) -> None:
    """Answer every record, one line each, in order; `at_once`, before the next one is read.

    `prefix` stands before the names of the fields that are added. Raises `InputError` where an added field
    would take the place of one that is there, or where the rows of a CSV have different fields.
    """
    table: csv.DictWriter[str] | None = None
    for record, result in _answered(model, inputs, at_once):
        if format_ == "text":
            out.write(line(result, probabilities=probabilities, as_=as_) + "\n")
        else:
            added = fields(result, probabilities=probabilities, as_=as_)
            row = {**record.fields, field: record.text}
            for key, value in added.items():
                if prefix + key in row:
                    raise InputError(
                        f"the input has a field {prefix + key!r}, which the answer would replace; put a word before "
                        "the names of the answer's fields, such as --prefix predicted_"
                    )
                row[prefix + key] = value
            if format_ == "jsonl":
                out.write(_json(row) + "\n")
            else:
                if table is None:
                    table = csv.DictWriter(_Lines(out), list(row))
                    table.writeheader()
                elif row.keys() != set(table.fieldnames):
                    odd = ", ".join(sorted(row.keys() ^ set(table.fieldnames)))
                    raise InputError(
                        f"a CSV has the same fields in every row, these are not: {odd}; use --format jsonl"
                    )
                joined = {prefix + "labels": str(result)} if "labels" in added else {}
                table.writerow({name: _cell(value) for name, value in {**row, **joined}.items()})
        if at_once:
            out.flush()


class _Lines:
    """Ends a CSV's rows with a plain newline. Told so itself, csv would leave a lone `\\r` unquoted."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def write(self, row: str) -> int:
        return self.out.write(row.removesuffix("\r\n") + "\n")


def _answered(model: Model[Any], inputs: Iterable[Record], at_once: bool) -> Iterator[tuple[Record, Result]]:
    if at_once:
        for record in inputs:
            yield record, model(record.text)
        return
    inputs, copies = tee(inputs)
    yield from zip(inputs, model(record.text for record in copies), strict=True)


def _json(value: Any) -> str:
    """JSON that can be written as UTF-8: a lone surrogate stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _cell(value: Any) -> Any:
    """A value in one field of a CSV; lists and objects as JSON."""
    return _json(value) if isinstance(value, list | dict) else value


def _lines(file: IO[bytes], name: str, skip: Skip) -> Iterator[tuple[int, str]]:
    """Lines, which end at `\\n` or `\\r\\n` only, with their numbers."""
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(BOM)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            skip(
                InputError(
                    f"{name}:{number}: not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}; "
                    "convert the file to UTF-8, or leave such lines out with --on-error skip"
                )
            )


def _jsonl(lines: Iterable[tuple[int, str]], name: str, field: str, skip: Skip) -> Iterator[Record]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            skip(InputError(f"{name}:{number}: not JSON: {error}; leave such lines out with --on-error skip"))
            continue
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            skip(
                InputError(
                    f'{name}:{number}: expected an object with a string "{field}", found {found or "an empty one"}; '
                    "name another field with --field"
                )
            )
            continue
        yield Record(row[field], row)


def _csv(file: IO[bytes], name: str, field: str, skip: Skip) -> Iterator[Record]:
    """Records of a CSV with a header. One that cannot be read is skipped whole, however many lines it has."""
    csv.field_size_limit(2**31 - 1)
    # Bytes that are no UTF-8 come through as lone surrogates, so that the record they are in can be told.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    header: list[str] | None = None
    try:
        while True:
            first = reader.line_num + 1
            try:
                row = next(reader, None)
                problem = "not UTF-8" if row and _escaped("".join(row)) else ""
            except csv.Error as error:
                row, problem = [], f"not CSV: {error}"
            if row is None:
                return
            last = reader.line_num
            where = f"{name}:{first}" if last <= first else f"{name}:{first} to {last}"
            if header is None:
                header = _header(row, problem, field, where) if row or problem else None
                continue
            if row and not problem and len(row) != len(header):
                problem = f"{len(row)} fields, the header has {len(header)}"
            if problem:
                skip(
                    InputError(f"{where}: {problem}; mend it, or leave such records out with --on-error skip")
                )
            elif row:
                cells = dict(zip(header, row, strict=True))
                yield Record(cells[field], cells)
    finally:
        text.detach()  # the file stays open


def _header(row: list[str], problem: str, field: str, where: str) -> list[str]:
    twice = sorted({column for column in row if row.count(column) > 1})
    if twice and not problem:
        problem = f"column {twice[0]!r} is there twice"
    if field not in row and not problem:
        problem = f"no column {field!r}; the header has {', '.join(row)}. Name another with --field"
    if problem:
        raise InputError(f"{where}: {problem}")
    return row


def _escaped(text: str) -> bool:
    """Whether bytes that are no UTF-8 came into the text, as Python lets them through."""
    return any("\udc80" <= character <= "\udcff" for character in text)


@contextmanager
def stdout() -> Iterator[IO[str]]:
    """The process's output as UTF-8 with plain newlines; a lone surrogate is written as `?`."""
    if sys.stdout is None:
        raise InputError("stdout is closed; write to a file with -o FILE")
    out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="replace", newline="")
    try:
        yield out
        out.flush()
    finally:
        out.detach()  # stdout stays open

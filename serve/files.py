"""Texts in from arguments, stdin and files; answers out to stdout or a file. Order is kept."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import tee
from pathlib import Path
from typing import IO, Any, NamedTuple

from ohlol.artifacts.errors import InputError
from ohlol.serve.model import Model
from ohlol.serve.results import Result, fields, line

FORMATS = ("text", "jsonl", "csv")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
BOM = b"\xef\xbb\xbf"

Skip = Callable[[InputError], None]  # told of a line that cannot be read; raises to stop


class Record(NamedTuple):
    """A text and what else its line held."""

    text: str
    others: dict[str, Any]


def format_of(name: str | None, given: str | None) -> str:
    """The format `given`, or else the one a file's name says; text without either."""
    return given or SUFFIXES.get(Path(name).suffix.lower() if name else "", "text")


def records(file: IO[bytes], name: str, format_: str, field: str, skip: Skip) -> Iterator[Record]:
    """The texts of a file, read line by line; `field` is the text's column or field (csv, jsonl)."""
    lines = _lines(file, name, skip)
    if format_ == "csv":
        yield from _csv(lines, name, field, skip)
    elif format_ == "jsonl":
        yield from _jsonl(lines, name, field, skip)
    else:
        for _, text in lines:
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
    at_once: bool = False,
) -> None:
    """Answer every record, one line each, in order; `at_once`, before the next one is read."""
    table: Any = None
    for record, result in _answered(model, inputs, at_once):
        if format_ == "text":
            out.write(line(result, probabilities=probabilities, as_=as_) + "\n")
            if at_once:
                out.flush()
            continue
        row = fields(result, probabilities=probabilities, as_=as_)
        row = {**record.others, field: record.text, **row}
        if format_ == "jsonl":
            out.write(_json(row) + "\n")
            continue
        if table is None:
            table = csv.DictWriter(out, list(row), lineterminator="\n", extrasaction="ignore")
            table.writeheader()
        table.writerow({name: _cell(value) for name, value in row.items()})


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
    """A value in one field of a CSV: labels as `predict` prints them, other lists and objects as JSON."""
    if isinstance(value, list) and value and all(isinstance(part, str) and len(part) == 1 for part in value):
        return "".join(value)
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
        yield Record(row.pop(field), row)


def _csv(lines: Iterable[tuple[int, str]], name: str, field: str, skip: Skip) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((text + "\n" for _, text in lines), strict=True)
    header = next(reader, None)
    if header is None:
        return
    if field not in header:
        raise InputError(
            f"{name}:1: no column {field!r}; the header has {', '.join(header)}. Name another with --field"
        )
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            skip(InputError(f"{name}:{reader.line_num}: not CSV: {error}"))
            continue
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(header):
            skip(
                InputError(
                    f"{name}:{reader.line_num}: {len(row)} fields, the header has {len(header)}; mend the line, or "
                    "leave such lines out with --on-error skip"
                )
            )
            continue
        cells = dict(zip(header, row, strict=True))
        yield Record(cells.pop(field), cells)


@contextmanager
def stdout() -> Iterator[IO[str]]:
    """The process's output as UTF-8 with plain newlines; a lone surrogate is written as `?`."""
    out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="replace", newline="")
    try:
        yield out
        out.flush()
    finally:
        out.detach()  # stdout stays open

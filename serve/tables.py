"""Texts from a column of a CSV or TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from ohlol.artifacts.errors import InputError
from ohlol.serve import blocks as sizes
from ohlol.serve.blocks import Blocks, Place
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Reading, Row, Window, escaped

DELIMITERS = {"csv": ",", "tsv": "\t"}


def records(blocks: Blocks, how: Reading) -> Iterator[Window]:
    """Records of a CSV with a header.

    One that has other fields than the header, or is not UTF-8, is skipped whole, however many lines it has. One that is
    no CSV (a letter behind a closing quote) ends, as far as anyone can tell, with the line of the mistake: what
    follows is read as the next record, and likely skipped for itself.
    """
    csv.field_size_limit(sizes.LONGEST if blocks.arriving else 2**31 - 1)
    lines = _Lines(Blocks(blocks.file, arriving=blocks.arriving, name=how.name))
    reader = csv.reader(lines, strict=True, delimiter=DELIMITERS[how.format])
    header = _header(reader, lines, how)
    if header is None:
        return
    if blocks.start.offset:
        lines = _Lines(blocks)
        reader = csv.reader(lines, strict=True, delimiter=DELIMITERS[how.format])
    column = header.index(how.field)
    rows: list[Row] = []
    texts: list[str] = []
    wheres: list[str] = []
    begin = lines.place
    while True:
        first = lines.place.line + 1
        row, problem = _record(reader)
        last = lines.place.line
        if row is not None:
            where = f"{how.name}:{first}" if last <= first else f"{how.name}:{first} to {last}"
            if row and not problem and len(row) != len(header):
                problem = f"{len(row)} fields, the header has {len(header)}"
            if problem:
                how.skip(
                    InputError(f"{where}: {problem}; mend it, or leave such records out with --on-error skip")
                )
            elif row:
                rows.append(dict(zip(header, row, strict=True)))
                texts.append(row[column])
                wheres.append(where)
        if row is None or lines.waiting or lines.place.offset - begin.offset >= sizes.BLOCK:
            if texts or lines.place != begin:
                yield Window(Rows.of(texts, how.alphabet), wheres.__getitem__, lines.place, rows, how.field)
            rows, texts, wheres, begin = [], [], [], lines.place
        if row is None:
            return


class _Lines:
    """The lines that csv reads, one at a time; `place` is after the last one, `waiting` whether no more is there.

    Bytes that are no UTF-8 come through as lone surrogates, so that the record they are in can be told.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.place = blocks.start
        self.waiting = False

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks.whole_lines():
            offset, number = self._blocks.begin
            for raw in io.BytesIO(block):
                for line in _ended_by_returns(raw.decode("utf-8", "surrogateescape")):
                    offset += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
                    number += 1 if line.endswith("\n") else 0
                    self.place = Place(offset, number)
                    self.waiting = self._blocks.arriving and self.place == self._blocks.end
                    yield line


def _ended_by_returns(line: str) -> Iterable[str]:
    """A line as csv wants it: a lone carriage return ends a line too."""
    inside = line.removesuffix("\n").removesuffix("\r")
    return (line,) if "\r" not in inside else io.StringIO(line, newline="")


def _record(reader: Iterator[list[str]]) -> tuple[list[str] | None, str]:
    """The next record, None at the end, and what is wrong with it."""
    try:
        row = next(reader, None)
    except csv.Error as error:
        return [], f"not CSV: {error}"
    return row, "not UTF-8" if row and escaped("".join(row)) else ""


def _header(reader: Iterator[list[str]], lines: _Lines, how: Reading) -> list[str] | None:
    """The first record that is not empty; None where there is none."""
    row: list[str] | None = []
    problem = ""
    while row == [] and not problem:
        first = lines.place.line + 1
        row, problem = _record(reader)
    if row is None:
        return None
    twice = sorted({column for column in row if row.count(column) > 1})
    if twice and not problem:
        problem = f"column {twice[0]!r} is there twice"
    if how.field not in row and not problem:
        problem = f"no column {how.field!r}; the header has {', '.join(row)}. Name another with --field"
    if problem:
        last = lines.place.line
        where = f"{how.name}:{first}" if last <= first else f"{how.name}:{first} to {last}"
        raise InputError(f"{where}: {problem}")
    return row

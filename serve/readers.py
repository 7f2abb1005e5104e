"""Texts to answer, window by window: from lines of text, JSON lines, CSV and TSV.

Every reader is given blocks of bytes (serve/blocks.py) and gives windows of about as many characters. Where a line
cannot be read, `skip` is told, which raises to stop; the line is then left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.serve import blocks as sizes
from ohlol.serve.blocks import Blocks, Place, line_of, not_utf8
from ohlol.serve.long_line import LongLine, parts_of
from ohlol.serve.rows import Rows

Skip = Callable[[InputError], None]  # told of a line that cannot be read; raises to stop
Row = dict[str, Any]

DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Reading:
    """How a file is read. `name` stands in messages; `field` is the text's field (jsonl) or column (csv, tsv).

    `in_parts`: a long line of text may be given in parts. `judged`: only once all of it is known to be readable.
    """

    name: str
    format: str
    alphabet: Alphabet
    skip: Skip
    field: str = "text"
    max_length: int | None = None
    in_parts: bool = False
    judged: bool = False


@dataclass(frozen=True)
class Window:
    """Texts that are answered together. `end` is where reading can go on after them.

    `wheres` says where each text stands, as messages name it. `kept` are the rows they are from, or the block of
    text whose lines they are; a reader of other formats has its own subclass.
    """

    rows: Rows
    wheres: Callable[[int], str]
    end: Place
    kept: Sequence[Row] | str
    field: str

    @cached_property
    def records(self) -> Sequence[Row]:
        """Each text with the fields of its row, in their order."""
        if isinstance(self.kept, str):
            lines = self.kept.removesuffix("\n").split("\n") if self.kept else []
            return [{self.field: line.removesuffix("\r")} for line in lines]
        return self.kept

    def only(self, which: NDArray[np.int64]) -> Window:
        """The window of these of its rows."""
        rows = Rows(self.rows.points, self.rows.starts[which], self.rows.lengths[which])
        numbers = which.tolist()
        kept = [self.records[k] for k in numbers]
        return replace(self, rows=rows, wheres=lambda k: self.wheres(numbers[k]), kept=kept)


def windows(blocks: Blocks, how: Reading) -> Iterator[Window | LongLine]:
    """What a file holds, from where `blocks` begins; texts longer than `how.max_length` are told to `how.skip`."""
    read = {"jsonl": _jsonl, "csv": _csv, "tsv": _csv}.get(how.format, _text)
    for window in read(blocks, how):
        yield within(window, how) if isinstance(window, Window) else window


def arguments(texts: tuple[str, ...], how: Reading) -> Iterator[Window]:
    """The texts of a command line, which are one window."""
    good = []
    for number, text in enumerate(texts, start=1):
        if _escaped(text):
            how.skip(InputError(f"argument {number}: not UTF-8"))
        else:
            good.append((f"argument {number}", text))
    rows = Rows.of([text for _, text in good], how.alphabet)
    records = [{how.field: text} for _, text in good]
    yield within(Window(rows, lambda k: good[k][0], Place(), records, how.field), how)


def within(window: Window, how: Reading) -> Window:
    """The window without texts that are too long, of which `how.skip` is told."""
    if how.max_length is None or not (window.rows.lengths > how.max_length).any():
        return window
    for k in np.flatnonzero(window.rows.lengths > how.max_length).tolist():
        how.skip(too_long(window.wheres(k), int(window.rows.lengths[k]), how.max_length))
    return window.only(np.flatnonzero(window.rows.lengths <= how.max_length))


def too_long(where: str, length: int, limit: int) -> InputError:
    return InputError(
        f"{where}: a text of {length:,} characters, expected at most {limit:,}; cut it into shorter ones, or leave such "
        "texts out with --on-error skip"
    )


def _text(blocks: Blocks, how: Reading) -> Iterator[Window | LongLine]:
    whole = iter(blocks)
    for block in whole:
        begin = blocks.begin
        if b"\n" not in block and (more := next(whole, b"")):
            line = line_of(block + more, whole)
            if how.in_parts:
                yield from _long(line, blocks, begin, how)
                continue
            block = b"".join(line)
        text, numbers = _decoded(block, begin, how)
        rows = Rows.of_lines(text, how.alphabet)
        yield Window(rows, _lines_of(how.name, numbers), blocks.end, text, how.field)


def _long(line: Iterator[bytes], blocks: Blocks, begin: Place, how: Reading) -> Iterator[LongLine]:
    """A line that is too long for a block; judged first where a part of it must not be answered for nothing."""
    where = f"{how.name}:{begin.line + 1}"
    if not how.judged and how.max_length is None:
        yield LongLine(where, parts_of(line, how.alphabet, where), lambda: blocks.end)
        return
    kept: list[bytes] = []
    length = 0
    limit = how.max_length

    def keeping() -> Iterator[bytes]:
        for piece in line:
            if limit is None or length <= limit:
                kept.append(piece)
            yield piece

    try:
        for part in parts_of(keeping(), how.alphabet, where):
            length += len(part)
    except InputError as error:
        for _ in line:  # to its end, where reading goes on
            pass
        how.skip(error)
        return
    if limit is not None and length > limit:
        how.skip(too_long(where, length, limit))
        return
    yield LongLine(where, parts_of(iter(kept), how.alphabet, where), lambda: blocks.end)


def _decoded(block: bytes, begin: Place, how: Reading) -> tuple[str, Sequence[int]]:
    """The text of a block, without lines that are no UTF-8, and the lines' numbers."""
    try:
        return block.decode("utf-8"), range(begin.line + 1, 1 << 62)
    except UnicodeDecodeError:
        good = list(_line_by_line(block, begin, how))
        return "".join(f"{line}\n" for _, line in good), [number for number, _ in good]


def _line_by_line(block: bytes, begin: Place, how: Reading) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(block.removesuffix(b"\n").split(b"\n"), start=begin.line + 1):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            how.skip(not_utf8(f"{how.name}:{number}", raw[error.start], error.start + 1))


def _lines_of(name: str, numbers: Sequence[int]) -> Callable[[int], str]:
    return lambda k: f"{name}:{numbers[k]}"


def _jsonl(blocks: Blocks, how: Reading) -> Iterator[Window]:
    decode = json.JSONDecoder().decode
    for block in blocks.whole_lines():
        lines: Iterable[tuple[int, str]]
        try:
            text = block.decode("utf-8").removesuffix("\n")
            lines = enumerate(text.split("\n"), start=blocks.begin.line + 1)
        except UnicodeDecodeError:
            lines = _line_by_line(block, blocks.begin, how)
        rows: list[Row] = []
        texts: list[str] = []
        numbers: list[int] = []
        for number, line in lines:
            if not line.strip():
                continue
            where = f"{how.name}:{number}"
            try:
                row = decode(line)
            except (ValueError, RecursionError) as error:
                how.skip(InputError(f"{where}: not JSON: {error}; leave such lines out with --on-error skip"))
                continue
            if not isinstance(row, dict) or not isinstance(row.get(how.field), str):
                found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                how.skip(
                    InputError(
                        f'{where}: expected an object with a string "{how.field}", found {found or "an empty one"}; '
                        "name another field with --field"
                    )
                )
                continue
            rows.append(row)
            texts.append(row[how.field])
            numbers.append(number)
        yield Window(Rows.of(texts, how.alphabet), _lines_of(how.name, numbers), blocks.end, rows, how.field)


def _csv(blocks: Blocks, how: Reading) -> Iterator[Window]:
    """Records of a CSV with a header. One that cannot be read is skipped whole, however many lines it has."""
    csv.field_size_limit(2**31 - 1)
    lines = _Lines(Blocks(blocks.file, arriving=blocks.arriving))
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
    return (line,) if "\r" not in line[:-2] else io.StringIO(line, newline="")


def _record(reader: Iterator[list[str]]) -> tuple[list[str] | None, str]:
    """The next record, None at the end, and what is wrong with it."""
    try:
        row = next(reader, None)
    except csv.Error as error:
        return [], f"not CSV: {error}"
    return row, "not UTF-8" if row and _escaped("".join(row)) else ""


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


def _escaped(text: str) -> bool:
    """Whether bytes that are no UTF-8 came into the text, as Python lets them through."""
    return not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text)

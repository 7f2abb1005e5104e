"""Texts to answer, window by window: lines of text, of JSON; CSV and TSV are in serve/tables.py.

Every reader is given blocks of bytes (serve/blocks.py) and gives windows of about as many characters. Where a line
cannot be read, `skip` is told, which raises to stop; the line is then left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from ohlol.artifacts.errors import InputError
from ohlol.serve import tables
from ohlol.serve.blocks import Blocks, Place, line_of, not_utf8
from ohlol.serve.long_line import LongLine, parts_of
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Reading, Row, Window, lines_of, too_long, within


def windows(blocks: Blocks, how: Reading) -> Iterator[Window | LongLine]:
    """What a file holds, from where `blocks` begins; texts longer than `how.max_length` are told to `how.skip`."""
    read = {"jsonl": _jsonl, "csv": tables.records, "tsv": tables.records}.get(how.format, _text)
    for window in read(blocks, how):
        yield within(window, how) if isinstance(window, Window) else window


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
        yield Window(rows, lines_of(how.name, numbers), blocks.end, text, how.field)


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


def _finite(number: str) -> float:
    """Written again, what is beyond float64 would be `Infinity`, which is no JSON."""
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number:.40} is beyond float64")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _jsonl(blocks: Blocks, how: Reading) -> Iterator[Window]:
    decode = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number).decode
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
                if isinstance(row, dict) and how.field in row:
                    found = f"one that is {type(row[how.field]).__name__}"
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
        yield Window(Rows.of(texts, how.alphabet), lines_of(how.name, numbers), blocks.end, rows, how.field)

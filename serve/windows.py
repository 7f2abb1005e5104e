"""Texts that are answered together, with what they were read with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.serve.blocks import Place
from ohlol.serve.rows import Rows

Skip = Callable[[InputError], None]  # told of a line that cannot be read; raises to stop
Row = dict[str, Any]
ESCAPED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Reading:
    """How a file is read. `name` stands in messages; `field` is the text's field (jsonl) or column (csv, tsv).

    `in_parts`: a long line of text may be given in parts. `judged`: only once all of it is known to be readable.
    `nulls`: the nulls of a Parquet column have null answers; else they are rows that cannot be read.
    """

    name: str
    format: str
    alphabet: Alphabet
    skip: Skip
    field: str = "text"
    max_length: int | None = None
    in_parts: bool = False
    judged: bool = False
    nulls: bool = False


@dataclass(frozen=True)
class Window:
    """Texts that are answered together. `end` is where reading can go on after them.

    `wheres` says where each text stands, as messages name it. `kept` are the rows they are from, or the block of
    text whose lines they are; a reader of other formats has its own subclass. `nulls` are the rows that have no text,
    which are answered as the empty text is, and whose answers are written as null.
    """

    rows: Rows
    wheres: Callable[[int], str]
    end: Place
    kept: Sequence[Row] | str
    field: str
    nulls: frozenset[int] = frozenset()

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
        nulls = frozenset(k for k, number in enumerate(numbers) if number in self.nulls)
        return replace(
            self, rows=rows, wheres=lambda k: self.wheres(numbers[k]), kept=self.kept_of(which), nulls=nulls
        )

    def kept_of(self, which: NDArray[np.int64]) -> Any:
        """`kept` of these rows alone."""
        return [self.records[k] for k in which.tolist()]


def arguments(texts: tuple[str, ...], how: Reading) -> Iterator[Window]:
    """The texts of a command line, which are one window."""
    good = []
    for number, text in enumerate(texts, start=1):
        if escaped(text):
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


def lines_of(name: str, numbers: Sequence[int]) -> Callable[[int], str]:
    """Where the texts of a window stand, which are lines with these numbers."""
    return lambda k: f"{name}:{numbers[k]}"


def escaped(text: str) -> bool:
    """Whether bytes that are no UTF-8 came into the text, as Python lets them through."""
    return not text.isascii() and ESCAPED.search(text) is not None

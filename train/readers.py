"""Readers: a data file in, examples out, mistakes with file, line and reason.

Every format is read with the standard library, line by line. A line ends at `\\n` (a `\\r` before it
is dropped), never at the other characters that `str.splitlines` splits at.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from ohlol.artifacts.alphabet import normalise
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import DataError
from ohlol.train import conllu
from ohlol.train.recipe import Data

MISTAKES_SHOWN = 20
PIECE = 1 << 20  # characters of running text that are read at once
BOM = b"\xef\xbb\xbf"

csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long documents


class Example(NamedTuple):
    """A normalised text and its answer: one label per character (`tag`), one label (`classify`), or ()."""

    text: str
    labels: tuple[str, ...]
    line: int


class Mistakes:
    """The mistakes of one file. Reading goes on after one, so that a person sees them all at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.shown: list[str] = []

    def add(self, line: int, reason: str) -> None:
        self.count += 1
        if len(self.shown) < MISTAKES_SHOWN:
            self.shown.append(f"{self.path}:{line}: {reason}")

    def raise_any(self) -> None:
        if self.count:
            more = self.count - len(self.shown)
            raise DataError("\n".join(self.shown) + (f"\n… and {more} more" if more else ""))


def read(path: Path, data: Data, task: Task) -> list[Example]:
    """All examples of one file (or folder). Raises `DataError` with the mistakes found."""
    return list(examples(path, data, task))


def examples(path: Path, data: Data, task: Task, mistakes: Mistakes | None = None) -> Iterator[Example]:
    """The examples of one file (or folder), as they are read.

    What is wrong with them goes to `mistakes`; where that is None, it is raised at the end. Raises `DataError`.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; the recipe names it. Where the data lies elsewhere, say so with "
            "--data DIR or the variable OHLOL_DATA"
        )
    if path.is_dir() != (data.format == "folder"):
        raise DataError(
            f'{path}: format "{data.format}" expects a {"folder" if data.format == "folder" else "file"}'
        )
    own, count = mistakes or Mistakes(path), 0
    for text, answer, line in _pairs(path, data, task, own):
        example = _example(text, answer, line, data, task, own)
        if example is not None:
            count += 1
            yield example
    if mistakes is None:
        own.raise_any()
        if not count:
            raise DataError(f"{path}: no examples in it")


def read_inline(data: Data, task: Task) -> list[Example]:
    """The examples that stand in the recipe itself. Raises `DataError` with the mistakes found."""
    mistakes = Mistakes(Path("data.rows"))
    pairs = enumerate(data.rows or [], start=1)
    found = [_example(text, answer, number, data, task, mistakes) for number, (text, answer) in pairs]
    mistakes.raise_any()
    return [example for example in found if example is not None]


def running(path: Path, data: Data) -> Iterator[Example]:
    """The normalised text of a file of running text, in pieces that follow each other. Raises `DataError`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; the recipe names it, relative to --data DIR or to the recipe")
    mistakes, found, lines = Mistakes(path), False, []
    size = 0
    for number, line in _lines(path, mistakes, ends=True):
        lines.append(line)
        size += len(line)
        if size > PIECE:  # normalisation never joins what a line's end parts
            yield Example(normalise("".join(lines), data.normalisation), (), number)
            found, lines, size = True, [], 0
    mistakes.raise_any()
    rest = normalise("".join(lines), data.normalisation)
    if rest:
        yield Example(rest, (), 1)
    elif not found:
        raise DataError(f"{path}: empty")


K = TypeVar("K", int, str)

# A text, its answer as it stands in the file, and the line.
Pair = tuple[str, str | list[str], int]


def _pairs(path: Path, data: Data, task: Task, mistakes: Mistakes) -> Iterator[Pair]:
    if data.format == "folder":
        yield from _folder(path, mistakes)
    elif data.format == "conllu":
        yield from conllu.rows(_lines(path, mistakes), data.row, data.normalisation, mistakes.add)
    else:
        reader: Callable[[Path, Data, Task, Mistakes], Iterator[Pair]]
        reader = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}[data.format]
        yield from reader(path, data, task, mistakes)


def _example(
    text: str, answer: str | list[str], line: int, data: Data, task: Task, mistakes: Mistakes
) -> Example | None:
    normal = normalise(text, data.normalisation)
    if not normal:
        mistakes.add(line, "the text is empty")
        return None
    if task == "lm":
        return Example(normal, (), line)
    together = "".join(answer)
    if not together.isascii() and any("\ud800" <= character <= "\udfff" for character in together):
        mistakes.add(line, f"the label {answer!r:.60} holds a lone surrogate, which no UTF-8 file can")
        return None
    if task == "classify":
        if not isinstance(answer, str) or not answer:
            mistakes.add(line, f"the label should be a string, found {answer!r}")
            return None
        return Example(normal, (answer,), line)
    if isinstance(answer, str):
        answer = answer.split(data.label_separator) if data.label_separator else list(answer)
    if len(answer) != len(normal):
        hint = ""
        if len(answer) == len(text):
            hint = (
                f"; they fit the text before {data.normalisation} normalisation: label the normalised text, "
                'or set data.normalisation = "none"'
            )
        mistakes.add(line, f"{len(normal)} characters but {len(answer)} labels{hint}")
        return None
    return Example(normal, tuple(answer), line)


def _lines(path: Path, mistakes: Mistakes, ends: bool = False) -> Iterator[tuple[int, str]]:
    """Every line by its number; with `ends`, what ends a line stays there."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(BOM)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                mistakes.add(number, f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}")
                line = ""  # which every format passes over
            yield number, line if ends else line.removesuffix("\n").removesuffix("\r")


def texts_in(folder: Path) -> list[Path]:
    """The files of a `folder` of texts, one for each label, in the order of their names. Raises `DataError`."""
    files = sorted(file for file in folder.glob("*.txt") if file.is_file())
    for file in files:
        if any("\ud800" <= character <= "\udfff" for character in file.name):
            raise DataError(f"{folder}: the file name {file.name!r} is a label, and is not UTF-8; rename it")
    return files


def _folder(path: Path, mistakes: Mistakes) -> Iterator[Pair]:
    files = texts_in(path)
    if not files:
        raise DataError(f"{path}: no *.txt files in it; expected one for each label, one text a line")
    for file in files:
        own = Mistakes(file)
        for number, line in _lines(file, own):
            if line.strip():
                yield line.strip(), file.stem, number
        mistakes.count += own.count
        mistakes.shown += own.shown[: MISTAKES_SHOWN - len(mistakes.shown)]


def _tsv(path: Path, data: Data, task: Task, mistakes: Mistakes) -> Iterator[Pair]:
    """Columns by number, no header and no quoting: a tab or a newline cannot be inside a field."""
    text_at, label_at = _columns(path, data, task, 0, 1, int)
    for number, line in _lines(path, mistakes):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) <= max(text_at, label_at):
            mistakes.add(
                number, f"{len(fields)} column(s) between tabs, expected {max(text_at, label_at) + 1} or more"
            )
            continue
        yield fields[text_at], fields[label_at], number


def _csv(path: Path, data: Data, task: Task, mistakes: Mistakes) -> Iterator[Pair]:
    """Columns by the names in the first row, fields quoted as in RFC 4180."""
    text_at, label_at = _columns(path, data, task, "text", "label", str)
    reader = csv.reader((line + "\n" for _, line in _lines(path, mistakes)), strict=True)
    line = 1  # the first of the row to come
    try:
        header = next(reader, [])
        for name in (text_at, label_at):
            if name not in header:
                mistakes.raise_any()
                raise DataError(
                    f"{path}:1: no column {name!r}; the header has {', '.join(header) or 'nothing'}"
                )
        line = reader.line_num + 1
        for row in reader:
            first, line = line, reader.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                mistakes.add(first, f"{len(row)} fields, the header has {len(header)}")
                continue
            yield row[header.index(text_at)], row[header.index(label_at)], first
    except csv.Error as error:
        mistakes.add(line, f"not CSV: {error}")


def _jsonl(path: Path, data: Data, task: Task, mistakes: Mistakes) -> Iterator[Pair]:
    """One object a line; for `tag` the label may be a string or a list of strings."""
    text_at, label_at = _columns(path, data, task, "text", "label", str)
    for number, line in _lines(path, mistakes):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            mistakes.add(number, f"not JSON: {error}")
            continue
        if not isinstance(row, dict) or not {text_at, label_at} <= row.keys():
            mistakes.add(number, f"expected an object with {text_at!r} and {label_at!r}")
            continue
        text, answer = row[text_at], row[label_at]
        strings = isinstance(answer, str) or (
            isinstance(answer, list) and all(isinstance(a, str) for a in answer)
        )
        if not isinstance(text, str) or not strings:
            mistakes.add(number, f"{text_at!r} and {label_at!r} should be strings")
            continue
        yield text, answer, number


def _columns(path: Path, data: Data, task: Task, text: K, label: K, kind: type[K]) -> tuple[K, K]:
    """The columns of text and label; without labels (`lm`) the text's column stands for both."""
    text = text if data.text is None else data.text  # type: ignore[assignment]
    label = label if data.label is None else data.label  # type: ignore[assignment]
    for key, value in (("data.text", text), ("data.label", label)):
        if not isinstance(value, kind) or (isinstance(value, int) and value < 0):
            expected = "a column's number, from 0" if kind is int else "a name"
            raise DataError(f"{path}: {key} is {value!r}, format {data.format} expects {expected}")
    return text, text if task == "lm" else label

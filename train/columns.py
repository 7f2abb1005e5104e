"""Which columns of a table are the text and the label, and of which task: guessed from the first rows."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from operator import eq
from statistics import mean, mode
from typing import Any, NamedTuple

from ohlol.artifacts.alphabet import Form, normalise
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import DataError

NEARLY = 0.9  # the share of rows that makes a rule of an observation
TEXTS = frozenset(
    [
        "text",
        "texts",
        "sentence",
        "content",
        "input",
        "name",
        "word",
        "line",
        "string",
        "document",
        "review",
        "question",
    ]
)
LABELS = frozenset(
    [
        "label",
        "labels",
        "tag",
        "tags",
        "class",
        "category",
        "target",
        "output",
        "language",
        "lang",
        "intent",
        "topic",
    ]
)

Column = int | str
Value = str | list[str]
Table = dict[Column, list[Value]]  # the columns, all of one length


class Roles(NamedTuple):
    """What the columns are for, and `why`. `label` is None for `lm`."""

    task: Task
    text: Column
    label: Column | None
    why: str
    separator: str = ""
    normalisation: Form = "NFC"


def table(form: str, lines: Sequence[str]) -> Table:
    """The columns of a TSV, CSV or JSON lines file, without the rows that lack one. Raises `DataError`."""
    if form == "jsonl":
        return _fields(lines)
    if form == "csv":
        header, *rows = csv.reader(line + "\n" for line in lines)
        if len(header) == 1 and (found := next((mark for mark in ";\t|" if mark in header[0]), None)):
            raise DataError(f"expected commas between the columns, found {found!r}; save it with commas")
        if not (rows := [row for row in rows if len(row) == len(header)]):
            raise DataError(f"no rows below the header, {', '.join(header)}")
        return {name: [row[header.index(name)] for row in rows] for name in header}
    rows = [line.split("\t") for line in lines]
    if not rows:
        raise DataError("no rows below the header")
    width = mode(len(row) for row in rows)
    rows = [row for row in rows if len(row) >= width]
    return {k: [row[k] for row in rows] for k in range(width)}


def _fields(lines: Iterable[str]) -> Table:
    """The fields of JSON lines that hold strings or lists of strings in nearly all rows."""
    rows = [row for row in map(_object, lines) if row]
    if not rows:
        raise DataError("no line is a JSON object; expected one a line")
    if wrong := next(
        (name for name, value in rows[0].items() if _is_named(name, LABELS) and not _is_value(value)), None
    ):
        raise DataError(
            f"{wrong!r} is {rows[0][wrong]!r}; expected a string or a list of strings. Put it in quotes"
        )
    count = Counter(name for row in rows for name, value in row.items() if _is_value(value))
    names = [name for name, number in count.items() if number >= NEARLY * len(rows)]
    rows = [row for row in rows if all(_is_value(row.get(name)) for name in names)]
    return {name: [row[name] for row in rows] for name in names}


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}  # which `ohlol train` reports
    return row if isinstance(row, dict) else {}


def _is_value(value: object) -> bool:
    strings = value if isinstance(value, list) else [value]
    return all(isinstance(item, str) for item in strings)


def roles(columns: Table, task: Task | None) -> Roles:
    """The columns' roles, for `task` where one is asked for. Raises `DataError` where none can be found."""
    if task in (None, "tag") and (found := _tagged(columns, sure=task is None)):
        return found
    if task in (None, "classify") and (found := _classified(columns, sure=task is None)):
        return found
    if task in (None, "lm") and (texts := _strings(columns)):
        text = _text_of(columns, texts)
        return Roles("lm", text, None, f"{said(text)} is text, and no column looks like labels of it")
    found_ones = ", ".join(said(name) for name in columns) or "none"
    raise DataError(
        f"no columns for a {task or 'tag, classify or lm'} task; expected {_EXPECTED[task]}, "
        f"found as columns of strings: {found_ones}"
    )


_EXPECTED: dict[Task | None, str] = {
    "tag": "a text and as many labels as it has characters",
    "classify": "a text and a label",
    "lm": "a text",
    None: "at least a text",
}


def _tagged(columns: Table, sure: bool) -> Roles | None:
    """The pair of columns where one has a label for each character of the other."""
    forms: tuple[Form, ...] = ("NFC", "none")
    sizes = {(c, f): [len(normalise(v, f)) for v in columns[c]] for c in _strings(columns) for f in forms}  # type: ignore[arg-type]
    counts = {(c, s): [_labels_in(v, s) for v in columns[c]] for c in columns for s in ("", " ")}
    best: tuple[bool, int, bool, float] = (False, 0, False, 0.0)
    found = None
    for ((text, form), size), ((label, separator), count) in product(sizes.items(), counts.items()):
        share = sum(map(eq, size, count)) / len(size)
        # Texts all of one length fit any label of that length; values that repeat tell of `classify` then.
        chance = len(set(size)) == 1 and (_repeat(columns[text]) or _repeat(columns[label]))
        if text == label or not share or (sure and (share < NEARLY or chance)):
            continue
        named = _is_named(text, TEXTS) + _is_named(label, LABELS)
        fewer = 2 * len(_symbols(columns[label])) <= len(_symbols(columns[text]))
        if (score := (share >= NEARLY, named, fewer, share)) > best:
            best = score
            what = "one character" if isinstance(columns[label][0], str) else "a label"
            what = "a label between spaces" if separator else what
            why = f"{said(label)} has {what} for each character of {said(text)} in {share:.1%} of the rows"
            found = Roles("tag", text, label, why, separator, form)
    return found


def _labels_in(value: Value, separator: str) -> int:
    return len(value.split(separator)) if separator and isinstance(value, str) else len(value)


def fits(text: str, label: Value, roles: Roles) -> bool:
    """Whether there is a label for each character."""
    return len(normalise(text, roles.normalisation)) == _labels_in(label, roles.separator)


def _classified(columns: Table, sure: bool) -> Roles | None:
    """The column with the fewest different values, and the longest of the others."""
    strings = _strings(columns)
    labels = [c for c in strings if not sure or _few(columns[c]) or _is_named(c, LABELS)]
    if not labels or len(strings) < 2:
        return None
    label = min(labels, key=lambda c: (not _is_named(c, LABELS), len(_different(columns[c]))))
    text = _text_of(columns, [c for c in strings if c != label])
    values = columns[label]
    return Roles(
        "classify",
        text,
        label,
        f"{said(label)} has {len(_different(values)):,} different values in {len(values):,} rows",
    )


def _text_of(columns: Table, among: Sequence[Column]) -> Column:
    return max(among, key=lambda c: (_is_named(c, TEXTS), mean(len(value) for value in columns[c])))


def _strings(columns: Table) -> list[Column]:
    return [name for name, values in columns.items() if values and not isinstance(values[0], list)]


def _few(values: Sequence[Value]) -> bool:
    return len(_different(values)) > 1 and _repeat(values)


def _repeat(values: Sequence[Value]) -> bool:
    """Whether each stands there twice or more, on average."""
    return len(_different(values)) <= len(values) / 2


def _different(values: Sequence[Value]) -> set[str]:
    return {str(value) for value in values}


def _symbols(values: Sequence[Value]) -> set[str]:
    return {symbol for value in values for symbol in value}


def _is_named(column: Column | None, names: frozenset[str]) -> bool:
    return isinstance(column, str) and column.lower() in names


def said(column: Column | None) -> str:
    return f"column {column}" if isinstance(column, int) else f"{column!r}"


def are_names(fields: Sequence[str]) -> bool:
    """Whether the first row of a TSV, by what stands there, names the columns instead of filling them."""
    return sum(_is_named(field, TEXTS | LABELS) for field in fields) >= min(2, len(fields))


def is_odd(columns: Table, roles: Roles) -> bool:
    """Whether the first row is unlike the others, and each of its fields could be a name."""
    text, label = str(columns[roles.text][0]), [str(value) for value in columns.get(roles.label or 0, [])]
    if roles.label is None or not all(str(values[0]).isidentifier() for values in columns.values()):
        return False
    if roles.task == "tag":
        return not fits(text, label[0], roles)
    count = Counter(label)
    return count.pop(label[0]) == 1 and min(count.values(), default=0) > 1


def lacks_header(columns: Table, roles: Roles) -> bool:
    """Whether the names of a CSV's columns look like one more row."""
    text, label = str(roles.text), str(roles.label)
    if roles.label is None:
        return False
    if roles.task == "classify":
        return label in columns[roles.label]
    parts = set(label.split(roles.separator) if roles.separator else label)
    known = {part for value in columns[roles.label] for part in (value.split() if roles.separator else value)}  # type: ignore[union-attr]
    return fits(text, label, roles) and parts <= known

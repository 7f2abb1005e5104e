"""`ohlol init`: a recipe written from a look at the data, each key with what it was guessed from."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from ohlol.artifacts.alphabet import normalise
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import DataError
from ohlol.train import columns
from ohlol.train.draft import Draft, Key
from ohlol.train.mistakes import FORMATS_OF
from ohlol.train.readers import BOM, Example, Mistakes, examples, texts_in
from ohlol.train.recipe import Data, Format
from ohlol.train.sizes import ENOUGH, Facts, sizes

LOOK = 20_000_000  # bytes of a file that are looked at
ROWS = 1_000  # that the columns are told apart by
RARE = 10  # rows of a label; of fewer, none may fall to the training part
SUFFIXES: dict[str, Format] = {
    **{".conllu": "conllu", ".tsv": "tsv", ".tab": "tsv"},
    **{".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"},
}
SIBLINGS = {"dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
TRAIN = re.compile(r"(?<![a-zA-Z])train(?![a-zA-Z])")


def guess(path: Path, folder: Path, task: Task | None = None) -> Draft:
    """What a recipe that lies in `folder` should say to train on `path`. Raises `DataError`."""
    path = path if path.name not in ("", "..") else path.resolve()
    lines, share = _head(path)
    form, seen = _format(path, lines)
    if task and form not in FORMATS_OF[task]:
        raise DataError(
            f'{path}: format is "{form}" ({seen}); a {task} task reads {", ".join(FORMATS_OF[task])}. '
            "Name other data or another --task"
        )
    look = _look(path, form, lines, task)
    train, mistakes = _examples(path, look, lines)
    train = [row for row in train if not (look.header and row.line == 1)]
    if not train:
        mistakes.raise_any()
        raise DataError(f"{path}: no examples in it")
    notes = _notes(look, mistakes, len(train), share)
    parts, train, others = _parts(path, folder, look, train, notes)
    facts = Facts.of(train, share, look.task)
    if look.task == "tag" and look.form != "conllu" and {"B"} <= facts.labels.keys() <= set("BIOS"):
        notes.append('if B, I, O, S mark words (docs/format.md), add label_scheme = "words" to [data]')
    has_dev = any(key.name in ("data.dev", "data.split") for key in parts)
    keys = [Key("task.kind", look.task, look.why), Key("data.format", form, seen), *parts, *look.keys]
    keys += _labels(look, facts, others, "data.split" in {key.name for key in parts}, share)
    return Draft(sorted(keys + sizes(look.task, facts, has_dev), key=_section), notes)


def _section(key: Key) -> int:
    return ("task", "data", "model", "train").index(key.name.partition(".")[0])


class Look(NamedTuple):
    """What a file was found to be: its task and why, and the keys by which `readers` read it."""

    form: Format
    task: Task
    why: str
    keys: list[Key]
    header: str = ""  # the first line of a TSV, where it names the columns

    @property
    def data(self) -> Data:
        told = {key.name.removeprefix("data."): key.value for key in self.keys}
        return Data.model_validate({"format": self.form, "train": "", **told})


def _head(path: Path) -> tuple[list[str], float]:
    """The lines of the first `LOOK` bytes, and their share of the file; of a folder, none. Raises `DataError`."""
    if path.is_dir():
        return [], 1.0
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; expected the data to train on")
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(LOOK)
    if b"\0" in raw:
        raise DataError(f"{path}: binary, or not UTF-8 (it has NUL bytes); expected text in UTF-8")
    cut = len(raw) < size
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(raw.removeprefix(BOM), final=not cut)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}; convert it, with "
            "`iconv -t UTF-8 -f` and its encoding, for one"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: empty; expected examples or a text")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if cut and len(lines) > 1:
        lines.pop()  # the rest of it was not read
    return lines, len(raw) / size


def _format(path: Path, lines: list[str]) -> tuple[Format, str]:
    """The format and what tells it. Raises `DataError` where there is none."""
    if path.is_dir():
        return _folder(path)
    if form := SUFFIXES.get(path.suffix.lower()):
        return form, f"the name ends in {path.suffix}"
    full = list(islice((line for line in lines if line.strip()), ROWS))
    token = next((line for line in full if not line.startswith("#")), "").split("\t")
    if len(token) == 10 and re.match(r"1(-\d+)?$", token[0]):
        return "conllu", "lines of 10 columns between tabs, numbered from 1"
    if full[0].startswith("{") and isinstance(_json(full[0]), dict):
        return "jsonl", "a line is a JSON object"
    if path.suffix.lower() == ".json":
        raise DataError(f"{path}: JSON, but not one object a line, which is what is read (jsonl); convert it")
    if all("\t" in line for line in full):
        return "tsv", "each line has columns between tabs"
    return "text", "running text: no columns in it"


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _folder(path: Path) -> tuple[Format, str]:
    texts = texts_in(path)
    files = [f for f in sorted(path.iterdir()) if f.suffix.lower() in SUFFIXES or TRAIN.search(f.stem)]
    if files:
        raise DataError(f"{path}: a folder with data files; name the one to train on, such as {files[0]}")
    if len(texts) < 2:
        found = f"only {texts[0].name!r}" if texts else "none"
        raise DataError(
            f"{path}: expected a folder with a *.txt file for each label, two or more, one text a line; found {found}. "
            "For other data, name the file"
        )
    return "folder", f"a folder of {len(texts):,} *.txt files, whose names are the labels"


def _look(path: Path, form: Format, lines: list[str], task: Task | None) -> Look:
    """The task, and the keys for reading it."""
    if form == "folder":
        return Look(form, "classify", "a folder with a file for each label", [])
    if form == "text":
        return Look(
            form, "lm", "a text without labels", [Key("data.sequence_length", 128, "characters in one row")]
        )
    if form == "conllu":
        return Look(form, "tag", "a treebank marks where words begin and end", [_conllu_row(lines)])
    first, *rest = islice((line for line in lines if line.strip()), ROWS)
    header = first if form == "tsv" and columns.are_names(first.split("\t")) else ""
    try:
        table = columns.table(form, rest if header else [first, *rest])
        roles = columns.roles(table, task)
        if form == "csv" and columns.lacks_header(table, roles):
            raise DataError(
                f"the first row, {first!r}, looks like an example; expected the names of the columns. "
                "Add such a row, text,label for one"
            )
    except (DataError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    if form == "tsv" and not header and columns.is_odd(table, roles):
        header, roles = first, columns.roles(columns.table(form, rest), task)
    keys = [Key("data.text", roles.text, "the column of the text")]
    if roles.label is not None:
        keys.append(Key("data.label", roles.label, "the column of the labels"))
    if roles.separator:
        keys.append(Key("data.label_separator", roles.separator, "between the labels of a row"))
    if roles.normalisation != "NFC":
        keys.append(
            Key("data.normalisation", roles.normalisation, "the labels fit the text as it is, not its NFC")
        )
    return Look(form, roles.task, roles.why, keys, header)


def _conllu_row(lines: list[str]) -> Key:
    """What a row is: paragraphs, or documents, where enough are marked."""
    for mark, row in (("# newpar", "paragraph"), ("# newdoc", "document")):
        if (count := sum(line.startswith(mark) for line in lines)) >= ENOUGH:
            return Key("data.row", row, f"{count:,} `{mark}`: sentences are found too")
    return Key("data.row", "sentence", f"fewer than {ENOUGH} paragraphs or documents are marked")


def _examples(path: Path, look: Look, lines: list[str]) -> tuple[list[Example], Mistakes]:
    """The examples among the lines that were looked at, and the mistakes."""
    mistakes = Mistakes(path)
    if look.form == "text":
        text = normalise("\n".join(lines), look.data.normalisation)
        return [Example(text[k : k + 128], (), 0) for k in range(0, len(text), 128)], mistakes
    found = examples(path, look.data, look.task, mistakes)
    if look.form != "folder":
        found = takewhile(lambda row: row.line <= len(lines), found)
    return list(found), mistakes


def _notes(look: Look, mistakes: Mistakes, rows: int, share: float) -> list[str]:
    notes = []
    if share < 1:
        notes.append(f"only the first {LOOK // 1_000_000} MB were looked at, {share:.1%} of the file")
    shown = mistakes.shown
    if look.header:
        notes.append(
            f"the first line, {look.header!r:.60}, looks like a header, and TSV has none here: delete it"
        )
        shown = [text for text in shown if not text.startswith(f"{mistakes.path}:1:")]
    if shown:
        count = mistakes.count - (len(mistakes.shown) - len(shown))
        notes.append(
            f"{count:,} of {count + rows:,} rows do not fit, and `ohlol train` reports them as "
            f"mistakes: mend or remove them. The first: {shown[0].removeprefix(f'{mistakes.path.parent}/')!r}"
        )
    return notes


def _parts(
    path: Path, folder: Path, look: Look, rows: list[Example], notes: list[str]
) -> tuple[list[Key], list[Example], set[str]]:
    """The keys of train, dev and test; the rows without duplicates where they are split; labels of the other files."""
    keys = [Key("data.train", _relative(path, folder), "relative to this recipe")]
    labels: set[str] = set()
    for part, other in _siblings(path).items():
        keys.append(Key(f"data.{part}", _relative(other, folder), f"lies beside {path.name!r}"))
        found, mistakes = _examples(other, look, _head(other)[0])
        labels |= {label for row in found for label in row.labels}
        if mistakes.count:
            notes.append(f"{other.name!r} has {mistakes.count:,} rows that do not fit")
    if len(keys) > 1:
        if not any(key.name == "data.dev" for key in keys):
            notes.append("there is a test file but no dev file: no epoch can be picked as the best")
        return keys, rows, labels
    unique = rows if look.form == "text" else list({(row.text, row.labels): row for row in rows}.values())
    if len(unique) < ENOUGH:
        notes.append(f"fewer than {ENOUGH} rows: all are to train on, and nothing measures the result")
        return keys, rows, labels
    if len(unique) < len(rows):
        why = f"before splitting: {len(rows) - len(unique):,} of {len(rows):,} rows repeat another"
        keys.append(Key("data.deduplicate", True, why))
    how = "in the order of the text" if look.form == "text" else "drawn by split_seed"
    keys.append(Key("data.split", [0.8, 0.1, 0.1], f"no dev or test file beside it: train, dev, test, {how}"))
    return keys, unique, labels


def _siblings(path: Path) -> dict[str, Path]:
    """The dev and test data that lie beside `path`, by their names."""
    if not TRAIN.search(path.name):
        return {}
    beside = {
        part: [path.with_name(TRAIN.sub(name, path.name)) for name in names]
        for part, names in SIBLINGS.items()
    }
    same = Path.is_dir if path.is_dir() else Path.is_file
    found = {part: next(filter(same, others), None) for part, others in beside.items()}
    return {part: other for part, other in found.items() if other}


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()


def _labels(look: Look, facts: Facts, others: set[str], split: bool, share: float) -> list[Key]:
    """All labels, where the training part alone may lack one. Not if some were not looked at."""
    if look.form == "conllu" or look.task == "lm" or share < 1:
        return []
    every = sorted(facts.labels.keys() | others)
    if missing := len(every) - len(facts.labels):
        return [Key("data.labels", every, f"all of them, for {missing:,} stand in dev or test alone")]
    rarest, count = facts.labels.most_common()[-1]
    if split and count < RARE:
        why = f"all of them, for the training part may lack one: {rarest!r} has {count:,} rows"
        return [Key("data.labels", every, why)]
    return []

"""From the recipe's files to rows of ids: splits, alphabet, labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import unidata_version

import numpy as np

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import DataError
from ohlol.artifacts.files import sha256, sha256_of_file
from ohlol.artifacts.run import Vocabulary
from ohlol.train.batches import Rows, Whole, Windows
from ohlol.train.packed import Examples, Packed, cache_folder, cached, pack
from ohlol.train.readers import Example, Mistakes, examples, read_inline, running, texts_in
from ohlol.train.recipe import Data, Recipe

SPLITS = ("train", "dev", "test")
CACHE_FROM = 64 << 20  # bytes; smaller files are read into memory, in seconds
READING = (
    "format",
    "text",
    "label",
    "label_separator",
    "row",
    "normalisation",
)  # keys that say how a file is read


@dataclass(frozen=True)
class Split:
    """One part of the data: the examples, and the same as rows of ids. `digests` says of which file."""

    examples: Examples
    rows: Rows
    digests: dict[str, Any] = field(default_factory=dict)

    def whole(self) -> Split:
        """The same, running text as one row: training cuts it, what is measured is not cut."""
        spans = self.rows.spans
        if not isinstance(spans, Windows):
            return self
        return replace(self, rows=replace(self.rows, spans=Windows(spans.total, max(spans.total, 1))))


@dataclass(frozen=True)
class Dataset:
    """Everything a run reads. `digests` says which files, for the record; `folder` where they were looked for."""

    vocabulary: Vocabulary
    train: Split
    dev: Split | None
    test: Split | None
    digests: dict[str, Any]
    folder: Path
    empty: tuple[str, ...] = ()  # splits that `data.split` asks for and that came out with no rows

    def repeated(self) -> dict[str, int]:
        """How many rows of dev and test have a text that stands in the train data too."""
        splits = {"dev": self.dev, "test": self.test}
        if isinstance(self.train.rows.spans, Windows):  # one running text
            return {}
        # Hashes, not texts: a split of large data would not fit into memory.
        found = {name: list(map(hash, split.examples.texts())) for name, split in splits.items() if split}
        wanted = {key for own in found.values() for key in own}
        twice = wanted.intersection(map(hash, self.train.examples.texts())) if wanted else set()
        return {name: sum(key in twice for key in own) for name, own in found.items()}


class Part(NamedTuple):
    """The examples of one split, before there is a vocabulary, and the file they are from."""

    examples: Examples
    path: Path


def load(recipe: Recipe, folder: Path, fallback: Path | None = None) -> Dataset:
    """Read the recipe's files, relative to `folder`, or to `fallback` where it has them and `folder` not.

    Raises `DataError` with the mistakes of all files.
    """
    parts, digests = _parts(recipe, folder, fallback)
    if "train" not in parts:
        raise DataError("data.train: missing; this recipe names data to measure by, none to train on")
    vocabulary = _vocabulary(recipe, parts["train"].examples)
    splits = dict(_splits(recipe, vocabulary, parts))
    dev, test = (splits[name].whole() if name in splits else None for name in ("dev", "test"))
    asked = zip(SPLITS, recipe.data.split or (), strict=False)
    empty = tuple(name for name, part in asked if part and name not in splits)
    return Dataset(vocabulary, splits["train"], dev, test, digests, folder, empty)


def load_split(
    recipe: Recipe, vocabulary: Vocabulary, name: str, folder: Path, fallback: Path | None
) -> Split:
    """One split ("train", "dev" or "test") under a vocabulary that stands already."""
    parts, digests = _parts(recipe, folder, fallback, only=name)
    part = parts.get(name)
    if part is None or not len(part.examples):
        raise DataError(
            f"the recipe has no {name} data; set data.{name} or data.split, or name another --split"
        )
    split = dict(_splits(recipe, vocabulary, {name: part}))[name].whole()
    return replace(split, digests=digests)


def data_folders(given: Path | None, recipe_folder: Path) -> tuple[Path, Path | None]:
    """Where data files are looked for: `--data` alone, else beside the recipe, then in `OHLOL_DATA`."""
    if given is not None:
        return given, None
    variable = os.environ.get("OHLOL_DATA")
    return recipe_folder, Path(variable) if variable else None


def _parts(
    recipe: Recipe, folder: Path, fallback: Path | None, only: str | None = None
) -> tuple[dict[str, Part], dict[str, Any]]:
    """The examples of each split there is, and the digests of the files; with `only`, no other file is read."""
    data, task = recipe.data, recipe.task.kind
    if data.format == "none":
        raise DataError(
            'data.format is "none": the weights come from elsewhere, and there is no data to train on or to measure '
            'by; name some in the recipe, such as format = "tsv" and test = "test.tsv"'
        )
    if data.rows is not None:
        rows = pack(read_inline(data, task), task == "classify")
        return {"train": Part(Examples(rows), Path("data.rows"))}, {"train": {"rows": len(rows)}}

    named = {"train": data.train, "dev": data.dev, "test": data.test}
    files = {name: path for name, path in named.items() if path and (data.split or only in (None, name))}
    paths = {name: _find(path, folder, fallback) for name, path in files.items()}
    digests: dict[str, Any] = {
        name: {"path": path, "sha256": _digest(paths[name]), "bytes": _size(paths[name])}
        for name, path in files.items()
    }
    parts, wrong = {}, []
    for name, path in paths.items():
        try:
            # Rows that are drawn, or kept once, are cut after that.
            cut_now = name == "train" and not (data.split or data.deduplicate)
            limit = data.max_length if cut_now else None
            parts[name] = Part(Examples(_packed(path, recipe, digests[name]["sha256"], limit)), path)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(wrong))
    if data.deduplicate:
        parts = {name: Part(_once(part.examples), part.path) for name, part in parts.items()}
    if data.split:
        parts = _divided(parts["train"], recipe)
    if data.max_length and (data.split or data.deduplicate) and "train" in parts and only in (None, "train"):
        drawn = data.model_dump(include={"max_length", "split", "split_seed", "deduplicate"})
        facts, (train, path) = {"sha256": digests["train"]["sha256"], **drawn}, parts["train"]
        parts["train"] = Part(Examples(_kept(train, path, recipe, facts)), path)
    return parts, digests


def _packed(path: Path, recipe: Recipe, digest: str, limit: int | None) -> Packed:
    """The examples of one file: in memory, or in the cache where the file is large."""
    data, task = recipe.data, recipe.task.kind
    found = running(path, data) if data.format == "text" else examples(path, data, task)
    packed = _kept(found, path, recipe, {"sha256": digest, "max_length": limit})
    return packed.as_one() if data.format == "text" else packed


def _kept(found: Iterable[Example], path: Path, recipe: Recipe, facts: dict[str, Any]) -> Packed:
    """Examples of the file `path`, cut where `facts` say so, in memory or in the cache."""
    data, task = recipe.data, recipe.task.kind
    if limit := facts["max_length"]:
        found = (piece for example in found for piece in _pieces(example, limit))
    if _size(path) < CACHE_FROM:
        return pack(found, task == "classify")
    read = {"task": task, "unicode": unidata_version, **data.model_dump(include=set(READING))}
    return cached(found, task == "classify", facts | read, cache_folder())


def _divided(whole: Part, recipe: Recipe) -> dict[str, Part]:
    """`data.split`: running text in its order, other examples as they are drawn."""
    data, (packed, part), path = recipe.data, (whole.examples.packed, whole.examples.part), whole.path
    assert data.split is not None
    if data.format == "text":
        at = [0, *(round(len(packed.codes) * part) for part in np.cumsum(data.split))]
        cuts = zip(SPLITS, at, at[1:], strict=False)
        return {
            name: Part(Examples(packed.stretch(a, b)), path)
            for name, a, b in cuts
            if a < b or name == "train"
        }
    random = np.random.default_rng(data.split_seed)
    order = random.permutation(len(packed) if part is None else part)
    ends = np.round(np.cumsum(data.split) * len(order)).astype(int)
    drawn = (Part(Examples(packed, own), path) for own in np.split(order, ends[:2]))
    parts = dict(zip(SPLITS, drawn, strict=True))
    if not len(parts["train"].examples):
        raise DataError(f"{path}: {len(order)} examples are too few to split by {data.split}")
    return parts


def _splits(recipe: Recipe, vocabulary: Vocabulary, parts: dict[str, Part]) -> Iterator[tuple[str, Split]]:
    """Each part as rows under `vocabulary`. Raises `DataError` with every label that is not in it."""
    wrong = Mistakes(Path())
    for name, part in parts.items():
        if len(part.examples):
            rows = _rows(recipe, vocabulary, part.examples)
            if recipe.task.kind != "lm":
                _check_labels(part, vocabulary, name, wrong)
            if not len(rows):
                raise DataError(f"{name} data: no text of two characters or more, so nothing to predict")
            yield name, Split(part.examples, rows)
    wrong.raise_any()


def _rows(recipe: Recipe, vocabulary: Vocabulary, examples: Examples) -> Rows:
    packed, task = examples.packed, recipe.task.kind
    ids = vocabulary.alphabet.ids(np.arange(packed.highest + 1, dtype=np.int32))
    if task == "lm":
        return Rows(packed, _following(recipe.data, examples), ids, None)
    numbers = {label: number for number, label in enumerate(vocabulary.labels)}
    classes = np.array([numbers.get(label, 0) for label in packed.names], dtype=np.int64)
    return Rows(packed, Whole(packed.offsets, examples.part), ids, classes, per_row=task == "classify")


def _following(data: Data, examples: Examples) -> Whole | Windows:
    """Rows of `lm`: each character's target is the next one; the last character of a row is only a target."""
    packed, part = examples.packed, examples.part
    if data.format == "text":
        return Windows(max(len(packed.codes) - 1, 0), data.sequence_length)
    lengths = np.diff(packed.offsets)
    long = np.flatnonzero(lengths > 1)
    if part is None and len(long) == len(packed):
        return Whole(packed.offsets, shorter=1)
    return Whole(packed.offsets, long if part is None else part[lengths[part] > 1], 1)


def _check_labels(part: Part, vocabulary: Vocabulary, name: str, wrong: Mistakes) -> None:
    unknown = set(part.examples.packed.names) - set(vocabulary.labels)
    if not unknown:
        return
    known = ", ".join(vocabulary.labels[:20])
    for example in part.examples:
        if label := next((label for label in example.labels if label in unknown), None):
            wrong.path = part.path
            wrong.add(
                example.line,
                f"{name} data has the label {label!r}, which is not one of {known}; list every label in "
                "data.labels, or mend the data",
            )


def _vocabulary(recipe: Recipe, train: Examples) -> Vocabulary:
    data, packed = recipe.data, train.packed
    if data.alphabet is not None:
        alphabet = Alphabet(data.alphabet, data.normalisation)
    else:
        counts = train.counts(packed.codes, packed.highest + 1)
        often = {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}
        alphabet = Alphabet.of(often, data.normalisation, data.min_count)
    if recipe.task.kind == "lm":
        return Vocabulary(alphabet, (), None)
    if recipe.label_scheme:
        labels: Sequence[str] = words.LABELS
    elif data.labels is not None:
        labels = data.labels
    elif train.part is None:
        labels = sorted(packed.names)
    else:
        counts = train.counts(packed.labels, len(packed.names))
        labels = sorted(packed.names[k] for k in np.flatnonzero(counts))
    return Vocabulary(alphabet, tuple(labels), recipe.label_scheme)


def _once(examples: Examples) -> Examples:
    """The first of each pair of text and labels."""
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for number, example in enumerate(examples):
        first.setdefault((example.text, example.labels), number)
    return Examples(examples.packed, np.array(sorted(first.values()), dtype=np.int64))


def _find(path: str, folder: Path, fallback: Path | None) -> Path:
    if fallback is not None and not (folder / path).exists() and (fallback / path).exists():
        return fallback / path
    return folder / path


def _digest(path: Path) -> str:
    if path.is_dir():
        return sha256("".join(f"{f.name} {sha256_of_file(f)}\n" for f in texts_in(path)).encode())
    return sha256_of_file(path) if path.is_file() else ""


def _size(path: Path) -> int:
    files = texts_in(path) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _pieces(example: Example, limit: int) -> Iterator[Example]:
    """A long row in pieces of at most `limit` characters, cut before a word where there is one."""
    text, labels, line = example
    while len(text) > limit:
        cut = text.rfind(" ", limit // 2, limit) + 1 or limit
        yield Example(text[:cut], labels[:cut], line)
        text, labels = text[cut:], labels[cut:]
    yield Example(text, labels, line)

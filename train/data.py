"""From the recipe's files to packed rows of ids: splits, alphabet, labels, batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import DataError
from ohlol.artifacts.files import sha256, sha256_of_file
from ohlol.artifacts.run import Vocabulary
from ohlol.train.readers import Example, read, read_inline, read_whole, texts_in
from ohlol.train.recipe import Recipe

IGNORE = -100  # the target of padding; torch's cross entropy leaves it out
SPLITS = ("train", "dev", "test")
BUCKET = 50  # batches in one window of rows that are sorted by length


class Batch(NamedTuple):
    """`ids (B, T) int64`, `lengths (B,) int64`, `targets (B, T) int64` or, for `classify`, `(B,)`."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of different lengths, end to end: row r is `ids[offsets[r] : offsets[r + 1]]`.

    `targets` has one entry per id (`tag`, `lm`) or, where `per_row`, one per row (`classify`).
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]
    per_row: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The rows of `index (B,)`, padded to the longest of them."""
        lengths = self.lengths[index]
        inside = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        where = (self.offsets[index][:, None] + np.arange(lengths.max()))[inside]
        ids = np.zeros(inside.shape, dtype=np.int64)
        ids[inside] = self.ids[where]
        if self.per_row:
            return Batch(ids, lengths, self.targets[index])
        targets = np.full(inside.shape, IGNORE, dtype=np.int64)
        targets[inside] = self.targets[where]
        return Batch(ids, lengths, targets)

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of one epoch, as row numbers: random, rows of like length together.

        The same `seed` and `epoch` give the same batches.
        """
        random = np.random.default_rng([seed, epoch])
        order, lengths = random.permutation(len(self)), self.lengths
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), batch_size * BUCKET):
            window = order[start : start + batch_size * BUCKET]
            batches += _cut(window[np.argsort(lengths[window], kind="stable")], batch_size)
        return [batches[k] for k in random.permutation(len(batches))]

    def in_order(self, batch_size: int) -> list[NDArray[np.int64]]:
        """Batches over every row once, from short to long."""
        return _cut(np.argsort(self.lengths, kind="stable"), batch_size)


@dataclass(frozen=True)
class Split:
    """One part of the data: the examples, and the same as rows of ids."""

    examples: Sequence[Example]
    rows: Rows


@dataclass(frozen=True)
class Dataset:
    """Everything a run reads. `digests` says which files, for the record; `folder` where they were looked for."""

    vocabulary: Vocabulary
    train: Split
    dev: Split | None
    test: Split | None
    digests: dict[str, Any]
    folder: Path


def load(recipe: Recipe, folder: Path, fallback: Path | None = None) -> Dataset:
    """Read the recipe's files, relative to `folder`, or to `fallback` where it has them and `folder` not."""
    limit = recipe.data.max_length
    examples, digests = _examples(recipe, folder, fallback)
    if "train" not in examples:
        raise DataError("data.train: missing; this recipe names data to measure by, none to train on")
    if limit:
        examples["train"] = [piece for example in examples["train"] for piece in _pieces(example, limit)]
    vocabulary = _vocabulary(recipe, examples["train"])
    train, dev, test = (
        Split(part, _rows(part, vocabulary, recipe.task.kind, name)) if (part := examples.get(name)) else None
        for name in SPLITS
    )
    if train is None:
        raise DataError("train data: no text of two characters or more, so nothing to predict")
    return Dataset(vocabulary, train, dev, test, digests, folder)


def load_split(
    recipe: Recipe, vocabulary: Vocabulary, name: str, folder: Path, fallback: Path | None
) -> Split:
    """One split ("train", "dev" or "test") under a vocabulary that stands already."""
    examples = _examples(recipe, folder, fallback, only=name)[0].get(name)
    if not examples:
        raise DataError(
            f"the recipe has no {name} data; set data.{name} or data.split, or name another --split"
        )
    return Split(examples, _rows(examples, vocabulary, recipe.task.kind, name))


def data_folders(given: Path | None, recipe_folder: Path) -> tuple[Path, Path | None]:
    """Where data files are looked for: `--data` alone, else beside the recipe, then in `OHLOL_DATA`."""
    if given is not None:
        return given, None
    variable = os.environ.get("OHLOL_DATA")
    return recipe_folder, Path(variable) if variable else None


def _examples(
    recipe: Recipe, folder: Path, fallback: Path | None, only: str | None = None
) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """The examples of each split there is, and the digests of the files; with `only`, no other file is read."""
    data, task = recipe.data, recipe.task.kind
    if data.format == "none":
        raise DataError(
            'data.format is "none": the weights come from elsewhere, and there is no data to train on or to measure '
            'by; name some in the recipe, such as format = "tsv" and test = "test.tsv"'
        )
    if data.rows is not None:
        train = read_inline(data, task)
        return {"train": train}, {"train": {"rows": len(train)}}

    named = {"train": data.train, "dev": data.dev, "test": data.test}
    files = {name: path for name, path in named.items() if path and (data.split or only in (None, name))}
    paths = {name: _find(path, folder, fallback) for name, path in files.items()}
    digests = {name: {"path": path, "sha256": _digest(paths[name])} for name, path in files.items()}
    if data.format == "text":
        texts = {name: read_whole(path, data) for name, path in paths.items()}
        if data.split:
            texts = dict(zip(SPLITS, _cut_text(texts["train"], data.split), strict=True))
        return {name: _windows(text, data.sequence_length) for name, text in texts.items()}, digests

    examples = {name: read(path, data, task) for name, path in paths.items()}
    if data.deduplicate:
        examples = {name: _unique(part) for name, part in examples.items()}
    if data.split:
        whole = examples["train"]
        order = np.random.default_rng(data.split_seed).permutation(len(whole))
        ends = np.round(np.cumsum(data.split) * len(whole)).astype(int)
        parts = np.split(order, ends[:2])
        if not len(parts[0]):
            raise DataError(f"{paths['train']}: {len(whole)} examples are too few to split by {data.split}")
        examples = {name: [whole[k] for k in part] for name, part in zip(SPLITS, parts, strict=True)}
    return examples, digests


def _find(path: str, folder: Path, fallback: Path | None) -> Path:
    if fallback is not None and not (folder / path).exists() and (fallback / path).exists():
        return fallback / path
    return folder / path


def _digest(path: Path) -> str:
    if path.is_dir():
        return sha256("".join(f"{f.name} {sha256_of_file(f)}\n" for f in texts_in(path)).encode())
    return sha256_of_file(path) if path.is_file() else ""


def _unique(examples: list[Example]) -> list[Example]:
    return list({(example.text, example.labels): example for example in reversed(examples)}.values())[::-1]


def _cut_text(text: str, parts: Sequence[float]) -> list[str]:
    ends = [round(len(text) * part) for part in np.cumsum(parts)]
    return [text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]]


def _windows(text: str, length: int) -> list[Example]:
    """Rows of `length` characters and the one that follows, which begins the next row too."""
    return [Example(text[k : k + length + 1], (), 0) for k in range(0, len(text) - 1, length)]


def _pieces(example: Example, limit: int) -> Iterator[Example]:
    """A long row in pieces of at most `limit` characters, cut before a word where there is one."""
    text, labels, line = example
    while len(text) > limit:
        cut = text.rfind(" ", limit // 2, limit) + 1 or limit
        yield Example(text[:cut], labels[:cut], line)
        text, labels = text[cut:], labels[cut:]
    yield Example(text, labels, line)


def _vocabulary(recipe: Recipe, train: Sequence[Example]) -> Vocabulary:
    data = recipe.data
    if data.alphabet is not None:
        alphabet = Alphabet(data.alphabet, data.normalisation)
    else:
        # A window of running text begins with the last character of the one before.
        again = 1 if data.format == "text" else 0
        texts = (example.text[again if number else 0 :] for number, example in enumerate(train))
        alphabet = Alphabet.of(texts, data.normalisation, data.min_count)
    if recipe.task.kind == "lm":
        return Vocabulary(alphabet, (), None)
    if recipe.label_scheme:
        labels: Sequence[str] = words.LABELS
    elif data.labels is not None:
        labels = data.labels
    else:
        labels = sorted({label for example in train for label in example.labels})
    return Vocabulary(alphabet, tuple(labels), recipe.label_scheme)


def _rows(examples: Sequence[Example], vocabulary: Vocabulary, task: str, name: str) -> Rows:
    if task == "lm":
        return _lm_rows(examples, vocabulary.alphabet, name)
    numbers = {label: number for number, label in enumerate(vocabulary.labels)}
    try:
        targets = [numbers[label] for example in examples for label in example.labels]
    except KeyError:
        example, label = next((e, la) for e in examples for la in e.labels if la not in numbers)
        known = ", ".join(vocabulary.labels[:20])
        raise DataError(
            f"{name} data, line {example.line}: label {label!r} is not one of {known}; "
            "list every label in data.labels, or mend the data"
        ) from None
    ids = vocabulary.alphabet.encode("".join(example.text for example in examples))
    offsets = _offsets(len(e.text) for e in examples)
    return Rows(ids, offsets, np.array(targets, dtype=np.int64), per_row=task == "classify")


def _lm_rows(examples: Sequence[Example], alphabet: Alphabet, name: str) -> Rows:
    """Each character's target is the next one; the last character of a row is only a target."""
    texts = [example.text for example in examples if len(example.text) > 1]
    if not texts:
        raise DataError(f"{name} data: no text of two characters or more, so nothing to predict")
    ids = alphabet.encode("".join(text[:-1] for text in texts))
    targets = alphabet.encode("".join(text[1:] for text in texts))
    return Rows(ids, _offsets(len(text) - 1 for text in texts), targets)


def _offsets(lengths: Iterator[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.fromiter(lengths, dtype=np.int64))))


def _cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]

"""What a training would be, without training: sizes, what is odd about the data, and how long it would take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ohlol.artifacts.alphabet import UNKNOWN
from ohlol.train.data import Dataset, Split
from ohlol.train.evaluate import evaluate_network
from ohlol.train.progress import Progress, duration, short
from ohlol.train.ranks import ranks
from ohlol.train.recipe import Recipe
from ohlol.train.training import Training

ENOUGH = 3.0  # seconds of steps that are timed
ROWS = 10_000  # of a split in which unknown characters are counted


class Clock(Progress):
    """Asks to stop after enough seconds of steps. The first one, which allocates memory, is not counted."""

    def __init__(self) -> None:
        self.characters = 0
        self.began: float | None = None
        self.seconds = 0.0

    def step(self, characters: int, loss: float) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began = now
            return
        self.characters += characters
        self.seconds = now - self.began

    def enough(self) -> bool:
        return self.seconds > ENOUGH


def summary(data: Dataset) -> Iterator[str]:
    """What was read, and what is odd about it."""
    splits = {"train": data.train, "dev": data.dev, "test": data.test}
    sizes = ", ".join(f"{len(split.rows):,} {name}" for name, split in splits.items() if split)
    characters, labels = len(data.vocabulary.alphabet.characters), len(data.vocabulary.labels)
    yield f"{sizes} rows; {characters:,} characters, {labels:,} labels"
    for name in data.empty:
        yield f"note: data.split leaves no {name} rows; give it a larger part"
    for name, count in data.repeated().items():
        if count:
            rows = len(splits[name].examples)  # type: ignore[union-attr]
            yield f"note: {count:,} of {rows:,} {name} rows have a text that stands in the train data too"


def look(recipe: Recipe, data: Dataset, device: str = "auto") -> Iterator[str]:
    """Sizes and the estimated time, line by line. Steps are tried for some seconds; nothing is kept.

    Raises what `train` would before its first epoch, and at a loss that is not a number.
    """
    for name, split in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        if split is not None:
            yield f"{name:<5}  {_figures(split)}"
    with tempfile.TemporaryDirectory() as folder, ranks(device) as mine:
        training = Training(recipe, data, Path(folder), mine, resume=False)
        parameters = sum(weight.numel() for weight in training.optimiser.parameters)
        yield f"{parameters:,} parameters, {parameters * 4 / 1e6:.2f} MB; {training.batches:,} steps an epoch"
        if not recipe.train.epochs:
            return
        clock = Clock()
        while training.epoch(clock, clock.enough) and not clock.enough():  # of a small data set many times
            training.state.epoch, training.state.step = training.state.epoch + 1, 0
        speed = clock.characters / clock.seconds
        seconds = data.train.rows.characters / speed
        if data.dev is not None:
            began = time.monotonic()
            evaluate_network(training.network, data.dev, data.vocabulary, mine.device)
            seconds += time.monotonic() - began
        epochs = recipe.train.epochs
        yield (
            f"{short(speed)} chars/s on {mine.device}: about {duration(seconds)} an epoch, {duration(seconds * epochs)} for "
            f"{epochs}{', early stopping aside' if recipe.train.early_stopping else ''}"
        )


def _figures(split: Split) -> str:
    rows = split.rows
    lengths = rows.lengths
    some = np.random.default_rng(0).permutation(len(rows))[:ROWS]
    seen = unknown = 0
    for number in some:
        ids = rows.batch(np.array([number])).ids
        seen, unknown = seen + ids.size, unknown + int((ids == UNKNOWN).sum())
    return (
        f"{len(rows):,} rows, {int(lengths.sum()):,} characters ({int(np.median(lengths)):,} in the middle row, "
        f"{int(lengths.max()):,} in the longest), {unknown / max(seen, 1):.2%} unknown"
    )

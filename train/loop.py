"""The training loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ohlol.artifacts import run
from ohlol.artifacts.files import new_file
from ohlol.train.checkpoint import State, load_weights
from ohlol.train.data import Dataset
from ohlol.train.evaluate import evaluate_network
from ohlol.train.guards import alone, is_there, may_begin, may_resume, other_versions, stop_requested, writing
from ohlol.train.metrics import Metrics
from ohlol.train.network import Network
from ohlol.train.progress import Progress
from ohlol.train.ranks import ranks
from ohlol.train.recipe import Recipe
from ohlol.train.training import Training


@dataclass
class Run:
    """A training run that has ended. `interrupted` is true where Ctrl-C or SIGTERM ended it.

    `first` is false in all but one of several processes that trained it together.
    """

    folder: Path
    network: Network
    state: State
    interrupted: bool
    first: bool = True


def train(
    recipe: Recipe,
    data: Dataset,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    after_epoch: Callable[[Network, dict[str, Any]], None] | None = None,
) -> Run:
    """Train `recipe` on `data` and leave a run in `folder`; with `resume`, go on where one stands.

    `device` is "auto" or torch's name of one. `after_epoch` sees the network and the epoch's record.
    Raises `RecipeError`, `CheckpointError` (resuming with another recipe or other data, a folder that
    holds a run, or that another process trains into) and `TrainingError` (a loss that is not a number, a
    disk that is full).
    """
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        mine = stack.enter_context(ranks(device))
        still_there = None
        if mine.first:
            if resume:
                is_there(folder)
            still_there = stack.enter_context(alone(folder))
            may_resume(recipe, data, folder) if resume else may_begin(folder)
        mine.told(None)  # the others begin once the first one has looked
        training = Training(recipe, data, folder, mine, resume, still_there)
        progress = (progress if mine.first else None) or Progress()
        progress.state, progress.steps = training.state, training.batches
        progress.start(recipe.train.epochs, training.state.epoch, data.train.rows.characters)
        if changed := other_versions(training.state):
            progress.note(f"{'; '.join(changed)}: from here on the bits may differ from those of one go")
        stop = stack.enter_context(stop_requested())
        stack.enter_context(progress)
        while training.state.epoch < recipe.train.epochs and not _enough(recipe, training.state):
            if not training.epoch(progress, stop):
                return _ended(training, interrupted=True)
            record = training.record()
            progress.epoch(record, best=training.state.best_epoch == training.state.epoch)
            if after_epoch is not None and mine.first:
                after_epoch(training.network, record)
            training.optimiser.swap()
            if mine.told(stop()):
                return _ended(training, interrupted=training.state.epoch < recipe.train.epochs)
        return _ended(training, interrupted=False)


def _enough(recipe: Recipe, state: State) -> bool:
    patience = recipe.train.early_stopping
    return patience > 0 and state.best_value is not None and state.epoch - state.best_epoch >= patience


def _ended(training: Training, interrupted: bool) -> Run:
    training.mine.told(None)  # what the first process saved is there
    return Run(training.folder, training.network, training.state, interrupted, training.mine.first)


def finish(ended: Run, data: Dataset) -> dict[str, Metrics]:
    """The best checkpoint's metrics on dev and test (on train where there is neither), kept in the run."""
    load_weights(ended.network, run.checkpoint(ended.folder, run.Layout.best))
    device = next(ended.network.parameters()).device
    splits = {"dev": data.dev, "test": data.test} if data.dev or data.test else {"train": data.train.whole()}
    results = {
        name: evaluate_network(ended.network, split, data.vocabulary, device)
        for name, split in splits.items()
        if split is not None
    }
    with writing(ended.folder), new_file(ended.folder / run.Layout.results) as file:
        file.write(json.dumps(results, indent=2) + "\n")
    return results

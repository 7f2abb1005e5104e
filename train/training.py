"""A run on its way: steps, epochs, and what is kept of them."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ohlol.artifacts import run
from ohlol.artifacts.errors import RecipeError, TrainingError
from ohlol.artifacts.files import new_file
from ohlol.train.batches import BUCKET, IGNORE, Batch, Rows, ahead
from ohlol.train.checkpoint import (
    Carried,
    State,
    load_last,
    new_network,
    save_last,
    save_metrics,
    save_weights,
)
from ohlol.train.data import Dataset
from ohlol.train.evaluate import evaluate_network
from ohlol.train.guards import versions
from ohlol.train.metrics import better
from ohlol.train.optimise import Optimiser
from ohlol.train.progress import Progress
from ohlol.train.ranks import Ranks
from ohlol.train.recipe import Recipe, Train

KEPT_EVERY = 300.0  # seconds, in a long epoch
CHECKED = 10  # steps after which a GPU is asked for the losses: each question makes it wait


class Training:
    """A run on its way: the network, its optimiser, and where it stands."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        folder: Path,
        mine: Ranks,
        resume: bool,
        still_there: Callable[[], None] | None = None,
    ) -> None:
        """`still_there` raises where the folder is no longer this training's."""
        self.still_there = still_there
        self.recipe, self.data, self.folder, self.mine = recipe, data, folder, mine
        settings = recipe.train
        if settings.precision != "float32" and mine.device.type != "cuda":
            raise RecipeError(
                f'train.precision: "{settings.precision}" needs a GPU, this is {mine.device}; set "float32"'
            )
        self.batches = _batches_in(recipe, data.train.rows)
        if settings.carry_state and settings.batch_size < mine.world:
            raise RecipeError(
                f"train.batch_size: {settings.batch_size} streams are too few for {mine.world} processes; start fewer"
            )
        torch.manual_seed(settings.seed)
        self.network = new_network(recipe, data.vocabulary).to(mine.device)
        self.optimiser = Optimiser(self.network, settings, settings.epochs * self.batches)
        self.dropouts = self.network.dropouts
        self.carried: Carried = None
        self.kept = time.monotonic()
        self.class_weights = _class_weights(settings, data)
        weights = self.class_weights
        self.weights = None if weights is None else torch.from_numpy(weights).to(mine.device)
        if resume:
            self.state, carried = load_last(self.network, self.optimiser, folder)
            run.checkpoint(folder, run.Layout.best)  # must be there: this run may not better it
            if carried is not None:
                self.carried = [[part[:, mine.ours].to(mine.device) for part in own] for own in carried]
        else:
            where = str(data.folder.resolve())
            self.state = State(digests=data.digests, versions=versions(), data_folder=where)
            if mine.first:
                self.optimiser.swap()
                self._save(best=True)
                self.optimiser.swap()
        if mine.first:
            _describe(recipe, data, self.state, folder)

    def epoch(self, progress: Progress, stop: Callable[[], bool]) -> bool:
        """Train to the epoch's end; False where it was stopped before, and all of it is kept."""
        state, began = self.state, time.monotonic()
        waiting: list[tuple[Tensor, float]] = []
        self.network.train()
        for batch in self._read():
            loss, weight, asked, late = self._step(batch, stop)
            waiting.append((loss, weight))
            state.step += 1
            due = len(waiting) == (CHECKED if self.mine.device.type == "cuda" else 1)
            if due or late or state.step == self.batches:
                self._check(waiting)
                waiting = []
            progress.step(int(batch.lengths.sum()), state.loss / max(state.weight, 1))
            if asked or (self.mine.world == 1 and stop()):
                break
            if late:
                state.seconds, began = state.seconds + time.monotonic() - began, time.monotonic()
                self._keep()
        self._check(waiting)
        state.seconds += time.monotonic() - began
        self._check_weights()
        if state.step < self.batches:
            self._keep()
            return False
        return True

    def record(self) -> dict[str, Any]:
        """The finished epoch's line of `metrics.jsonl`, written with its checkpoint. Weights and mean are exchanged."""
        state, data, network = self.state, self.data, self.network
        self.optimiser.swap()
        record: dict[str, Any] = {"epoch": state.epoch + 1, "loss": state.loss / max(state.weight, 1)}
        if self.optimiser.varies:
            record["learning_rate"] = self.optimiser.learning_rate(
                state.epoch * self.batches + state.step - 1
            )
        if data.dev is not None and self.mine.first:
            metrics = evaluate_network(network, data.dev, data.vocabulary, self.mine.device)
            record |= {f"dev_{name}": value for name, value in metrics.items()}
        record = self.mine.told(record)
        state.epoch, state.step, state.loss, state.weight = state.epoch + 1, 0, 0.0, 0
        self.carried, self.kept = None, time.monotonic()
        state.history.append(record)
        watched = record.get(f"dev_{self.recipe.monitor}")
        best = watched is None or better(self.recipe.monitor, watched, state.best_value)
        if best:
            state.best_epoch, state.best_value = state.epoch, watched
        if self.mine.first:
            self._save(best)
        return record

    def _keep(self) -> None:
        """Write `last/` in the middle of an epoch."""
        self._check_weights()
        carried = self._all_carried()
        if self.mine.first:
            self.optimiser.swap()
            self._save(carried=carried)
            self.optimiser.swap()
        self.kept = time.monotonic()

    def _save(self, best: bool = False, carried: Carried = None) -> None:
        """Write `last/`, and `best/` before it; weights and mean are exchanged."""
        if self.still_there is not None:
            self.still_there()
        if best:
            save_weights(self.network, self.folder / run.Layout.best)
        save_last(self.network, self.optimiser, self.state, self.folder, carried)

    def _read(self) -> Iterator[Batch]:
        """The rest of the epoch's batches; where there are many, read while others are trained on."""
        rows, settings, state = self.data.train.rows, self.recipe.train, self.state
        order = settings.seed, state.epoch, state.step
        if settings.carry_state:
            batches = rows.streams(settings.batch_size, self.recipe.data.sequence_length, *order)
        else:
            batches = rows.shuffled(settings.batch_size, *order)
        return ahead(batches) if self.batches > BUCKET else batches

    def _step(self, batch: Batch, stop: Callable[[], bool]) -> tuple[Tensor, float, bool, bool]:
        """One step on a batch: its loss, over how many answers; is training to stop, is it time to save?"""
        mine, state, weight = self.mine, self.state, self._weight(batch)
        if self.dropouts:  # from the step's own seed, so that resuming needs no generator's state
            torch.manual_seed(_mixed(self.recipe.train.seed, state.epoch, state.step))
        own = batch.part(mine.ours) if mine.world > 1 else batch
        loss = torch.zeros((), device=mine.device)
        if len(own.lengths):
            for dropout in self.dropouts if mine.world > 1 else ():
                dropout.batch = len(batch.lengths), mine.ours
            loss = self._loss(own) / weight
            loss.backward()  # type: ignore[no-untyped-call]
        asked, late = False, time.monotonic() - self.kept > KEPT_EVERY
        if mine.world > 1:  # what one process is asked, all do, at the same step
            told = torch.tensor([float(stop()), float(late)], device=mine.device)
            loss = loss.detach()
            mine.sum([loss, told, *self.optimiser.gradients()])
            asked, late = (bool(number) for number in told)
        self.optimiser.step(state.epoch * self.batches + state.step)
        return loss.detach(), weight, asked, late

    def _loss(self, batch: Batch) -> Tensor:
        """The cross entropy, summed over the answers of a batch."""
        settings, device = self.recipe.train, self.mine.device
        ids, lengths, targets = (torch.from_numpy(array).to(device) for array in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            if settings.carry_state:
                logits, self.carried = self.network.carry(ids, self.carried)
            else:
                logits = self.network(ids, lengths)  # (B, T, C) or (B, C)
            return functional.cross_entropy(
                logits.flatten(0, -2), targets.flatten(), self.weights,
                ignore_index=IGNORE, reduction="sum", label_smoothing=settings.label_smoothing,
            )  # fmt: skip

    def _weight(self, batch: Batch) -> float:
        """What the loss of a whole batch is divided by: the answers it is over (1 where it is their sum)."""
        if self.recipe.train.loss == "sum":
            return 1.0
        if self.class_weights is None:
            return float((batch.targets != IGNORE).sum())
        return float(self.class_weights[batch.targets[batch.targets != IGNORE]].sum())

    def _check(self, waiting: list[tuple[Tensor, float]]) -> None:
        """Add up the losses of the last steps. Raises `TrainingError` at the first that is not a number."""
        if not waiting:
            return
        values = torch.stack([loss for loss, _ in waiting]).tolist()
        for back, (value, (_, weight)) in enumerate(zip(values, waiting, strict=True)):
            if not math.isfinite(value):
                raise self._diverged(f"the loss is {value}", self.state.step - len(waiting) + back + 1)
            self.state.loss += value * weight
            self.state.weight += weight

    def _check_weights(self) -> None:
        """A step can overflow after its loss was looked at; such weights are never saved."""
        if not all(weight.isfinite().all() for weight in self.network.parameters()):
            raise self._diverged("a weight is not finite", self.state.step)

    def _all_carried(self) -> Carried:
        """The state carried in the rows of all processes."""
        if self.carried is None or self.mine.world == 1:
            return self.carried
        whole = [
            [p.new_zeros(p.shape[0], self.recipe.train.batch_size, p.shape[2]) for p in own]
            for own in self.carried
        ]
        for zeros, own in zip(whole, self.carried, strict=True):
            for zero, part in zip(zeros, own, strict=True):
                zero[:, self.mine.ours] = part
            self.mine.sum(zeros)
        return whole

    def _diverged(self, what: str, step: int) -> TrainingError:
        rate = self.optimiser.learning_rate(self.state.epoch * self.batches + step - 1)
        return TrainingError(
            f"epoch {self.state.epoch + 1}, step {step}: {what}, with learning rate {rate:g}; the last good "
            f"checkpoint, of epoch {self.state.epoch}, is in {self.folder}. Try a smaller train.learning_rate, or set "
            "train.clip_norm, such as 1.0"
        )


def _batches_in(recipe: Recipe, rows: Rows) -> int:
    """Batches in an epoch. Raises `RecipeError` where a text is too short for its streams."""
    settings, length = recipe.train, recipe.data.sequence_length
    if not settings.carry_state:
        return rows.batches_in(settings.batch_size)
    count = rows.streams_in(settings.batch_size, length)
    if not count:
        raise RecipeError(
            f"train.carry_state: the training text has {rows.characters + 1:,} characters, too few for "
            f"{settings.batch_size} streams (train.batch_size) of {length} (data.sequence_length); lower one of the two"
        )
    return count


def _class_weights(settings: Train, data: Dataset) -> NDArray[np.float32] | None:
    """Weights `(C,)`: N / (C · n) for a label that is n of N answers, to the power `class_weights`.

    A power of 1 is what scikit-learn calls "balanced". A label that never occurs has 0, and is not among the C.
    """
    if not settings.class_weights:
        return None
    rows, examples = data.train.rows, data.train.examples
    assert rows.classes is not None  # an lm has no class weights
    by_name = examples.counts(rows.packed.labels, len(rows.packed.names))
    counts = np.bincount(rows.classes, by_name, len(data.vocabulary.labels))
    occurs = counts > 0
    counts[occurs] = (counts.sum() / (occurs.sum() * counts[occurs])) ** settings.class_weights
    return counts.astype(np.float32)


def _mixed(seed: int, epoch: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])


def _describe(recipe: Recipe, data: Dataset, state: State, folder: Path) -> None:
    """What makes the folder a run, written once there is a checkpoint; a resumed run may have more epochs.

    The recipe comes last: where it stands, all of the run does.
    """
    for stale in folder.glob(".*.part"):  # of a process that was killed
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    data.vocabulary.save(folder)
    save_metrics(state, folder)  # a process killed before it could has left those of the epoch before
    with new_file(folder / run.Layout.recipe) as file:
        file.write(recipe.to_toml())

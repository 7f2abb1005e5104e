"""The training loop."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ohlol.artifacts import run
from ohlol.artifacts.errors import CheckpointError, RecipeError, TrainingError
from ohlol.artifacts.files import new_file
from ohlol.train.checkpoint import (
    State,
    load_last,
    load_state,
    load_weights,
    new_network,
    save_last,
    save_weights,
)
from ohlol.train.data import IGNORE, Batch, Dataset
from ohlol.train.evaluate import evaluate_network
from ohlol.train.metrics import Metrics, better
from ohlol.train.network import Network
from ohlol.train.progress import Progress
from ohlol.train.recipe import Recipe

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
MAY_CHANGE = ("train.epochs", "train.early_stopping")  # of a recipe, when a run is resumed


@dataclass
class Run:
    """A training run that has ended. `interrupted` is true where Ctrl-C or SIGTERM ended it."""

    folder: Path
    network: Network
    state: State
    interrupted: bool


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
    Raises `RecipeError`, `CheckpointError` (resuming with another recipe or other data, or a folder
    that holds a run) and `TrainingError` (a loss that is not a number).
    """
    where = torch.device(_device(device))
    if resume:
        _same(recipe, data, folder)
    else:
        _may_begin(folder)
    progress = progress or Progress()
    torch.manual_seed(recipe.train.seed)
    network = new_network(recipe, data.vocabulary).to(where)
    settings = recipe.train
    optimizer = OPTIMIZERS[settings.optimizer](
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,  # type: ignore[call-arg]
    )
    if resume:
        state = load_last(network, optimizer, folder)
        run.checkpoint(folder, run.Layout.best)  # must be there: this run may not better it
    else:
        state = State(digests=data.digests, versions=_versions(), data_folder=str(data.folder.resolve()))
        save_last(network, optimizer, state, folder)
        save_weights(network, folder / run.Layout.best)
    _describe(recipe, data, folder)

    rows = data.train.rows
    progress.state, progress.steps = state, -(-len(rows) // settings.batch_size)
    progress.start(settings.epochs, state.epoch, len(rows.ids))
    with progress, _stop_requested() as stop:
        while state.epoch < settings.epochs and not _enough(recipe, state):
            network.train()
            batches = rows.shuffled(settings.batch_size, settings.seed, state.epoch)
            for index in batches[state.step :]:
                batch = rows.batch(index)
                loss, weight = _loss(network, batch, where, settings.loss)
                value = loss.item()
                if not math.isfinite(value):
                    raise _diverged(f"the loss is {value}", recipe, state, folder)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                if settings.clip_norm:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                optimizer.step()
                state.step += 1
                state.loss += value * weight
                state.weight += weight
                progress.step(int(batch.lengths.sum()), state.loss / state.weight)
                if stop():
                    break
            if not all(weight.isfinite().all() for weight in network.parameters()):
                raise _diverged("a weight is not finite", recipe, state, folder)
            if state.step < len(batches):
                save_last(network, optimizer, state, folder)
                return Run(folder, network, state, interrupted=True)

            record: dict[str, Any] = {"epoch": state.epoch + 1, "loss": state.loss / state.weight}
            if data.dev is not None:
                metrics = evaluate_network(network, data.dev, data.vocabulary, where)
                record |= {f"dev_{name}": value for name, value in metrics.items()}
            state.epoch, state.step, state.loss, state.weight = state.epoch + 1, 0, 0.0, 0
            state.history.append(record)
            watched = record.get(f"dev_{recipe.monitor}")
            if watched is None or better(recipe.monitor, watched, state.best_value):
                state.best_epoch, state.best_value = state.epoch, watched
                save_weights(network, folder / run.Layout.best)
            save_last(network, optimizer, state, folder)
            progress.epoch(record, best=state.best_epoch == state.epoch)
            if after_epoch is not None:
                after_epoch(network, record)
            if stop():
                return Run(folder, network, state, interrupted=state.epoch < settings.epochs)
    return Run(folder, network, state, interrupted=False)


def _loss(network: Network, batch: Batch, device: torch.device, reduction: str) -> tuple[Tensor, int]:
    """The loss of a batch, and how many answers it is over (1 where it is their sum)."""
    ids, lengths, targets = (torch.from_numpy(array).to(device) for array in batch)
    logits = network(ids, lengths)  # (B, T, C) or (B, C)
    loss = functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction=reduction
    )
    return loss, int((batch.targets != IGNORE).sum()) if reduction == "mean" else 1


def _diverged(what: str, recipe: Recipe, state: State, folder: Path) -> TrainingError:
    return TrainingError(
        f"epoch {state.epoch + 1}, step {state.step + 1}: {what}, with learning rate {recipe.train.learning_rate}; "
        f"the last good checkpoint, of epoch {state.epoch}, is in {folder}. Try a smaller train.learning_rate, or set "
        "train.clip_norm, such as 1.0"
    )


def _enough(recipe: Recipe, state: State) -> bool:
    patience = recipe.train.early_stopping
    return patience > 0 and state.best_value is not None and state.epoch - state.best_epoch >= patience


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f'--device {name}: not to be had here ({str(error).splitlines()[0]}); "auto" takes what there is'
        ) from error
    return name


def _may_begin(folder: Path) -> None:
    """Refuse a folder that holds a run, or anything that no run wrote."""
    if run.is_run(folder):
        raise CheckpointError(
            f"{folder}: holds a run already; go on with it by --resume, or name another with -o"
        )
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.name not in run.NAMES and not any(
            part.startswith(".") or part == run.Layout.tensorboard for part in path.relative_to(folder).parts
        ):
            raise CheckpointError(
                f"{folder}: holds {path.name}, which no run wrote; name another folder with -o"
            )


def _describe(recipe: Recipe, data: Dataset, folder: Path) -> None:
    """What makes the folder a run, written once there is a checkpoint; a resumed run may have more epochs."""
    for stale in folder.glob(".*.part"):  # of a process that was killed
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    with new_file(folder / run.Layout.recipe) as file:
        file.write(recipe.to_toml())
    data.vocabulary.save(folder)


def _same(recipe: Recipe, data: Dataset, folder: Path) -> None:
    """Refuse to resume with another recipe or other data, saying what differs."""
    before = Recipe.load(run.require(folder / run.Layout.recipe)).model_dump()
    changed = [
        f"{section}.{key} was {before[section][key]!r}, is {value!r}"
        for section, table in recipe.model_dump().items()
        for key, value in table.items()
        if before[section][key] != value and f"{section}.{key}" not in MAY_CHANGE
    ]
    digests = load_state(folder)[0].digests
    changed += [
        f"the {name} data is another" for name in data.digests if data.digests[name] != digests.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: cannot be resumed: {'; '.join(changed)}. Undo the change, or train anew with another -o"
        )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ohlol", "torch", "numpy")}


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop honours between two batches.

    A second one interrupts at once.
    """
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(ended: Run, data: Dataset) -> dict[str, Metrics]:
    """The best checkpoint's metrics on dev and test (on train where there is neither), kept in the run."""
    load_weights(ended.network, run.checkpoint(ended.folder, run.Layout.best))
    device = next(ended.network.parameters()).device
    splits = {"dev": data.dev, "test": data.test} if data.dev or data.test else {"train": data.train}
    results = {
        name: evaluate_network(ended.network, split, data.vocabulary, device)
        for name, split in splits.items()
        if split is not None
    }
    with new_file(ended.folder / run.Layout.results) as file:
        file.write(json.dumps(results, indent=2) + "\n")
    return results

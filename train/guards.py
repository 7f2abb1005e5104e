"""What keeps a run whole: who may write into its folder, what may be resumed, how it is stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from ohlol.artifacts import run
from ohlol.artifacts.errors import CheckpointError, TrainingError
from ohlol.train.checkpoint import State, load_state
from ohlol.train.data import Dataset
from ohlol.train.recipe import Recipe

MAY_CHANGE = ("train.epochs", "train.early_stopping")  # of a recipe, when a run is resumed


@contextmanager
def alone(folder: Path) -> Iterator[Callable[[], None]]:
    """Keep two trainings from writing into one folder. Raises `CheckpointError` where one does already.

    Gives a check that raises `TrainingError` where somebody has removed the folder since, or put another there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / run.Layout.lock)
    try:
        with lock.acquire(timeout=0):
            own = Path(lock.lock_file).stat()  # the file stays open, and so its number is nobody else's

            def still_there() -> None:
                try:
                    there = os.path.samestat(own, Path(lock.lock_file).stat())
                except FileNotFoundError:
                    there = False
                if not there:
                    raise TrainingError(
                        f"{folder}: was removed or exchanged while this training wrote into it, which ends here; "
                        "train anew, or put the folder back and go on with --resume"
                    )

            yield still_there
    except Timeout:
        raise CheckpointError(
            f"{folder}: another process is training into it; wait for its end, or name another folder with -o"
        ) from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of what the machine refuses while a run is written what becomes of it. Raises `TrainingError`."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what is said: no matter of the folder
        raise
    except OSError as error:
        begun = run.is_run(folder)
        what = "what was saved before is whole" if begun else "nothing has been trained yet"
        then = "go on with --resume" if begun else "start again, or name another folder with -o"
        raise TrainingError(
            f"{folder}: cannot be written to ({error.strerror or error}); {what}: mend it, and {then}"
        ) from error


def may_begin(folder: Path) -> None:
    """Refuse a folder that holds a run, or anything that no run wrote."""
    if run.is_run(folder):
        raise CheckpointError(
            f"{folder}: holds a run already; go on with it by --resume, or name another with -o"
        )
    record = folder / run.Layout.metrics
    if (folder / run.Layout.results).exists() or (record.is_file() and record.stat().st_size):
        raise CheckpointError(
            f"{folder}: holds a run whose {run.Layout.recipe} is missing; put it back, or name another folder with -o"
        )
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.name not in run.NAMES and not any(
            part.startswith(".") or part == run.Layout.tensorboard for part in path.relative_to(folder).parts
        ):
            raise CheckpointError(
                f"{folder}: holds {path.name}, which no run wrote; name another folder with -o"
            )


def is_there(folder: Path) -> None:
    """Refuse to resume where there is no run, or none yet."""
    if not run.is_run(folder):
        raise CheckpointError(
            f"{folder}: {run.Layout.recipe} is missing, so there is no run to resume (a training that is killed before "
            "its first checkpoint leaves none); start it without --resume"
        )


def may_resume(recipe: Recipe, data: Dataset, folder: Path) -> None:
    """Refuse to resume with another recipe or other data, saying what differs."""
    before = Recipe.load(run.require(folder / run.Layout.recipe)).model_dump()
    changed = [
        f"{section}.{key} was {before[section][key]!r}, is {value!r}"
        for section, table in recipe.model_dump().items()
        for key, value in table.items()
        if before[section][key] != value and f"{section}.{key}" not in MAY_CHANGE
    ]
    if recipe.train.decay != "none" or recipe.train.warm_up:
        before_epochs, epochs = before["train"]["epochs"], recipe.train.epochs
        if before_epochs != epochs:
            changed.append(f"train.epochs was {before_epochs}, is {epochs}, and the learning rate follows it")
    changed += other_data(load_state(folder)[0].digests, data.digests)
    if changed:
        raise CheckpointError(
            f"{folder}: cannot be resumed: {'; '.join(changed)}. Undo the change, or train anew with another -o"
        )


def other_data(before: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Which of the files whose digests were `found` are others than a run's record has, and what they were."""
    return [
        f"the {name} data is another: it had {_said(before.get(name, {}))}, has {_said(own)}"
        for name, own in found.items()
        if any(before.get(name, {}).get(key) != own[key] for key in ("path", "sha256", "rows") if key in own)
    ]


def other_versions(state: State) -> list[str]:
    """What the run began with and goes on without: bits may differ from here on."""
    found = versions()
    return [
        f"{name} was {before}, is {found[name]}"
        for name, before in state.versions.items()
        if name in found and found[name] != before
    ]


def versions() -> dict[str, str]:
    """Of what a run's bits depend on."""
    return {name: version(name) for name in ("ohlol", "torch", "numpy")}


def _said(digest: dict[str, Any]) -> str:
    """A data file as its record has it; a run of an earlier version has no size."""
    facts = {"bytes": "{:,} bytes", "rows": "{:,} rows", "sha256": "sha256 {:.12}…", "path": "in {}"}
    return ", ".join(form.format(digest[key]) for key, form in facts.items() if key in digest) or "none"


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
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

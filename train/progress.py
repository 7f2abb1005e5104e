"""What a person sees while a network trains: a live line on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Live

if TYPE_CHECKING:
    from ohlol.train.checkpoint import State

EVERY = 0.1  # seconds between two updates of the live line


class Progress:
    """Reports nothing; the base of `Lines`, `Terminal` and `Board`."""

    # There from `start` on: where the run stands, kept up to date by the loop, and the steps of an epoch.
    state: State
    steps: int

    def start(self, epochs: int, done: int, characters: int) -> None:
        """`epochs` in all, `done` of them, `characters` in each."""

    def step(self, characters: int, loss: float) -> None:
        """A batch of so many characters is done; `loss` is the epoch's mean so far."""

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """An epoch is complete; `record` is its line of `metrics.jsonl`."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(Progress):
    """One plain line an epoch: epoch, loss, dev metrics, characters a second, time left."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr

    def start(self, epochs: int, done: int, characters: int) -> None:
        self.epochs, self.done, self.characters = epochs, done, characters
        self.seen = self.seen_in_epoch = 0
        self.began = self.epoch_began = time.monotonic()

    def step(self, characters: int, loss: float) -> None:
        self.seen += characters
        self.seen_in_epoch += characters

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        self.say(self.line(record, best))
        self.seen_in_epoch, self.epoch_began = 0, time.monotonic()

    def line(self, record: dict[str, Any], best: bool) -> str:
        spent, now = time.monotonic() - self.began, time.monotonic() - self.epoch_began
        left = (self.epochs - record["epoch"]) * spent / max(record["epoch"] - self.done, 1)
        parts = [
            f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}",
            f"loss {record['loss']:.4f}",
        ]
        parts += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in record.items() if "dev" in name]
        parts += [f"{rate(self.seen_in_epoch / max(now, 1e-9))}", f"{duration(left)} left"]
        return "  ".join(parts) + ("  best" if best and any("dev" in name for name in record) else "")

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class Terminal(Lines):
    """The same lines, and below them a bar that moves."""

    def start(self, epochs: int, done: int, characters: int) -> None:
        super().start(epochs, done, characters)
        self.live = Live(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(file=self.out),
            transient=True,
        )
        self.bar = self.live.add_task(
            "", total=epochs * characters, completed=done * characters,
            epoch=min(done + 1, epochs), epochs=epochs, loss="–", rate="",
        )  # fmt: skip
        self.shown = 0.0
        self.pending = 0

    def __enter__(self) -> Progress:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, characters: int, loss: float) -> None:
        super().step(characters, loss)
        self.pending += characters
        now = time.monotonic()
        if now - self.shown >= EVERY:  # drawing costs more than a step of a small network
            self.live.update(
                self.bar,
                advance=self.pending,
                loss=f"{loss:.4f}",
                rate=rate(self.seen / max(now - self.began, 1e-9)),
            )
            self.shown, self.pending = now, 0

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        super().epoch(record, best)
        self.live.update(self.bar, advance=self.pending, epoch=min(record["epoch"] + 1, self.epochs))
        self.pending = 0

    def say(self, line: str) -> None:
        self.live.console.print(line, highlight=False, markup=False)


def progress(out: TextIO | None = None) -> Progress:
    """The live one where `out` (stderr) is a terminal, plain lines elsewhere."""
    out = out or sys.stderr
    return Terminal(out) if out.isatty() else Lines(out)


def rate(characters: float) -> str:
    """Characters a second, short."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if characters >= limit:
            return f"{characters / limit:.1f}{unit} chars/s"
    return f"{characters:.0f} chars/s"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"

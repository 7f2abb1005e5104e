"""What a person sees while a network trains: a live line on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time
from array import array
from collections.abc import Sequence
from itertools import accumulate
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

if TYPE_CHECKING:
    from ohlol.train.checkpoint import State

EVERY = 0.1  # seconds between two drawings of the live line
GAP = 2  # columns between two parts of a line
SPARKS, BAR = 20, 8  # columns of the sparkline, and of the shortest bar that is worth drawing
LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-:=+*#"  # from low to high; the second where the first cannot be shown
SHORT = {"accuracy": "acc", "nats_per_character": "nats/char", "bits_per_character": "bits/char"}


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

    def note(self, line: str) -> None:
        """Something that a person should know."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(Progress):
    """One plain line an epoch: epoch, loss, dev metrics, characters a second, time left."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self.out = out or sys.stderr

    def start(self, epochs: int, done: int, characters: int) -> None:
        self.epochs, self.done, self.characters = epochs, done, characters
        self.seen = self.seen_in_epoch = 0
        self.began = self.epoch_began = time.monotonic()

    def step(self, characters: int, loss: float) -> None:
        self.seen += characters
        self.seen_in_epoch += characters

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        self.say("  ".join(self.parts(record, best)))
        self.seen_in_epoch, self.epoch_began = 0, time.monotonic()

    def note(self, line: str) -> None:
        print(f"note: {line}", file=self.out, flush=True)

    def parts(self, record: dict[str, Any], best: bool) -> list[str]:
        figures = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in dev_figures(record)]
        mark = ["best"] if best and figures else []
        return [*self.headline(record), *figures, self.rate(), self.left(record), *mark]

    def headline(self, record: dict[str, Any]) -> list[str]:
        return [self.counted(record["epoch"]), f"loss {record['loss']:.4f}"]

    def counted(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}"

    def rate(self) -> str:
        return f"{short(self.seen_in_epoch / max(time.monotonic() - self.epoch_began, 1e-9))} chars/s"

    def left(self, record: dict[str, Any]) -> str:
        spent = time.monotonic() - self.began
        seconds = (self.epochs - record["epoch"]) * spent / max(record["epoch"] - self.done, 1)
        return f"{duration(seconds)} left"

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class Terminal(Lines):
    """The same lines, as much of each as fits, and below them one that moves.

    `monitor` is the dev metric that picks the best epoch.
    """

    def __init__(self, console: Console, monitor: str) -> None:
        super().__init__(console.file)
        self.console, self.monitor = console, f"dev_{monitor}"
        self.levels = PLAIN_LEVELS if console.options.ascii_only else LEVELS
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def start(self, epochs: int, done: int, characters: int) -> None:
        super().start(epochs, done, characters)
        self.complete = done
        self.best: float | None = None
        self.losses = array("d")  # one a drawing: a step must cost nothing
        self.drawn = -math.inf

    def __enter__(self) -> Progress:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, characters: int, loss: float) -> None:
        super().step(characters, loss)
        if time.monotonic() - self.drawn >= EVERY:  # drawing costs more than a step of a small network
            self.losses.append(loss)
            self.live.update(self.moving(), refresh=True)
            self.drawn = time.monotonic()

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        if best:
            self.best = record.get(self.monitor)
        super().epoch(record, best)
        self.complete = record["epoch"]

    def parts(self, record: dict[str, Any], best: bool) -> list[str]:
        """What matters most comes first; the rest goes where the line is full."""
        figures = sorted(dev_figures(record), key=lambda figure: figure[0] != self.monitor)
        said = [f"{SHORT.get(name[4:], name[4:]).replace('_', ' ')} {value:.4f}" for name, value in figures]
        if said:
            said[0] = f"dev {said[0]} {'best' if best else '    '}"
        parts = [*self.headline(record), *said, self.left(record), self.rate()]
        return fitting(parts, self.console.width)

    def moving(self) -> Table:
        """The live line, likewise; what it leaves free is a bar."""
        spent = max(time.monotonic() - self.began, 1e-9)
        whole, over = self.epochs * self.characters, self.complete * self.characters + self.seen_in_epoch
        parts = [
            self.counted(self.complete + 1),
            f"loss {self.losses[-1]:.4f} {sparkline(self.losses, SPARKS, self.levels)}",
            *([] if self.best is None else [f"best {self.best:.4f}"]),
            f"{duration((whole - over) * spent / max(self.seen, 1))} left",
            f"{short(self.seen / spent)}/s",
        ]
        parts = fitting(parts, self.console.width)
        room = self.console.width - sum(len(part) + GAP for part in parts)
        bar = [ProgressBar(whole, over, width=room)] if room >= BAR else []
        line = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        line.add_row(*parts, *bar)
        return line

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, no_wrap=True, crop=True)


def progress(monitor: str, out: IO[str] | None = None) -> Progress:
    """The live one where `out` (stderr) is a terminal, plain lines elsewhere."""
    out = out or sys.stderr
    return Terminal(Console(file=out), monitor) if out.isatty() else Lines(out)


def dev_figures(record: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in record.items() if name.startswith("dev_")]


def fitting(parts: list[str], width: int) -> list[str]:
    """The first of `parts`, as many as fit `width` columns with a gap between two."""
    ends = accumulate(len(part) + GAP for part in parts)
    return [part for part, end in zip(parts, ends, strict=True) if end - GAP <= width]


def sparkline(values: Sequence[float], width: int, levels: str = LEVELS) -> str:
    """At most `width` blocks, each as high as the mean of its share of `values`; of finite ones only."""
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return ""
    means = np.array([part.mean() for part in np.array_split(found, min(width, len(found)))])
    span = np.ptp(means)
    heights = (means - means.min()) / span if span else np.zeros(len(means))
    return "".join(levels[round(height * (len(levels) - 1))] for height in heights)


def short(number: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"

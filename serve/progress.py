"""How far a run is, on stderr: one line, redrawn a few times a second, and a summary at the end."""

from __future__ import annotations

import shutil
import sys
import time

from ohlol.serve.jobs import Tally, Watch

REDRAWN = 0.25  # seconds


class Progress(Watch):
    """`shown`: with the line and the summary; else stderr has what must be told alone."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._begun = self._drawn = time.monotonic()
        self._first: float | None = None  # the part of the input that an earlier run has answered
        self._width = 0

    def note(self, message: str) -> None:
        self.clear()
        if sys.stderr is not None:  # closed
            print(message, file=sys.stderr, flush=True)

    def advance(self, part: float | None, tally: Tally) -> None:
        if not self._shown:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = part
        if now - self._drawn < REDRAWN:
            return
        self._drawn = now
        self._draw(status(part, self._first, tally, now - self._begun))

    def end(self, tally: Tally) -> None:
        self.clear()
        if self._shown:
            seconds = time.monotonic() - self._begun
            self.note(
                f"{tally.texts:,} texts, {tally.characters:,} characters in {seconds:.1f} s "
                f"({_rate(tally.characters, seconds)} characters/s)"
            )

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)

    def clear(self) -> None:
        """The line away, before something else is printed."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0


def status(part: float | None, first: float | None, tally: Tally, seconds: float) -> str:
    """The line of a run of so many seconds, which began where `first` of the input was answered."""
    speed = f"{_rate(tally.characters, seconds)} characters/s  {_rate(tally.texts, seconds)} lines/s"
    if part is None:
        return f"{tally.texts:,} texts  {speed}"
    done = part - (first or 0.0)
    left = f"  {_duration(seconds * (1 - part) / done)} left" if done > 0 else ""
    return f"{part:4.0%}  {speed}{left}"


def _rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-3):,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

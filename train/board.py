"""What TensorBoard shows while a network trains: the events of one run, in its folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from ohlol.artifacts.run import Layout
from ohlol.train.progress import Progress

EVERY = 10  # steps between two points of the loss, which is the mean over them


class Board(Progress):
    """Writes loss, learning rate and dev metrics as events, and passes everything on to `beside`.

    Every point stands at the number of steps done since training began. Points that a
    killed process wrote after its last checkpoint are done, and written, again: TensorBoard drops the old ones.
    """

    def __init__(self, folder: Path, beside: Progress | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: slow, and missing without its extra

        self.folder, self.beside = folder / Layout.tensorboard, beside or Progress()
        self.make = SummaryWriter

    def start(self, epochs: int, done: int, characters: int) -> None:
        self.beside.state, self.beside.steps = self.state, self.steps
        self.beside.start(epochs, done, characters)
        self.writer = self.make(str(self.folder), purge_step=self.now + 1)
        self.seen = (self.state.loss, self.state.weight)

    def note(self, line: str) -> None:
        self.beside.note(line)

    @property
    def now(self) -> int:
        """Steps done in all."""
        return self.state.epoch * self.steps + self.state.step

    def step(self, characters: int, loss: float) -> None:
        self.beside.step(characters, loss)
        if self.state.step % EVERY and self.state.step != self.steps:
            return
        loss, weight = self.state.loss - self.seen[0], self.state.weight - self.seen[1]
        if weight:  # 0 where the losses are still to be added up
            self.writer.add_scalar("train/loss", loss / weight, self.now)
            self.seen = (self.state.loss, self.state.weight)

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        self.beside.epoch(record, best)
        self.seen = (0.0, 0)
        for name, value in record.items():
            if name.startswith("dev_"):
                self.writer.add_scalar(name.replace("_", "/", 1), value, self.now)
            elif name == "learning_rate":
                self.writer.add_scalar("train/learning_rate", value, self.now)
        self.writer.flush()

    def __enter__(self) -> Progress:
        self.beside.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        self.beside.__exit__(kind, error, trace)

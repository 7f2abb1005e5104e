"""C source compiled on this machine, and held against the network on the cases of the proof."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import PADDING, UNKNOWN, Alphabet
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.parity import Arrays, Case
from ohlol.export.c_source import Source
from ohlol.export.proof import Claim, expected_outputs
from ohlol.train.network import Network

COMPILER = "cc"
FLAGS = ("-std=c99", "-O2")
MOST = 10_000  # numbers expected in NAME_test.c: what a microcontroller still has room for
PATIENCE = 600.0  # seconds, for a compiler or a program that hangs
NAMES = ("logits", "probabilities", "label_ids")

Answered = tuple[NDArray[np.float32], NDArray[np.int32]]


def compile_c(compiler: str, folder: Path, *arguments: str | Path) -> None:
    """Raises `ProofError` with what the compiler says."""
    done = ran([compiler, *FLAGS, *map(str, arguments)], folder)
    if done.returncode:
        raise ProofError(f"{compiler} does not compile what was written:\n{done.stderr.strip()[:2000]}")


def version(compiler: str) -> str:
    """The first line of what the compiler says of itself."""
    return (ran([compiler, "--version"]).stdout.splitlines() or ["unknown"])[0]


def ran(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ended. Raises `ProofError` where it does not."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise ProofError(
            f"{' '.join(command)}: not done after {PATIENCE:g} seconds, given up; try that compiler by hand, or leave --c out"
        ) from error


@dataclass
class Library:
    """A network's C functions, called from here. `functions` is a library that has them. Raises `OSError`."""

    source: Source
    functions: ctypes.CDLL

    def run(self, points: NDArray[np.uint32]) -> Answered:
        """`NAME_run`: `points (T,)` to logits `(T, C)` and labels `(T,)`; for `classify`, `(1, C)` and `(1,)`."""
        n, work = len(points), np.full(self.source.work(len(points)), np.nan, dtype=np.float32)
        logits, labels = self._answers(n)
        run = self._function("run")
        run(_at(points), ctypes.c_size_t(n), _at(work), _at(logits), _at(labels))
        return logits, labels

    def steps(self, points: NDArray[np.uint32]) -> Answered:
        """The same of one way, by `NAME_start` and `NAME_step`."""
        state = np.full(self.source.state, np.nan, dtype=np.float32)
        logits, labels = self._answers(len(points))
        self._function("start")(_at(state))
        step = self._function("step")
        for number, point in enumerate(points.tolist()):
            row = 0 if self.source.task == "classify" else number
            labels[row] = step(_at(state), ctypes.c_uint32(point), _at(logits[row]))
        return logits, labels

    def softmax(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each row `(..., C)`."""
        probabilities = np.ascontiguousarray(logits)
        for row in probabilities.reshape(-1, self.source.classes):
            self._function("softmax")(_at(row))
        return probabilities

    def _answers(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        rows = 1 if self.source.task == "classify" else n
        return np.full((rows, self.source.classes), np.nan, np.float32), np.full(rows, -1, dtype=np.int32)

    def _function(self, name: str) -> Callable[..., int]:
        found: Callable[..., int] = getattr(self.functions, f"{self.source.name}_{name}")
        return found


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def claims(library: Library, version: str) -> list[Claim]:
    """That `NAME_run`, and of one way `NAME_step` too, answer as the network does."""
    ways = {"run": library.run} | ({"step": library.steps} if library.source.one_way else {})
    return [
        Claim(f"{library.source.name}_{name}", COMPILER, _answer(library, way), NAMES, version=version)
        for name, way in ways.items()
    ]


def _answer(library: Library, answered: Callable[[NDArray[np.uint32]], Answered]) -> Callable[[Case], Arrays]:
    """A row at a time, as the outputs of a batch."""
    task, C = library.source.task, library.source.classes

    def answer(case: Case) -> Arrays:
        B, T = case.codepoints.shape
        shape = (B,) if task == "classify" else (B, T)
        found = {name: np.zeros((*shape, C), dtype=np.float32) for name in NAMES[:2]}
        labels = np.full(shape, -1, dtype=np.int32)
        for row, (points, n) in enumerate(
            zip(case.codepoints.view(np.uint32), case.lengths.tolist(), strict=True)
        ):
            logits, own = answered(np.ascontiguousarray(points[:n]))
            inside = row if task == "classify" else (row, slice(n))
            one = 0 if task == "classify" else slice(None)
            found["logits"][inside], labels[inside] = logits[one], own[one]
            found["probabilities"][inside] = library.softmax(logits)[one]
        if task == "lm":  # as in the contract, no text has a name for the unknown character
            labels[labels == UNKNOWN] = PADDING
        return found | {"label_ids": labels}

    return answer


def test_data(
    network: Network, alphabet: Alphabet, cases: Sequence[Case], classes: int
) -> tuple[list[NDArray[np.uint32]], NDArray[np.float32]]:
    """Texts of the cases, by turns one of each, and the logits `(answers, C)` of `network`, up to `MOST` numbers.

    A text is cut where it would be more; the first, of one character, is always there.
    """
    rows = [[row[:n] for row, n in zip(c.codepoints, c.lengths.tolist(), strict=True)] for c in cases]
    texts: list[NDArray[np.int32]] = []
    room = MOST // classes  # answers
    for row in (own[k] for k in range(max(map(len, rows))) for own in rows if k < len(own)):
        text = row if network.task == "classify" else row[: room if texts else max(room, 1)]
        texts.append(text)
        room -= 1 if network.task == "classify" else len(text)
        if room <= 0:
            break
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    padded = np.zeros((len(texts), max(lengths)), dtype=np.int32)
    for number, text in enumerate(texts):
        padded[number, : len(text)] = text
    answers = expected_outputs(network, alphabet, Case("", padded, lengths))["logits"].astype(np.float32)
    if network.task != "classify":
        answers = np.concatenate([own[:n] for own, n in zip(answers, lengths.tolist(), strict=True)])
    return [text.view(np.uint32) for text in texts], answers

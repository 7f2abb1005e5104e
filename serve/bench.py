"""How fast the files of a bundle answer on this machine, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.bundle import ONNX, Bundle, Layout
from ohlol.serve import runtimes
from ohlol.serve.opening import check_file

SIZES = ((1, 1), (1, 64), (32, 64), (256, 64))  # rows and characters of a batch
ROUNDS = 7  # each runs every file once, so that what else the machine does falls on all of them
SECONDS = 0.05  # a round repeats a small batch for about as long


@dataclass(frozen=True)
class Timing:
    """Of one file in one runtime with one size of batch: seconds for a batch, median of `ROUNDS` rounds, least
    and most; and the largest difference of a probability from `model.onnx` in ONNX Runtime."""

    file: str
    runtime: str
    rows: int
    characters: int
    seconds: float
    least: float
    most: float
    difference: float


def bench(
    bundle: Bundle, use: Sequence[str], sizes: Sequence[tuple[int, int]] = SIZES, threads: int = 1
) -> list[Timing]:
    """Time the files that take whole texts, on the bundle's own characters, drawn at random."""
    files = [name for name, kind in ONNX.items() if kind == "model" and name in bundle.contents]
    for file in files:
        check_file(bundle.contents[file], "model", bundle.manifest, str(bundle.path / file))
    runs = {
        (file, runtime): runtimes.run_in(
            runtime, bundle.contents[file], str(bundle.path / file), threads=threads
        )
        for file in files
        for runtime in use
    }
    known = np.array([ord(c) for c in bundle.manifest.alphabet.characters or "a"], dtype=np.int32)
    random = np.random.default_rng(0)
    timings = []
    for B, T in sizes:
        points = known[random.integers(len(known), size=(B, T))]
        feed = {"codepoints": points, "lengths": np.full(B, T, dtype=np.int32)}
        first = {key: run(feed)["probabilities"] for key, run in runs.items()}  # and warms up
        expected = first[Layout.onnx, use[0]]
        repeats = {key: max(1, int(SECONDS / max(_seconds(run, feed, 1), 1e-6))) for key, run in runs.items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, run in runs.items():
                times[key].append(_seconds(run, feed, repeats[key]))
        for (file, runtime), taken in times.items():
            difference = float(np.abs(first[file, runtime] - expected).max())
            timings.append(Timing(file, runtime, B, T, median(taken), min(taken), max(taken), difference))
    return timings


def table(timings: Sequence[Timing]) -> str:
    """For a person: `ratio` is the time beside that of `model.onnx`, so below 1 is faster."""
    lines = [
        f"{'batch':>7}  {'file':<17}{'runtime':<12}{'ms':>9}  {'least–most':>17}  {'characters/s':>12}  "
        f"{'ratio':>5}  {'difference':>10}"
    ]
    first: dict[tuple[int, int], float] = {}
    for t in timings:
        beside = first.setdefault((t.rows, t.characters), t.seconds)
        spread = f"{t.least * 1e3:.3f}–{t.most * 1e3:.3f}"
        lines.append(
            f"{t.rows:>3}×{t.characters:<3}  {t.file:<17}{t.runtime:<12}{t.seconds * 1e3:>9.3f}  {spread:>17}  "
            f"{t.rows * t.characters / t.seconds:>12,.0f}  {t.seconds / beside:>5.2f}  {t.difference:>10.1e}"
        )
    return "\n".join(lines)


def _seconds(run: runtimes.Run, feed: dict[str, NDArray[Any]], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run(feed)
    return (time.perf_counter() - start) / times

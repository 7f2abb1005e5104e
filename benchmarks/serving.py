"""Raw text in, label text out: `ohlol` beside PyTorch, TorchScript, a plain ONNX Runtime script and OpenVINO.

    OHLOL_DATA=DIR python benchmarks/serving.py [--parts one start file rows memory] [--rounds 5] > serving.md

Taggers with weights drawn at random, float32, an alphabet of the characters of the text. Every side gets the same bytes
and must give the same labels; how many differ stands beside its speed. Each round runs every side once, so that whatever
else the machine does falls on all of them; times are medians, with the least and the most. Run it with nothing else
running.

`one`: a word and a sentence in this process: a bare `session.run` on ready arrays; `model(text)` and its labels as a string;
PyTorch eager with the same steps before and after it. `start`: the whole process of `ohlol predict hello hello`, beside one that imports
onnxruntime and runs one session. `file`: lines of each text, from bytes to bytes, on all CPUs. `rows`: the two files of a GRU and an LSTM. `memory`: the peak of
`ohlol predict -i FILE -o FILE` on 20 MB, 200 MB and 2 GB, made in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import peers
import torch
from peers import Answer, Drawn, Shape, draw

from ohlol.artifacts.bundle import Layout
from ohlol.serve.runtimes import cpus, runtime_version, session

SHAPES = {
    "RNN 64": Shape("rnn", 1, 64),
    "2×RNN 256": Shape("rnn", 2, 256),
    "GRU 256": Shape("gru", 1, 256),
    "LSTM 64, both ways": Shape("lstm", 1, 64, both=True),
    "LSTM 256": Shape("lstm", 1, 256),
}
PARTS = ("one", "start", "file", "rows", "memory")
TEXTS = ("ud_en_ewt", "ud_vi_vtb", "tinyshakespeare")
LENGTHS = (8, 90)  # characters of the texts of `one`
COMPARED = 1_000  # lines whose labels are compared
SAMPLE = 500  # lines by which a side's speed is guessed
SECONDS = 3.0  # a side's share of a round: so much of the text as takes about as long
BARE = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession({path!r})
points = np.array([[ord(c) for c in "hello"]], dtype=np.int32)
session.run(None, {{"codepoints": points, "lengths": np.array([5], dtype=np.int32)}})
"""

# A process counts what it was forked from as its own: a small one stands between, or the peak would be ours, with torch.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def lines_of(name: str) -> list[str]:
    """The sentences of a treebank, or the lines of a play that are not empty."""
    data = Path(os.environ["OHLOL_DATA"])
    if name == "tinyshakespeare":
        return [line for line in (data / name / "input.txt").read_text(encoding="utf-8").splitlines() if line]
    (treebank,) = (data / name).glob("*-train.conllu")
    marked = treebank.read_text(encoding="utf-8").split("\n# text = ")[1:]
    return [sentence.partition("\n")[0] for sentence in marked]


def seconds(work: Callable[[], object], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def spread(times: list[float], scale: float = 1.0) -> str:
    return f"{median(times) * scale:.3g} ({min(times) * scale:.3g}–{max(times) * scale:.3g})"


def one(rounds: int) -> Iterator[str]:
    """A word and a sentence, in this process."""
    head = [
        "network",
        "characters",
        "bare session.run, µs",
        "ohlol, µs",
        "eager, µs",
        "ohlol / bare",
        "eager / ohlol",
    ]
    yield "| " + " | ".join([*head, "labels differing"]) + " |\n" + "|---" * (len(head) + 1) + "|"
    lines = lines_of("ud_en_ewt")
    texts = [min(lines, key=lambda line: abs(len(line) - length)) for length in LENGTHS]
    torch.set_num_threads(1)
    for (name, shape), text in product(SHAPES.items(), texts):
        drawn = draw(shape, lines)
        sides: dict[str, Callable[[], Any]] = {
            "bare": peers.bare(drawn, text),
            "ohlol": lambda d=drawn, t=text: str(d.model(t)),
            "eager": lambda d=drawn, t=text: peers.eager_one(d, t),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        repeats = {side: max(1, int(0.2 / seconds(work, 20))) for side, work in sides.items()}
        for _ in range(rounds):
            for side, work in sides.items():
                times[side].append(seconds(work, repeats[side]))
        differ = sum(a != b for a, b in zip(sides["ohlol"](), sides["eager"](), strict=True))
        bare, ours, eager = (median(times[side]) for side in sides)
        yield (
            f"| {name} | {len(text)} | {spread(times['bare'], 1e6)} | {spread(times['ohlol'], 1e6)} | "
            f"{spread(times['eager'], 1e6)} | {ours / bare:.2f} | {eager / ours:.1f} | {differ} of {len(text)} |"
        )
    torch.set_num_threads(cpus())


def start(rounds: int) -> Iterator[str]:
    """Whole processes, one after the other."""
    from ohlol.artifacts.bundle import Layout, shipped

    bare = [sys.executable, "-c", BARE.format(path=str(shipped() / Layout.onnx))]
    ours = [str(Path(sys.executable).parent / "ohlol"), "predict", "hello", "hello"]
    times: dict[str, list[float]] = {"bare": [], "ohlol": []}
    for _ in range(4 * rounds):
        for side, command in (("bare", bare), ("ohlol", ours)):
            times[side].append(seconds(lambda c=command: subprocess.run(c, check=True, capture_output=True)))
    ratio = median(times["ohlol"]) / median(times["bare"])
    yield "| onnxruntime imported, one session run, ms | `ohlol predict hello hello`, ms | ratio |"
    yield "|---|---|---|"
    yield f"| {spread(times['bare'], 1e3)} | {spread(times['ohlol'], 1e3)} | {ratio:.2f} |"


def gemm_rate() -> float:
    """The best float32 rate of a product of matrices that PyTorch finds here, in 10^9 operations a second."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.rand(size, size), torch.rand(size, size)
        torch.mm(a, b)
        best = max(best, *(2 * size**3 / seconds(lambda a=a, b=b: torch.mm(a, b), 5) / 1e9 for _ in range(5)))
    return best


def file(rounds: int, texts: tuple[str, ...], shapes: list[str]) -> Iterator[str]:
    """Bytes of lines to bytes of labels. Each side has a share of the text that takes about `SECONDS`."""
    torch.set_num_threads(cpus())
    rate = gemm_rate()
    yield f"{cpus()} CPUs; float32 products of matrices: {rate:.0f} GFLOP/s\n"
    head = [
        "text",
        "network",
        "side",
        "characters/s (least–most)",
        "ohlol /",
        "labels differing",
        "of the products' rate",
    ]
    yield "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|"
    for text in texts:
        lines = lines_of(text)
        for name in shapes:
            drawn = draw(SHAPES[name], lines)
            yield from compare(text, name, drawn, lines, rounds, rate)


def compare(text: str, name: str, drawn: Drawn, lines: list[str], rounds: int, gemm: float) -> Iterator[str]:
    sides = peers.sides(drawn)
    some = ("\n".join(lines[:COMPARED]) + "\n").encode()
    expected = sides["ohlol"](some)
    shares = {side: share(work, lines) for side, work in sides.items()}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, work in sides.items():
            data, characters = shares[side]
            rates[side].append(characters / seconds(lambda w=work, d=data: w(d)))
    ours = median(rates["ohlol"])
    for side, work in sides.items():
        found = work(some)
        differ = sum(a != b for a, b in zip(found, expected, strict=True))
        of_rate = f"{median(rates[side]) * drawn.operations / 1e9 / gemm:.0%}" if side == "ohlol" else ""
        yield (
            f"| {text} | {name} | {side} | {spread(rates[side])} | {ours / median(rates[side]):.2f} | "
            f"{differ} of {len(expected)} | {of_rate} |"
        )
        print(text, name, side, file=sys.stderr)


def share(work: Answer, lines: list[str]) -> tuple[bytes, int]:
    """So many of the lines, over and over, as `work` answers in about `SECONDS`; the first run warms it up."""
    sample = lines[:SAMPLE]
    data = ("\n".join(sample) + "\n").encode()
    work(data)
    taken = seconds(lambda: work(data))
    count = max(SAMPLE, int(len(sample) * SECONDS / taken))
    repeated = (lines * (count // len(lines) + 1))[:count]
    return ("\n".join(repeated) + "\n").encode(), sum(map(len, repeated))


def many_rows(rounds: int) -> Iterator[str]:
    """By how much `model.batch.onnx` is the faster file, by rows and characters of a batch, on all CPUs."""
    sizes = ((16, 120), (32, 120), (64, 120), (128, 60), (270, 30))
    yield f"| network | {' | '.join(f'{B}×{T}' for B, T in sizes)} |\n|{'---|' * (len(sizes) + 1)}"
    random = np.random.default_rng(0)
    for cell, hidden, both in product(("gru", "lstm"), (8, 64, 256), (False, True)):
        drawn = draw(Shape(cell, 1, hidden, both), ["".join(map(chr, range(32, 127)))])
        sessions = [session(drawn.files[name], name) for name in (Layout.onnx, Layout.batch)]
        ratios = []
        for B, T in sizes:
            feed = {
                "codepoints": random.integers(32, 127, size=(B, T)).astype(np.int32),
                "lengths": np.full(B, T, dtype=np.int32),
            }
            runs = max(4, 400_000 * 64 // (B * T * hidden * cpus()))
            times: list[list[float]] = [[], []]
            for _ in range(rounds):
                for own, opened in zip(times, sessions, strict=True):
                    own.append(seconds(on_all_cpus(opened, feed, runs)))
            ratios.append(f"{median(times[0]) / median(times[1]):.2f}")
        yield f"| {cell.upper()} {hidden}{', both ways' if both else ''} | {' | '.join(ratios)} |"


def on_all_cpus(opened: Any, feed: dict[str, Any], runs: int) -> Callable[[], None]:
    """So many runs of a session on one batch, by each CPU."""

    def work() -> None:
        with ThreadPoolExecutor(cpus()) as pool:
            list(pool.map(lambda _: opened.run(["label_ids"], feed), range(runs * cpus())))

    return work


def memory(sizes: tuple[float, ...] = (0.02, 0.2, 2.0)) -> Iterator[str]:
    """The peak of `ohlol predict` on files of growing size, and how long it took."""
    yield "| text | GB | peak, MB | seconds | characters/s |\n|---|---|---|---|---|"
    for text in TEXTS:
        lines = lines_of(text)
        with TemporaryDirectory() as folder:
            bundle = peers.bundle(SHAPES["RNN 64"], lines, Path(folder))
            for size in sizes if text == TEXTS[0] else sizes[:-1]:
                block = ("\n".join(lines) + "\n").encode()
                repeats = int(size * 1e9 / len(block)) + 1
                source, out = Path(folder) / "in.txt", Path(folder) / "out.txt"
                with source.open("wb") as made:
                    for _ in range(repeats):
                        made.write(block)
                command = [
                    str(Path(sys.executable).parent / "ohlol"),
                    "predict",
                    str(bundle),
                    "-i",
                    str(source),
                    "-o",
                    str(out),
                ]
                begun = time.perf_counter()
                peak = int(
                    subprocess.run(
                        [sys.executable, "-c", PEAK, *command], check=True, capture_output=True
                    ).stdout
                )
                taken = time.perf_counter() - begun
                characters = repeats * sum(map(len, lines))
                with out.open("rb") as answered:
                    found = sum(block.count(b"\n") for block in iter(lambda a=answered: a.read(1 << 20), b""))
                assert found == repeats * len(lines), "a line was lost"
                yield f"| {text} | {source.stat().st_size / 1e9:.2f} | {peak / 1024:.0f} | {taken:.1f} | {characters / taken:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--networks", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    given = parser.parse_args()
    versions = ", ".join(
        f"{name} {runtime_version(name)}" for name in ("onnxruntime", "torch", "openvino", "numpy")
    )
    print(f"{versions}, Python {sys.version.split()[0]}; {given.rounds} rounds\n")
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "one": lambda: one(given.rounds),
        "start": lambda: start(given.rounds),
        "file": lambda: file(given.rounds, tuple(given.texts), given.networks),
        "rows": lambda: many_rows(given.rounds),
        "memory": memory,
    }
    for part in given.parts:
        print(f"### {part}\n")
        for line in parts[part]():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()

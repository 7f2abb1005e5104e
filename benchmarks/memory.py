"""How much memory training takes on large data: the peak must hardly grow with the file.

    python benchmarks/memory.py [--folder DIR] [--sizes 0.2 2] [--rows tag split lm] > memory.md

For each size in GB a file of lines of 20 to 300 characters is made: TSV of text and one label for each character
(`tag`; `split` is the same, with dev rows drawn from it) or running text (`lm`). Two processes of their own follow:
`ohlol train` with `train.epochs=0`, which packs the file into the cache; and this program as `--child`, which finds it
packed, trains a tiny network for some steps and reads every batch of a whole epoch (to train 2 GB takes hours, and each
step takes the memory of the one before). The peak is the operating system's, `ru_maxrss` of the process, with Python,
torch and whatever pages of the file are mapped. Dev data is a small file of its own.

`--folder` holds file and cache while they are needed, some two times the largest size; all of it is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np

from ohlol.train.batches import ahead
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.progress import Progress
from ohlol.train.recipe import Recipe

POOL = 20_000  # different lines, written in another order each time
DEV = 2_000  # lines
NETWORK = {"cell": "rnn", "embedding_size": 4, "hidden_size": 8}
TRAIN = {"batch_size": 512, "epochs": 1}
STEPS = 20
KINDS: dict[str, dict[str, Any]] = {
    "tag": {"task": "tag", "data": {"format": "tsv", "dev": "dev"}},
    "split": {"task": "tag", "data": {"format": "tsv", "split": [0.999, 0.001, 0.0]}},
    "lm": {"task": "lm", "data": {"format": "text", "dev": "dev", "sequence_length": 160}},
}


def lines(kind: str, random: np.random.Generator) -> list[str]:
    """Words of 1 to 12 letters, some with an accent; a word's first letter is `B`, the others `I`, spaces `O`."""
    letters = list("etaoinshrdlucmfwypvbgkqjxzéüß")
    words = ["".join(random.choice(letters, size)) for size in random.integers(1, 13, size=5_000)]
    found = []
    for length in random.integers(20, 301, size=POOL):
        picked = random.zipf(1.3, size=80) % len(words)
        text = " ".join(words[k] for k in picked)[:length].rstrip()
        labels = "O".join("B" + "I" * (len(word) - 1) for word in text.split(" "))
        found.append(f"{text}\t{labels}\n" if kind == "tag" else f"{text}\n")
    return found


def write(path: Path, pool: list[str], size: float, random: np.random.Generator) -> None:
    """Lines of `pool` until the file has `size` bytes."""
    written = 0
    with path.open("wb") as file:
        while written < size:
            order = random.permutation(len(pool))
            written += file.write("".join(pool[k] for k in order).encode())


class Stop(Progress):
    """Ctrl-C after some steps."""

    left = STEPS

    def step(self, characters: int, loss: float) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)


def child() -> None:
    """Train some steps, read a whole epoch, say how many characters were read a second."""
    recipe = Recipe.load(Path("r.toml"))
    data = load(recipe, Path())
    train(recipe, data, Path("run"), progress=Stop(), device="cpu")
    began = time.monotonic()
    read = sum(
        int(batch.lengths.sum()) for batch in ahead(data.train.rows.shuffled(TRAIN["batch_size"], 0, 0))
    )
    print(read / (time.monotonic() - began))


def peak(folder: Path, *arguments: str) -> tuple[float, float]:
    """Run Python in `folder`: the process's peak in MB and its seconds. What it says is in `said`."""
    environment = {**os.environ, "OHLOL_CACHE": str(folder / "cache")}
    began = time.monotonic()
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "said").read_text())
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kB on Linux
    return usage.ru_maxrss / unit, time.monotonic() - began


def measure(kind: str, size: float, where: Path | None) -> list[float]:
    """Peak while packing, while training; seconds to pack; MB of the cache; characters read a second."""
    facts, random = KINDS[kind], np.random.default_rng(0)
    with TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        pool = lines(facts["task"], random)
        write(folder / "train", pool, size * 1e9, random)
        (folder / "dev").write_text("".join(pool[:DEV]), encoding="utf-8")
        tables = {"task": {"kind": facts["task"]}, "data": {"train": "train", **facts["data"]}}
        (folder / "r.toml").write_text(toml({**tables, "model": NETWORK, "train": TRAIN}), encoding="utf-8")
        packing, seconds = peak(folder, "-m", "ohlol", "train", "r.toml", "--set", "train.epochs=0")
        cache = sum(file.stat().st_size for file in (folder / "cache").rglob("*")) / 2**20
        training, _ = peak(folder, str(Path(__file__).resolve()), "--child")
        return [packing, training, seconds, cache, float((folder / "said").read_text())]


def toml(tables: dict[str, dict[str, Any]]) -> str:
    sections = (
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in own.items())
        for name, own in tables.items()
    )
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="where file and cache lie [default: the system's temporary folder]"
    )
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.2, 2.0], metavar="GB")
    parser.add_argument("--rows", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child()
        return
    room = shutil.disk_usage(given.folder or gettempdir()).free / 1e9
    if room < 3 * max(given.sizes):
        sys.exit(
            f"--folder: {room:.1f} GB are free, {3 * max(given.sizes):.1f} are needed; name a folder on a larger disk"
        )
    versions = ", ".join(f"{name} {version(name)}" for name in ("ohlol", "torch", "numpy"))
    print(f"{versions}, Python {platform.python_version()}\n")
    head = [
        "data",
        "GB",
        "peak packing, MB",
        "peak training, MB",
        "packing, s",
        "cache, MB",
        "characters read/s",
    ]
    print("|", " | ".join(head), "|")
    print("|---|" + "---|" * (len(head) - 1))
    for kind in given.rows:
        found = [measure(kind, size, given.folder) for size in given.sizes]
        for size, figures in zip(given.sizes, found, strict=True):
            print("|", " | ".join([kind, f"{size:g}", *(f"{figure:,.0f}" for figure in figures)]), "|")
        ratios = [f"{last / first:.2f}" for first, last in zip(found[0], found[-1], strict=True)]
        print("|", " | ".join([kind, "ratio", *ratios]), "|", flush=True)


if __name__ == "__main__":
    main()

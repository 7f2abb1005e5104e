"""SIGKILL at random moments: does every run end in the bytes of one that was never killed?

    OMP_NUM_THREADS=1 python benchmarks/kill.py [--kills 200] [--seconds 600]

Runs with dropout, shuffling and averaging that save after every step. Each start is a fork, killed at a random moment
of the time that a whole run takes; the next goes on from what it left, until the run ends. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from ohlol.artifacts.run import Layout, is_run
from ohlol.train import training
from ohlol.train.checkpoint import load_network
from ohlol.train.data import Dataset, load
from ohlol.train.loop import train
from ohlol.train.recipe import Recipe

RECIPE = {
    "task": {"kind": "tag"},
    "data": {
        "format": "inline",
        "rows": [[w, w[::-1]] for w in ("hello", "ab", "oh", "lol", "bell", "halo")],
    },
    "model": {"hidden_size": 8, "embedding_size": 4, "dropout": 0.3, "num_layers": 2},
    "train": {"epochs": 6, "batch_size": 2, "learning_rate": 0.01, "averaging": 0.9, "decay": "cosine"},
}
FILES = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors", "metrics.jsonl")


def started(recipe: Recipe, data: Dataset, run: Path) -> int:
    """A process that loads what stands in `run` and goes on."""
    if child := os.fork():
        return child
    begun = is_run(run)
    for which in (Layout.last, Layout.best) if begun else ():
        load_network(run, which)
    train(recipe, data, run, resume=begun)
    os._exit(0)


def moment(run: Path) -> str:
    if not is_run(run):
        return "before there was a run"
    if list(run.glob(".*.part")) or list(run.glob(".*.old")):
        return "in a save"
    return "between two saves"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600, help="begin no run after that")
    given = parser.parse_args()
    importlib.import_module("torch._dynamo")  # what the first step would import, in every fork
    training.KEPT_EVERY = -1  # seconds
    recipe = Recipe.parse(RECIPE, "benchmark")
    data = load(recipe, Path())
    moments: Counter[str] = Counter()
    stood: Counter[str] = Counter()
    runs, began = 0, time.monotonic()
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        if os.waitpid(started(recipe, data, whole), 0)[1]:
            sys.exit("the run that is not killed failed")
        took = time.monotonic() - began
        while moments.total() < given.kills and time.monotonic() - began < given.seconds:
            runs, run, ended = runs + 1, Path(folder) / f"run{runs}", False
            while not ended:
                child = started(recipe, data, run)
                time.sleep(random.random() * took)
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                ended = status == 0
                if status not in (0, signal.SIGKILL):
                    sys.exit(f"{run} did not load or go on, after {moments.total()} kills")
                if not ended:
                    moments[moment(run)] += 1
                    if (path := run / Layout.last / Layout.state).exists():
                        state = json.loads(path.read_bytes())
                        stood[f"{state['epoch']}/{state['step']}"] += 1
            for file in FILES:
                if (run / file).read_bytes() != (whole / file).read_bytes():
                    sys.exit(f"{file} differs from that of the run that was not killed")
    print("\n".join(f"{count:>5}  {name}" for name, count in moments.most_common()))
    print("epoch/step kept:", ", ".join(f"{at} {count}" for at, count in sorted(stood.items())))
    print(f"{moments.total()} kills; all {runs} runs ended in the same bytes")


if __name__ == "__main__":
    main()

"""Several processes train what one would, end together, and go on in any number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ohlol.artifacts.run import Layout
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.recipe import Recipe

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "ohlol",
]
WORDS = ("hello", "ab", "oh", "a", "lol", "hall", "bell", "halo", "ball", "hob", "ha")


@pytest.fixture
def tagging(tmp_path):
    """Dropout, shuffling, a mean of weights, rare labels; the last batch of an epoch has fewer rows than processes."""
    (tmp_path / "train.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in WORDS))
    (tmp_path / "dev.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in WORDS[:5]))
    raw = {
        "task": {"kind": "tag"},
        "data": {"format": "tsv", "train": "train.tsv", "dev": "dev.tsv"},
        "model": {
            "hidden_size": 8, "embedding_size": 4, "num_layers": 2, "bidirectional": True, "locked_dropout": True,
            "dropout": 0.3, "embedding_dropout": 0.1, "output_dropout": 0.1, "character_dropout": 0.1,
        },
        "train": {
            "epochs": 6, "batch_size": 5, "learning_rate": 0.01, "clip_norm": 1.0, "averaging": 0.9,
            "class_weights": 0.5, "label_smoothing": 0.1, "warm_up": 0.1, "decay": "cosine",
        },
    }  # fmt: skip
    return written(tmp_path, raw)


@pytest.fixture
def running_text(tmp_path):
    """State carried from row to row, in streams that are shared out."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    raw = {
        "task": {"kind": "lm"},
        "data": {"format": "text", "train": "text", "split": [0.9, 0.1, 0.0], "sequence_length": 8},
        "model": {"hidden_size": 8, "embedding_size": 8, "tied": True, "output_dropout": 0.1, "cell": "lstm"},
        "train": {"epochs": 6, "batch_size": 3, "learning_rate": 0.01, "carry_state": True},
    }
    return written(tmp_path, raw)


def written(folder, raw):
    recipe = Recipe.parse(raw, "a recipe")
    (folder / "r.toml").write_text(recipe.to_toml())
    train(recipe, load(recipe, folder), folder / "one")
    return recipe


def together(folder, *arguments):
    command = [*TORCHRUN, "train", "r.toml", "-o", "two", *arguments]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def alike(folder):
    """One process and two end in the same weights and figures, to float tolerance."""
    for which in (Layout.best, Layout.last):
        one, two = (load_file(folder / run / which / Layout.model) for run in ("one", "two"))
        for name in one:
            assert torch.allclose(one[name], two[name], atol=2e-5), (which, name)
    records = [(folder / run / Layout.metrics).read_text().splitlines() for run in ("one", "two")]
    for a, b in zip(*records, strict=True):
        assert json.loads(a) == pytest.approx(json.loads(b), rel=1e-4)


@pytest.mark.parametrize("recipe", ["tagging", "running_text"])
def test_two_processes_train_what_one_does(tmp_path, recipe, request):
    """The same global batch, the same dropout, one writer, one voice."""
    request.getfixturevalue(recipe)
    with together(tmp_path) as running:
        out, said = running.communicate()
    assert running.returncode == 0, said
    assert out.count("dev    ") == len({line for line in out.splitlines() if line.startswith("dev")})
    assert said.count("best epoch") == 1
    alike(tmp_path)
    assert not list((tmp_path / "two").glob(".*.part"))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGKILL, "another process of this run has ended"), (signal.SIGTERM, "stopped after epoch")],
)
def test_one_of_two_ends_and_one_process_goes_on(tmp_path, running_text, number, expected):
    """SIGKILL to one ends the other in a moment; SIGTERM stops both at the same step, with all that rows carry.

    One process alone goes on, and ends where it would have ended had it been alone from the start.
    """
    with together(tmp_path, "--set", "train.epochs=100000") as running:
        worker = second_worker(running.pid)
        record = tmp_path / "two" / Layout.metrics
        while not record.is_file() or not record.read_text():
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(worker, number)
        _, said = running.communicate(timeout=120)
    assert running.returncode != 0
    assert expected in said
    epochs = json.loads((tmp_path / "two" / Layout.last / Layout.state).read_text())["epoch"] + 1
    changed = running_text.train.model_copy(update={"epochs": epochs})
    recipe = running_text.model_copy(update={"train": changed})
    data = load(recipe, tmp_path)
    train(recipe, data, tmp_path / "two", resume=True)
    shutil.rmtree(tmp_path / "one")
    train(recipe, data, tmp_path / "one")
    alike(tmp_path)


def second_worker(parent):
    """The process of rank 1 that a torchrun has started."""
    while True:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
                if ours and "RANK=1\0" in (process / "environ").read_text():
                    return int(process.name)
        time.sleep(0.05)

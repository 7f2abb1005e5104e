"""SIGKILL at any moment, however often: a checkpoint that loads, and in the end the bytes of a run never killed."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ohlol.artifacts.run import Layout, is_run
from ohlol.train import training
from ohlol.train.checkpoint import load_network
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.recipe import Recipe

TAGGER = {
    "task": {"kind": "tag"},
    "data": {"format": "inline", "rows": [["hello", "ohlol"], ["ab", "ba"], ["oh", "ho"]]},
    "model": {"hidden_size": 4, "embedding_size": 2, "dropout": 0.3, "num_layers": 2, "locked_dropout": True},
    "train": {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "averaging": 0.9, "decay": "cosine"},
}
TEXT = {
    "task": {"kind": "lm"},
    "data": {"format": "text", "train": "text", "split": [0.8, 0.2, 0.0], "sequence_length": 5},
    "model": {"hidden_size": 4, "embedding_size": 4, "tied": True, "output_dropout": 0.2},
    "train": {"epochs": 1, "batch_size": 7, "learning_rate": 0.01, "carry_state": True},
}
RECIPES = {"tagger": TAGGER, "text": TEXT}
CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate", "os.link"}
FILES = [
    *(Path(which) / Layout.model for which in (Layout.last, Layout.best)),
    *(Path(name) for name in (Layout.metrics, Layout.recipe, Layout.alphabet)),
    Path(Layout.last) / Layout.optimizer,
]


@pytest.mark.parametrize("name", RECIPES)
def test_death_at_every_change_of_a_file(tmp_path, name):
    """A run that saves after every step dies before the first change of a file, the second, and so on.

    In a process of its own, which forks: each death costs a fork, not an import of torch.
    """
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog. " * 2)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 100, "deaths"


def deaths(folder: Path, name: str) -> int:
    """One run for every death, and one that dies again and again; how many deaths there were."""
    importlib.import_module("torch._dynamo")  # what the first step would import, in every fork
    training.KEPT_EVERY = -1  # seconds: every step saves
    os.fsync = lambda handle: None  # a killed process loses nothing that it wrote
    recipe = Recipe.parse(RECIPES[name], name)
    data = load(recipe, folder)

    def goes_on(run: Path, killed_before: int = 0) -> bool:
        """Train in a fork: this process itself never does, since torch's threads do not outlive one."""
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL), "the child says above what is wrong"
            return status == 0
        signal.alarm(60)
        begun = is_run(run)
        for which in (Layout.last, Layout.best) if begun else ():
            load_network(run, which)
        kill_before(killed_before, run)
        train(recipe, data, run, resume=begun)
        os._exit(0)

    def whole(run: Path) -> None:
        assert not list(run.glob(".*.part")), "what a killed process left is swept away"
        for file in FILES:
            assert (run / file).read_bytes() == (folder / "whole" / file).read_bytes(), file

    assert goes_on(folder / "whole")
    count, alive = 0, False
    while not alive:
        count += 1
        alive = goes_on(folder / f"run{count}", count)
        assert goes_on(folder / f"run{count}")
        whole(folder / f"run{count}")
        shutil.rmtree(folder / f"run{count}")
    number = 1
    while not goes_on(folder / "again", number):
        number += 1
    whole(folder / "again")
    return count + number


def kill_before(number: int, run: Path) -> None:
    """SIGKILL to this process before it changes a file in `run` for the so manieth time."""
    left = number

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in CHANGES and str(arguments[0]).startswith(str(run)):
            if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
                return
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    print(deaths(Path(sys.argv[1]), sys.argv[2]))

"""Disks that fill up, folders that cannot be written to, losses that burst: one message, and nothing good is lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ohlol.artifacts import files
from ohlol.artifacts.errors import TrainingError
from ohlol.artifacts.run import Layout
from ohlol.cli import main
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.recipe import Recipe

RECIPE = """
[task]
kind = "tag"
[data]
format = "tsv"
train = "train.tsv"
dev = "train.tsv"
[model]
embedding_size = 4
hidden_size = 8
num_layers = 2
bidirectional = true
dropout = 0.3
embedding_dropout = 0.1
output_dropout = 0.1
character_dropout = 0.1
locked_dropout = true
initialisation = "orthogonal"
[train]
epochs = 4
batch_size = 3
optimizer = "adamw"
weight_decay = 0.01
learning_rate = 0.01
warm_up = 0.2
decay = "cosine"
label_smoothing = 0.1
class_weights = 0.5
clip_norm = 1.0
averaging = 0.9
"""
OHLOL = [sys.executable, "-m", "ohlol"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    words = ("hello", "ab", "oh", "a", "lol", "hall", "bell", "halo", "ball", "hob")
    (tmp_path / "train.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder, run="run"):
    return (folder / run / Layout.last / Layout.model).read_bytes()


def test_every_option_at_once_gives_the_same_bytes_in_another_process(folder):
    """Recipe, data and seed say everything: not the hashes of strings, which Python draws anew for each process."""
    for name in ("a", "b"):
        ran = subprocess.run(
            [*OHLOL, "train", "r.toml", "-o", name], env=os.environ | {"PYTHONHASHSEED": str(ord(name))},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    assert weights(folder, "a") == weights(folder, "b")


@pytest.mark.parametrize("calls", [1, 9, 25, 40])
def test_a_full_disk_ends_the_training_and_room_lets_it_go_on(folder, monkeypatch, calls):
    """The disk fills up at any moment: exit 1, the reason, and the run resumes to the bytes it would have had."""
    assert CliRunner().invoke(main, ["train", "r.toml", "-o", "whole"]).exit_code == 0
    left, sync = [calls], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        result = CliRunner().invoke(main, ["train", "r.toml", "-o", "run"])
    assert result.exit_code == 1
    assert "Error: run: cannot be written to (No space left on device); " in result.output
    resume = ["--resume"] if (folder / "run" / Layout.recipe).is_file() else []
    assert CliRunner().invoke(main, ["train", "r.toml", "-o", "run", *resume]).exit_code == 0
    assert weights(folder) == weights(folder, "whole")


def test_a_folder_that_cannot_be_written_to_is_told_before_training(folder):
    """What is no folder, or not ours to write to, is named."""
    (folder / "file").write_text("mine")
    result = CliRunner().invoke(main, ["train", "r.toml", "-o", "file/run"])
    assert result.exit_code == 1
    assert (
        "Error: file/run: cannot be written to (Not a directory); nothing has been trained yet"
        in result.output
    )
    if os.geteuid():  # for root, modes say nothing
        (folder / "locked").mkdir(mode=0o500)
        result = CliRunner().invoke(main, ["train", "r.toml", "-o", "locked/run"])
        assert result.exit_code == 1
        assert "Permission denied" in result.output


def test_a_loss_that_bursts_says_the_rate_of_its_step(folder):
    """With a schedule the learning rate is that of the step; the mean that was kept is still whole."""
    settings = [
        'train.optimizer="sgd"',
        "train.learning_rate=1e38",
        "train.clip_norm=0.0",
        "train.warm_up=1.0",
    ]
    recipe = Recipe.load(folder / "r.toml", settings)
    with pytest.raises(TrainingError) as caught:
        train(recipe, load(recipe, folder), folder / "run")
    found = re.match(r"epoch 1, step (\d): the loss is \S+, with learning rate (\S+);", str(caught.value))
    assert found is not None
    assert float(found[2]) == pytest.approx(1e38 * int(found[1]) / 16, rel=1e-3)
    assert train_again(folder, *settings).exit_code == 1  # it resumes, and bursts again


def train_again(folder, *settings):
    overrides = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(main, ["train", "r.toml", "-o", "run", "--resume", *overrides])
    assert "the loss is" in result.output
    return result


def test_two_trainings_into_one_folder(folder):
    """The second is refused at once, the first goes on; what a killed one leaves keeps nobody out."""
    running = subprocess.Popen(
        [*OHLOL, "train", "r.toml", "-o", "run", "--set", "train.epochs=100000"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running:
        for line in running.stderr:
            if line.startswith("epoch"):
                break
        settings = ["--set", "train.epochs=100000"]
        second = CliRunner().invoke(main, ["train", "r.toml", "-o", "run", "--resume", *settings])
        assert second.exit_code == 1
        assert "run: another process is training into it; wait for its end" in second.output
        assert running.poll() is None
        running.kill()
    third = subprocess.run(
        [*OHLOL, "train", "r.toml", "-o", "other", "--set", "train.epochs=1"],
        capture_output=True,
        check=False,
    )
    assert third.returncode == 0
    assert (folder / "run" / Layout.lock).exists()
    recipe = Recipe.load(folder / "r.toml", ["train.epochs=100000"])

    class Enough(Exception):
        pass

    def enough(network, record):
        raise Enough

    with pytest.raises(Enough):  # it goes on
        train(recipe, load(recipe, folder), folder / "run", resume=True, after_epoch=enough)

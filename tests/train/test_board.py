"""TensorBoard's events: the right points, once each, and everything passed on."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ohlol.artifacts.run import Layout
from ohlol.train.board import EVERY, Board
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.progress import Progress
from ohlol.train.recipe import Recipe

STEPS = 25  # in an epoch


class Listener(Progress):
    """Keeps the losses of all steps, and raises after so many."""

    def __init__(self, last=None):
        self.losses, self.epochs, self.last, self.entered = [], [], last, 0

    def step(self, characters, loss):
        before = (0.0, 0) if self.state.step == 1 else self.before
        self.losses.append((self.state.loss - before[0]) / (self.state.weight - before[1]))
        self.before = (self.state.loss, self.state.weight)
        if len(self.losses) == self.last:
            raise RuntimeError("killed")

    def epoch(self, record, best):
        self.epochs.append(record)

    def __enter__(self):
        self.entered += 1
        return self


def recipe_of(tmp_path, epochs=2):
    words = [f"{k:03}" for k in range(2 * STEPS)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    raw = {
        "task": {"kind": "tag"},
        "data": {"format": "tsv", "train": "train.tsv", "dev": "dev.tsv"},
        "model": {"hidden_size": 4, "embedding_size": 4},
        "train": {"epochs": epochs, "batch_size": 2},
    }
    return Recipe.parse(raw, "a recipe")


def points(folder):
    events = EventAccumulator(str(folder / "run" / Layout.tensorboard))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_loss_and_metrics(tmp_path):
    """The loss is the mean over the steps since the last point; the dev metrics are those of metrics.jsonl."""
    recipe, heard = recipe_of(tmp_path), Listener()
    train(
        recipe,
        load(recipe, tmp_path),
        tmp_path / "run",
        progress=Board(tmp_path / "run", beside=heard),
    )
    found = points(tmp_path)
    assert [step for step, _ in found["train/loss"]] == [10, 20, 25, 35, 45, 50]
    place = 0
    for step, value in found["train/loss"]:
        assert value == pytest.approx(sum(heard.losses[place:step]) / (step - place), rel=1e-5)
        place = step
    history = [json.loads(line) for line in (tmp_path / "run" / Layout.metrics).read_text().splitlines()]
    assert heard.epochs == history
    assert heard.entered == 1
    for name in ("accuracy", "macro_f1"):
        expected = [(STEPS * (k + 1), pytest.approx(r[f"dev_{name}"])) for k, r in enumerate(history)]
        assert found[f"dev/{name}"] == expected


def test_killed_and_resumed(tmp_path):
    """The steps after the last checkpoint are done again, and their old points go: none is there twice."""
    recipe = recipe_of(tmp_path)
    data = load(recipe, tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        train(
            recipe, data, tmp_path / "run",
            progress=Board(tmp_path / "run", beside=Listener(last=STEPS + 2 * EVERY + 1)),
        )  # fmt: skip
    assert [step for step, _ in points(tmp_path)["train/loss"]][-1] == STEPS + 2 * EVERY
    train(recipe, data, tmp_path / "run", resume=True, progress=Board(tmp_path / "run"))
    resumed = points(tmp_path)
    assert [step for step, _ in resumed["train/loss"]] == [10, 20, 25, 35, 45, 50]
    assert [step for step, _ in resumed["dev/accuracy"]] == [25, 50]


def test_the_learning_rate_if_there_is_one(tmp_path):
    """A record that names it gets a point."""
    recipe = recipe_of(tmp_path, epochs=0)
    board = Board(tmp_path / "run")
    board.state = train(recipe, load(recipe, tmp_path), tmp_path / "run").state
    board.steps = STEPS
    board.start(1, 0, 10)
    with board:
        board.state.epoch = 1
        board.epoch({"epoch": 1, "loss": 1.0, "learning_rate": 0.25}, best=True)
    assert points(tmp_path) == {"train/learning_rate": [(STEPS, 0.25)]}


def test_the_folder_of_events_is_the_runs_own(tmp_path):
    """Training may begin in a folder where only the events of an earlier one are left."""
    recipe = recipe_of(tmp_path, epochs=1)
    (tmp_path / "run" / Layout.tensorboard).mkdir(parents=True)
    (tmp_path / "run" / Layout.tensorboard / "events.out.tfevents.1").write_text("")
    (tmp_path / "run" / Layout.report).write_text("")
    ended = train(recipe, load(recipe, tmp_path), tmp_path / "run")
    assert ended.state.epoch == 1

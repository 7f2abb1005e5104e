"""Training: seeds, resuming, stopping, keeping the best."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from ohlol.artifacts import run as run_module
from ohlol.artifacts.errors import CheckpointError, RecipeError, TrainingError
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.progress import Lines, Progress
from ohlol.train.recipe import Recipe

ROWS = [[w, w[::-1]] for w in ("hello", "ab", "oh", "a", "lol", "hall", "bell", "halo", "ball", "hob")]
WEIGHTS = run_module.Layout.model


def recipe_of(tmp_path, **settings):
    """A small recipe with dropout and shuffling on, with files for train and dev."""
    for name, rows in (("train", ROWS), ("dev", ROWS[:4])):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    raw = {
        "task": {"kind": "tag"},
        "data": {"format": "tsv", "train": "train.tsv", "dev": "dev.tsv"},
        "model": {
            "hidden_size": 8,
            "embedding_size": 4,
            "num_layers": 2,
            "dropout": 0.3,
            "bidirectional": True,
        },
        "train": {"epochs": 4, "batch_size": 3, "learning_rate": 0.01, "clip_norm": 1.0, **settings},
    }
    return Recipe.parse(raw, "a recipe")


def bytes_of(folder, which="last"):
    return (folder / which / WEIGHTS).read_bytes()


class StopAfter(Progress):
    """Ctrl-C after so many steps, as the handler sees it.

    A real signal goes to a process of its own, below: pytest gives signals a small stack, which the frame of a
    process that has used AMX (OpenVINO, int8 in ONNX Runtime) outgrows.
    """

    def __init__(self, steps):
        self.left = steps

    def step(self, characters, loss):
        self.left -= 1
        if not self.left:
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """Recipe, data and seed say everything; another seed says something else."""
    recipe = recipe_of(tmp_path)
    for name in ("a", "b"):
        train(recipe, load(recipe, tmp_path), tmp_path / name)
    other = recipe_of(tmp_path, seed=1)
    train(other, load(other, tmp_path), tmp_path / "c")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 11, 15])
def test_ctrl_c_then_resume_ends_in_the_same_bytes(tmp_path, steps):
    """A run stopped at any step, mid-epoch or between two, goes on as if it had not been."""
    recipe = recipe_of(tmp_path)
    data = load(recipe, tmp_path)
    train(recipe, data, tmp_path / "whole")
    stopped = train(recipe, data, tmp_path / "run", progress=StopAfter(steps))
    assert stopped.interrupted
    assert stopped.state.epoch * 4 + stopped.state.step == steps
    resumed = train(recipe, data, tmp_path / "run", resume=True)
    assert not resumed.interrupted
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert bytes_of(tmp_path / "run", "best") == bytes_of(tmp_path / "whole", "best")
    metrics = run_module.Layout.metrics
    assert (tmp_path / "run" / metrics).read_text() == (tmp_path / "whole" / metrics).read_text()


def test_more_epochs_later(tmp_path):
    """A run may be resumed with more epochs: that is the one thing of a recipe that may change."""
    recipe, longer = recipe_of(tmp_path, epochs=2), recipe_of(tmp_path, epochs=4)
    data = load(recipe, tmp_path)
    train(longer, data, tmp_path / "whole")
    train(recipe, data, tmp_path / "run")
    train(longer, data, tmp_path / "run", resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert Recipe.load(tmp_path / "run" / "recipe.toml") == longer  # provenance says what was done


def test_resuming_with_something_else_is_refused(tmp_path):
    """Another recipe or other data would give a run that nobody can repeat; what changed is named."""
    recipe = recipe_of(tmp_path)
    train(recipe, load(recipe, tmp_path), tmp_path / "run")
    other = recipe_of(tmp_path, learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"train\.learning_rate was 0\.01, is 0\.5"):
        train(other, load(other, tmp_path), tmp_path / "run", resume=True)
    (tmp_path / "train.tsv").write_text((tmp_path / "train.tsv").read_text() + "hello\tohlol\n")
    with pytest.raises(CheckpointError, match="the train data is another"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(tmp_path):
    """Hours of training are not lost to a command typed twice."""
    recipe = recipe_of(tmp_path)
    train(recipe, load(recipe, tmp_path), tmp_path / "run")
    with pytest.raises(CheckpointError, match="--resume"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run")
    with pytest.raises(CheckpointError, match="missing"):
        train(recipe, load(recipe, tmp_path), tmp_path / "none", resume=True)


def test_a_run_without_its_recipe_is_not_overwritten(tmp_path):
    """A finished run that lost one file is still hours of training."""
    recipe = recipe_of(tmp_path)
    train(recipe, load(recipe, tmp_path), tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").unlink()
    with pytest.raises(CheckpointError, match=r"holds a run whose recipe\.toml is missing; put it back"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run")


def test_the_best_checkpoint_is_kept(tmp_path):
    """best/ is of the epoch with the best dev metric, and its metrics are the run's results."""
    recipe = recipe_of(tmp_path, epochs=12, learning_rate=0.05, monitor="macro_f1")
    data = load(recipe, tmp_path)
    ended = train(recipe, data, tmp_path / "run")
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [record["dev_macro_f1"] for record in history]
    assert ended.state.best_epoch == values.index(max(values)) + 1
    assert finish(ended, data)["dev"]["macro_f1"] == pytest.approx(max(values))


def test_early_stopping(tmp_path):
    """Training ends after so many epochs without a better dev metric."""
    recipe = recipe_of(tmp_path, epochs=50, early_stopping=2, learning_rate=1e-9)
    ended = train(recipe, load(recipe, tmp_path), tmp_path / "run")
    assert ended.state.epoch == ended.state.best_epoch + 2 < 50
    assert not ended.interrupted


def test_a_loss_that_is_not_a_number(tmp_path):
    """Training stops, says where, and the last good checkpoint is still there."""
    recipe = recipe_of(tmp_path, optimizer="sgd", learning_rate=1e38, clip_norm=0.0)
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf), with learning rate 1e\+38"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run")
    weights = torch.frombuffer(bytearray(bytes_of(tmp_path / "run")[-64:]), dtype=torch.float32)
    assert weights.isfinite().all()


def test_a_device_that_is_not_there(tmp_path):
    """A device of another machine, or a misspelt one, gets one clear message."""
    recipe = recipe_of(tmp_path)
    with pytest.raises(RecipeError, match="--device cuda:99"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", device="cuda:99")
    with pytest.raises(RecipeError, match="--device gpuu"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", device="gpuu")
    with pytest.raises(RecipeError, match="--device meta"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", device="meta")


def test_gradients_are_clipped(tmp_path):
    """With clip_norm no step of plain gradient descent is longer than learning rate times the limit."""
    recipe = recipe_of(tmp_path, optimizer="sgd", learning_rate=1.0, clip_norm=0.01, epochs=1, batch_size=10)
    data = load(recipe, tmp_path)
    train(recipe_of(tmp_path, epochs=0), data, tmp_path / "before")
    after = train(recipe, data, tmp_path / "after").network.state_dict()
    before = train(recipe_of(tmp_path, epochs=0), data, tmp_path / "again").network.state_dict()
    step = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm()
    assert 0.009 < step <= 0.0101


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_real_process(tmp_path, number):
    """A signal to the command: exit 1, how to go on, a checkpoint that the printed command resumes."""
    recipe_of(tmp_path)
    (tmp_path / "r.toml").write_text(
        '[task]\nkind = "tag"\n[data]\nformat = "tsv"\ntrain = "train.tsv"\n[train]\nepochs = 1000000\n'
    )
    command = [sys.executable, "-c", "from ohlol.cli import main; main()", "train", "r.toml", "-o", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if line.startswith("epoch") and " 3/" in line:
                break
        running.send_signal(number)
        message = running.stderr.read()
    assert running.returncode == 1
    assert "  ohlol train r.toml -o run --resume\n" in message
    assert "Traceback" not in message
    done = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["epoch"]
    resumed = [*command, "--resume", "--set", f"train.epochs={done + 1}"]
    ended = subprocess.run(resumed, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_killed_at_random_moments(tmp_path):
    """SIGKILL at any moment leaves a checkpoint that loads and goes on to the same bytes."""
    recipe = recipe_of(tmp_path, epochs=40)
    data = load(recipe, tmp_path)
    train(recipe, data, tmp_path / "whole")
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    command = [sys.executable, "-c", "from ohlol.cli import main; main()", "train", "r.toml", "-o", "run"]
    for number in range(4):
        begun = run_module.is_run(tmp_path / "run")
        running = subprocess.Popen(
            [*command, *(["--resume"] if begun else [])], cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        while not (tmp_path / "run" / "last").exists() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(0.03 * number)
        running.kill()
        running.wait()
    train(recipe, data, tmp_path / "run", resume=run_module.is_run(tmp_path / "run"))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert list((tmp_path / "run").glob(".*.part")) == [], "what a killed process left is swept away"


def test_a_folder_with_a_persons_files_is_refused(tmp_path):
    """`-o .` in a folder that has a last/ of its own must not cost anybody's files."""
    recipe = recipe_of(tmp_path)
    (tmp_path / "mine" / "last").mkdir(parents=True)
    (tmp_path / "mine" / "last" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, which no run wrote"):
        train(recipe, load(recipe, tmp_path), tmp_path / "mine")
    assert (tmp_path / "mine" / "last" / "thesis.tex").read_text() == "mine"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The last step of an epoch can overflow after its loss was looked at; the good checkpoint stays."""
    recipe = recipe_of(
        tmp_path, optimizer="sgd", learning_rate=3e38, clip_norm=0.0, epochs=1, batch_size=10, loss="sum"
    )
    with pytest.raises(TrainingError, match="a weight is not finite"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run")
    for which in ("last", "best"):
        saved = load_file(tmp_path / "run" / which / WEIGHTS)
        assert all(weight.isfinite().all() for weight in saved.values())


def test_what_has_changed_is_said(tmp_path):
    """Data by size and digest, a run of an earlier version too; other versions of what computes are no refusal."""
    recipe = recipe_of(tmp_path, epochs=1)
    train(recipe, load(recipe, tmp_path), tmp_path / "run")
    path = tmp_path / "run" / "last" / "state.json"
    state = json.loads(path.read_text())
    del state["digests"]["train"]["bytes"]
    path.write_text(json.dumps({**state, "versions": {"torch": "1.0"}}))
    lines = tmp_path / "said"
    with lines.open("w") as out:
        train(recipe, load(recipe, tmp_path), tmp_path / "run", resume=True, progress=Lines(out))
    assert lines.read_text().startswith("note: torch was 1.0, is ")
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("hello\tohlol\n")
    with pytest.raises(CheckpointError, match=r"it had sha256 \w{12}….*, has \d+ bytes, sha256 \w{12}…"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", resume=True)


def test_a_recipe_of_before_an_option_goes_on(tmp_path):
    """Keys that a run's recipe does not have yet are at their defaults."""
    recipe = recipe_of(tmp_path, epochs=1)
    train(recipe, load(recipe, tmp_path), tmp_path / "run")
    path = tmp_path / "run" / "recipe.toml"
    kept = [
        k for k in path.read_text().splitlines() if not k.startswith(("averaging", "carry_state", "tied"))
    ]
    path.write_text("\n".join(kept))
    assert train(recipe, load(recipe, tmp_path), tmp_path / "run", resume=True).state.epoch == 1


def test_a_folder_that_is_removed_or_exchanged_ends_the_training(tmp_path):
    """What somebody removed is not made anew, and a run that stands there now is not written into."""
    recipe = recipe_of(tmp_path)

    class Removes(Progress):
        def epoch(self, record, best):
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(TrainingError, match="was removed or exchanged"):
        train(recipe, load(recipe, tmp_path), tmp_path / "run", progress=Removes())
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume(tmp_path):
    """The message says what to do, and a misspelt folder is not made."""
    recipe = recipe_of(tmp_path)
    with pytest.raises(CheckpointError, match="start it without --resume"):
        train(recipe, load(recipe, tmp_path), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()

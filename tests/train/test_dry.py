"""`--dry-run`: what is said before hours are spent, and that nothing is left behind."""

from __future__ import annotations

import re

from click.testing import CliRunner

from ohlol.cli import main
from ohlol.train import dry

RECIPE = """
[task]
kind = "classify"
[data]
format = "tsv"
train = "train.tsv"
dev = "dev.tsv"
[model]
embedding_size = 3
hidden_size = 2
cell = "rnn"
[train]
epochs = 7
batch_size = 4
"""


def said(tmp_path, monkeypatch, *arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry, "ENOUGH", 0.05)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "train.tsv").write_text("".join(f"{'ab' * (k % 3 + 1)}\t{'AB'[k % 2]}\n" for k in range(10)))
    (tmp_path / "dev.tsv").write_text("ab\tA\nz\tB\n")
    return CliRunner().invoke(main, ["train", "r.toml", "--dry-run", *arguments])


def test_sizes_oddities_and_time(tmp_path, monkeypatch):
    """Rows, characters, unknown ones, repeated rows, parameters, steps, and an estimate; the folder stays as it was."""
    result = said(tmp_path, monkeypatch)
    assert result.exit_code == 0, result.output
    assert "10 train, 2 dev rows; 2 characters, 2 labels" in result.output
    assert "note: 1 of 2 dev rows have a text that stands in the train data too" in result.output
    assert (
        "dev    2 rows, 3 characters (1 in the middle row, 2 in the longest), 33.33% unknown" in result.output
    )
    # embedding 4 × 3, layer 2 × 3 + 2 × 2 + 2 + 2, head 2 × 2 + 2
    assert "32 parameters, 0.00 MB; 3 steps an epoch" in result.output
    assert re.search(r"chars/s on cpu: about \d+s an epoch, \d+s for 7\n", result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "r.toml", "train.tsv"]


def test_what_training_would_refuse_is_refused(tmp_path, monkeypatch):
    """Mistakes of recipe and data come as from `train`; a loss that is not a number shows within seconds."""
    result = said(tmp_path, monkeypatch, "--set", "train.epoch=3")
    assert result.exit_code == 1
    assert "did you mean `epochs`?" in result.output
    result = said(
        tmp_path, monkeypatch, "--set", 'train.optimizer="sgd"', "--set", "train.learning_rate=1e38"
    )
    assert result.exit_code == 1
    assert "with learning rate 1e+38" in result.output


def test_a_test_set_that_was_trained_on_is_told(tmp_path, monkeypatch):
    """`ohlol train` itself says it too."""
    said(tmp_path, monkeypatch)
    result = CliRunner().invoke(main, ["train", "r.toml", "--set", "train.epochs=1"])
    assert "note: 1 of 2 dev rows have a text that stands in the train data too" in result.output

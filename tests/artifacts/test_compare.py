"""Runs and bundles side by side, from files alone: there is no torch here."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from ohlol.artifacts.compare import as_json, as_text, best, compare, differences
from ohlol.artifacts.errors import CheckpointError
from ohlol.artifacts.run import Layout

MODEL = {
    "cell": "gru",
    "num_layers": 2,
    "hidden_size": 8,
    "bidirectional": True,
    "input": "embedding",
    "embedding_size": 4,
    "head": "linear",
}


def make_run(folder, task="tag", results=None, epochs=5, rate=0.01, sha="aa", **model):
    """A run's folder as training leaves it, weights of 4 × 3 and 5 numbers in it."""
    (folder / Layout.last).mkdir(parents=True)
    (folder / Layout.best).mkdir()
    network = "".join(f"{key} = {json.dumps(value)}\n" for key, value in (MODEL | model).items())
    (folder / Layout.recipe).write_text(
        f'[task]\nkind = "{task}"\n[model]\n{network}[train]\nepochs = {epochs}\nlearning_rate = {rate}\n'
    )
    state = {"epoch": 3, "best_epoch": 2, "digests": {"train": {"path": "t.tsv", "sha256": sha}}}
    (folder / Layout.last / Layout.state).write_text(json.dumps(state))
    shapes = {"a": {"shape": [4, 3]}, "b": {"shape": [5]}, "__metadata__": {"format": "pt"}}
    header = json.dumps(shapes).encode()
    (folder / Layout.best / Layout.model).write_bytes(struct.pack("<Q", len(header)) + header + bytes(68))
    if results is not None:
        (folder / Layout.results).write_text(json.dumps(results))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Two of the same task, one of another, one that has not ended."""
    return [
        make_run(tmp_path / "a", results={"dev": {"accuracy": 0.5, "macro_f1": 0.75}}),
        make_run(
            tmp_path / "b", results={"dev": {"accuracy": 0.875, "macro_f1": 0.25}}, hidden_size=16, sha="bb"
        ),
        make_run(tmp_path / "c", "lm", {"dev": {"nats_per_character": 1.5, "bits_per_character": 2.2}}),
        make_run(tmp_path / "d", epochs=9),
    ]


def test_what_a_row_holds(runs):
    """Each fact is that of the files."""
    row = compare(runs[1:2])[0]
    assert (row.task, row.parameters, row.epoch, row.best_epoch, row.finished) == ("tag", 17, 3, 2, True)
    assert row.network["hidden_size"] == 16
    assert row.metrics == {"dev": {"accuracy": 0.875, "macro_f1": 0.25}}


def test_the_table(runs):
    """A line for each, the best marked within its task, what a run lacks as a dash, the unfinished as such."""
    head, a, b, c, d = as_text(compare(runs)).split("\n\n")[0].splitlines()
    assert "2 × gru 16, both ways" in b
    assert "bits" not in head
    figures = [" ".join(line.split("ways")[1].split()) for line in (a, b, c, d)]
    assert figures[0] == "17 2 of 3 0.5000 0.7500 * –"
    assert figures[1] == "17 2 of 3 0.8750 * 0.2500 –"
    assert figures[2] == "17 2 of 3 – – 1.5000"
    assert figures[3] == "17 unfinished, after 3 of 9 – – –"


def test_less_is_better_where_it_is(tmp_path):
    """The best of nats per character is the smallest; where all are the same, none is best."""
    paths = [
        make_run(tmp_path / str(k), "lm", {"test": {"nats_per_character": value, "accuracy": 1.0}})
        for k, value in enumerate((2.0, 1.25, 1.5))
    ]
    assert best(compare(paths)) == {("lm", "test", "nats_per_character"): 1.25}


def test_the_time_where_it_is_known(runs):
    """A run that counted its seconds says minutes; one that did not, a dash."""
    path = Path(runs[0]) / Layout.last / Layout.state
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 90.0}))
    head, a, b = as_text(compare(runs[:2])).split("\n\n")[0].splitlines()
    assert "minutes" in head
    assert a.split("ways")[1].split()[4] == "1.5"
    assert b.split("ways")[1].split()[4] == "–"


def test_where_recipes_differ(runs):
    """Only the keys that are not the same, and data exchanged behind the same path."""
    rows = compare(runs[:2])
    assert differences(rows) == {"model.hidden_size": [8, 16], "train data's sha256": ["aa", "bb"]}
    table = as_text(rows).split("\n\n")[-1].splitlines()
    assert table[1].split() == ["model.hidden_size", "8", "16"]
    assert differences(compare(runs[:1])) == {}


def test_as_json(runs):
    """Everything, with bits; a number stays a number."""
    told = json.loads(as_json(compare(runs)))
    assert [run["finished"] for run in told["runs"]] == [True, True, True, False]
    assert told["runs"][2]["metrics"]["dev"]["bits_per_character"] == 2.2
    assert told["differences"]["train.epochs"] == [5, 5, 5, 9]


def test_bundles_beside_runs(runs, golden):
    """A bundle says what its manifest does; its parameters are counted, not what the file needs besides."""
    hello, words, run = compare(["hello", str(golden / "words"), runs[0]])
    assert (hello.task, hello.parameters, hello.epoch) == ("tag", 400, None)
    assert words.finished
    assert "–" in as_text([hello, words, run])


def test_what_is_no_run(runs, tmp_path):
    """One line that names the folder, for what is missing and what is damaged."""
    with pytest.raises(CheckpointError, match=r"nothing.*: missing; expected a run made by `ohlol train`"):
        compare([runs[0], str(tmp_path / "nothing")])
    (tmp_path / "a" / Layout.results).write_text("[1]")
    with pytest.raises(CheckpointError, match=r"damaged .*; train again"):
        compare(runs)
    (tmp_path / "b" / Layout.best / Layout.model).write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match=r"damaged .*; train again"):
        compare([runs[1]])

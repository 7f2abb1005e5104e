"""Long rows are measured in stretches, with what they would have answered whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import ohlol
from ohlol.export.bundle import export
from ohlol.train import evaluate
from ohlol.train.checkpoint import load_network
from ohlol.train.data import load, load_split
from ohlol.train.evaluate import CONTEXT, STRETCH, evaluate_model, evaluate_network, logits_of, surprise
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe

LONG = 2 * STRETCH + 1000  # the shortest rows below are read whole, this one is not


def recipe_of(folder, task):
    """A row of `LONG` characters and two that are read whole, of letters drawn at random."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcd "), size)) for size in (LONG, 2 * STRETCH - 1, 30)]
    rows = [f"{text}\t{text if task == 'lm' else text.replace(' ', 'b')}\n" for text in texts]
    (folder / "dev").write_text("".join(rows))
    (folder / "train").write_text("ab cd\tabbcd\nabcd\tabcd\n")
    raw = {
        "task": {"kind": task},
        "data": {"format": "tsv", "train": "train", "dev": "dev"},
        "model": {"cell": "gru", "hidden_size": 6, "embedding_size": 4, "bidirectional": task == "tag"},
        "train": {"epochs": 3, "learning_rate": 0.01},
    }
    return Recipe.parse(raw, "it")


@pytest.fixture(scope="module", params=["tag", "lm"])
def trained(request, tmp_path_factory):
    """A trained network and its bundle, the long rows as dev data."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = recipe_of(folder, request.param)
    data = load(recipe, folder)
    train(recipe, data, folder / "run")
    export(folder / "run", folder / "bundle", formats=["onnx"])
    return load_network(folder / "run")[0], ohlol.load(folder / "bundle"), data


def whole(network, split, row):
    """Logits and targets of one row, read at once."""
    ids, lengths, targets = map(torch.from_numpy, split.rows.batch(np.array([row])))
    with torch.inference_mode():
        return network(ids, lengths)[0], targets[0]


def test_stretches_answer_as_the_whole_row(trained):
    """Every character once, each with the logits of the row read at once, up to what its context loses."""
    network, _, data = trained
    found = [torch.full((int(size), 1), torch.nan) for size in data.dev.rows.lengths]
    found = [row.expand(-1, network.head.out_features).clone() for row in found]
    for stretches, logits, _ in logits_of(network, data.dev, torch.device("cpu")):
        for s, own in zip(stretches, logits, strict=True):
            assert found[s.row][s.start : s.end].isnan().all(), "answered twice"
            found[s.row][s.start : s.end] = own[s.start - s.first : s.end - s.first]
    for row, logits in enumerate(found):
        torch.testing.assert_close(logits, whole(network, data.dev, row)[0], atol=1e-4, rtol=1e-4)


def test_figures_are_those_of_the_whole_rows(trained):
    """Summed over the stretches, −ln p is the row's; a tagger's metrics are those of its rows, whole."""
    network, _, data = trained
    if network.task == "tag":
        right = [
            torch.eq(logits.argmax(-1), gold)
            for logits, gold in (whole(network, data.dev, k) for k in range(3))
        ]
        found = evaluate_network(network, data.dev, data.vocabulary)["accuracy"]
        assert found == pytest.approx(float(torch.cat(right).double().mean()), abs=1e-4)
        return
    sums = np.zeros(3)
    for s, nats in surprise(network, data.dev):
        sums[s.row] += nats.sum()
    expected = [functional.cross_entropy(*whole(network, data.dev, k), reduction="sum") for k in range(3)]
    assert sums.tolist() == pytest.approx([float(nats) for nats in expected], rel=1e-4)


def test_which_rows_are_cut(trained):
    """Rows of at most two stretches are read whole; of others each stretch has its context, and no more."""
    network, _, data = trained
    after = CONTEXT if network.task == "tag" else 0
    length = int(data.dev.rows.lengths[0])
    assert length > 2 * STRETCH
    found = list(evaluate._stretches(data.dev.rows.lengths, network.task))
    assert [(s.row, s.first, s.last) for s in found] == [
        (0, 0, STRETCH + after),
        (0, STRETCH - CONTEXT, 2 * STRETCH + after),
        (0, 2 * STRETCH - CONTEXT, length),
        (1, 0, int(data.dev.rows.lengths[1])),
        (2, 0, int(data.dev.rows.lengths[2])),
    ]
    assert len(list(evaluate._stretches(np.array([2 * STRETCH, 2 * STRETCH + 1]), network.task))) == 4


def test_a_bundle_is_measured_alike(trained):
    """The exported file, in the same stretches, has the network's figures."""
    network, model, data = trained
    mine = evaluate_network(network, data.dev, data.vocabulary)
    assert evaluate_model(model, data.dev, data.vocabulary, network.task) == pytest.approx(mine, rel=1e-5)


def test_running_text_is_measured_whole_whichever_split_it_is(tmp_path):
    """Training cuts the text into short rows; its figure, by network or bundle, is that of the text."""
    (tmp_path / "text").write_text("abc abd abe\n" * 30)
    raw = {
        "task": {"kind": "lm"},
        "data": {"format": "text", "train": "text", "sequence_length": 7},
        "model": {"hidden_size": 8, "embedding_size": 4},
        "train": {"epochs": 3, "learning_rate": 0.02},
    }
    recipe = Recipe.parse(raw, "it")
    data = load(recipe, tmp_path)
    ended = train(recipe, data, tmp_path / "run")
    results = finish(ended, data)["train"]
    export(tmp_path / "run", tmp_path / "bundle", formats=["onnx"])
    split = load_split(recipe, data.vocabulary, "train", tmp_path, None)
    found = evaluate_model(ohlol.load(tmp_path / "bundle"), split, data.vocabulary, "lm")
    assert results == pytest.approx(found, abs=1e-5)
    assert len(split.rows) == 1

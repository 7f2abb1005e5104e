"""The teaching models: each trained, exported, proved and predicted, and what the lesson says of it."""

from __future__ import annotations

import pytest
import torch

import ohlol
from ohlol.export.bundle import export
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.network import Loop
from ohlol.train.recipe import Recipe


def trained(recipes, name, tmp_path, *overrides):
    """Train a recipe and export it; the last epoch's loss, and the bundle's model."""
    recipe = Recipe.load(recipes / "seed" / f"{name}.toml", overrides)
    data = load(recipe, recipes)
    ended = train(recipe, data, tmp_path / "run")
    finish(ended, data)
    export(tmp_path / "run", tmp_path / "bundle")  # raises where the proof fails
    history = ended.state.history
    return history[-1]["loss"] if history else None, ohlol.load(tmp_path / "bundle")


def test_rnn_cell(recipes, tmp_path):
    """One cell in a loop over time; the hidden state is the answer."""
    _, model = trained(recipes, "rnn_cell", tmp_path)
    assert str(model("hello")) == "ohlol"
    assert len(model("hellohello").labels) == 10  # the loop was trained on five steps, the export takes any


def test_rnn_layer(recipes, tmp_path):
    """Loop and layer with the same weights agree: out (T, B, H), hidden (layers, B, H), 3 steps of 4 -> 2."""
    _, model = trained(recipes, "rnn_layer", tmp_path)
    assert len(model("hel").labels) == 3
    torch.manual_seed(0)
    loop = Loop("rnn", 4, 2)
    x = torch.randn(3, 1, 4)  # (T, B, D)
    layer = torch.nn.RNN(4, 2)
    layer.load_state_dict(loop.as_layer().state_dict())
    out, hidden = layer(x)
    by_hand, last = loop(x.transpose(0, 1))
    assert (tuple(out.shape), tuple(hidden.shape)) == ((3, 1, 2), (1, 1, 2))
    torch.testing.assert_close(by_hand.transpose(0, 1), out)
    torch.testing.assert_close(last, hidden)
    assert torch.equal(out[-1], hidden[0])


def test_rnn_one_hot(recipes, tmp_path):
    """One layer, the hidden state is the answer: `ohlol`, at a loss that tanh keeps near 0.68 after 15 epochs."""
    loss, model = trained(recipes, "rnn_one_hot", tmp_path)
    assert loss == pytest.approx(0.68, abs=0.01)
    assert str(model("hello")) == "ohlol"


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_rnn_embedding(recipes, tmp_path, cell):
    """Embedding, two layers, linear head: `ohlol` with every cell."""
    loss, model = trained(recipes, "rnn_embedding", tmp_path, f"model.cell={cell}")
    assert str(model("hello")) == "ohlol"
    if cell == "rnn":
        assert loss <= 0.02


def test_rnn_embedding_for_each_of_twenty_seeds(recipes, tmp_path):
    """No lucky seed: `ohlol`, and loss at most 0.02, for every one."""
    recipe = Recipe.load(recipes / "seed" / "rnn_embedding.toml")
    data = load(recipe, recipes)
    for seed in range(20):
        settings = recipe.train.model_copy(update={"seed": seed})
        ended = train(recipe.model_copy(update={"train": settings}), data, tmp_path / str(seed))
        assert finish(ended, data)["train"]["accuracy"] == 1.0, seed
        assert ended.state.history[-1]["loss"] <= 0.02, seed


def test_the_shipped_hello_is_what_its_recipe_trains(recipes, tmp_path):
    """Provenance is true: the recipe inside the shipped bundle gives that bundle's answers."""
    shipped = ohlol.load("hello")
    recipe = Recipe.parse(shipped.manifest.provenance["recipe"], "hello")
    assert recipe == Recipe.load(recipes / "seed" / "rnn_embedding.toml")
    _, model = trained(recipes, "rnn_embedding", tmp_path)
    found, expected = model("hello").probabilities, shipped("hello").probabilities
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=0)

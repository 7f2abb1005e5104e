"""Real data through every stage: raw files, training, export with proof, answers on text not in the data.

Training here is short; the figures of whole runs are in docs/results.md.
"""

from __future__ import annotations

import pytest

import ohlol
from ohlol.export.bundle import export
from ohlol.train.data import load
from ohlol.train.evaluate import evaluate_model
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe

SIZES = ("model.hidden_size=64", "model.embedding_size=64", "train.early_stopping=0", "train.batch_size=16")
SMALLER = (
    "model.hidden_size=32",
    "model.num_layers=1",
    "model.dropout=0.0",
    "train.learning_rate=0.01",
    "train.decay=none",
    "data.max_length=500",
)


@pytest.fixture
def pipeline(recipes, real_data, tmp_path):
    """Train a recipe with some keys replaced, export it, and hold the bundle's metrics against the network's."""

    def through(name, *overrides):
        recipe = Recipe.load(recipes / f"{name}.toml", overrides)
        data = load(recipe, real_data)
        ended = train(recipe, data, tmp_path / "run")
        results = finish(ended, data)
        export(tmp_path / "run", tmp_path / "bundle")
        model = ohlol.load(tmp_path / "bundle")
        split = data.test or data.dev
        by_bundle = evaluate_model(model, split, data.vocabulary, recipe.task.kind)
        by_network = results["test" if data.test else "dev"]
        assert by_bundle == pytest.approx(by_network, abs=2e-4)
        return model, by_bundle

    return through


def test_names18(pipeline):
    """Surname to language."""
    model, metrics = pipeline("names18", "train.epochs=6", "model.hidden_size=64", "train.warm_up=0.0")
    assert metrics["accuracy"] > 0.75  # the majority class is 51 %
    assert [r.label for r in model(["Kurosawa", "Papadimitriou", "Abdulaev"])] == [
        "Japanese",
        "Greek",
        "Russian",
    ]


def test_ud_vi_vtb(pipeline):
    """Vietnamese words, which hold spaces."""
    model, metrics = pipeline("ud_vi_vtb", *SMALLER, "train.epochs=4")
    assert metrics["words_f1"] > 0.72  # every syllable a word gives less
    result = model("Tôi đang học ở Hà Nội.")
    assert "".join(result.words).replace(" ", "") == "TôiđanghọcởHàNội."
    assert result.words[-1] == "."


def test_ud_en_ewt(pipeline):
    """English tokens and sentences from raw paragraphs."""
    model, metrics = pipeline("ud_en_ewt", *SMALLER, "train.epochs=1", "model.hidden_size=24")
    assert metrics["words_f1"] > 0.93
    assert metrics["sentences_f1"] > 0.5
    result = model("We didn't go there. It was closed.")
    assert result.words[-4:] == ["It", "was", "closed", "."]
    assert len(result.sentences) == 2


def test_tinyshakespeare(pipeline):
    """The next character; a text like the training data is less surprising than one unlike it."""
    model, metrics = pipeline("tinyshakespeare", *SMALLER[1:-1], "train.epochs=1", *SIZES)
    assert metrics["nats_per_character"] < 2.1  # log(65) = 4.17 knows nothing
    like, unlike = model(["What say you to the king?", "0xDEADBEEF qqq zzz #!@"])
    assert like.bits_per_character < unlike.bits_per_character / 2

"""What [train] says of the loss, and of what is kept, held against the plainest code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

import ohlol
from ohlol.artifacts.compare import compare
from ohlol.artifacts.describe import describe_run
from ohlol.artifacts.errors import RecipeError
from ohlol.artifacts.run import Layout
from ohlol.export.bundle import export
from ohlol.train.batches import IGNORE
from ohlol.train.checkpoint import load_network
from ohlol.train.data import load
from ohlol.train.evaluate import evaluate_model, evaluate_network
from ohlol.train.loop import finish, train
from ohlol.train.ranks import Ranks
from ohlol.train.recipe import Recipe
from ohlol.train.training import Training

ROWS = [["hello", "aabbb"], ["oh", "ab"], ["lol", "bbb"], ["ball", "bbbc"]]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 8


def tagging(**settings):
    tables = {"data": {"format": "inline", "rows": ROWS}, "model": {"hidden_size": 5, "embedding_size": 4}}
    return Recipe.parse({"task": {"kind": "tag"}, **tables, "train": {"epochs": 2, **settings}}, "it")


def running(folder, model=None, **settings):
    (folder / "text").write_text(TEXT)
    data = {"format": "text", "train": "text", "split": [0.8, 0.2, 0.0], "sequence_length": 16}
    tables = {"data": data, "model": {"hidden_size": 6, "embedding_size": 6, **(model or {})}}
    return Recipe.parse({"task": {"kind": "lm"}, **tables, "train": {"epochs": 2, **settings}}, "it")


def begun(recipe, folder):
    return Training(recipe, load(recipe, folder), folder / "run", Ranks(), resume=False)


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0])
def test_class_weights_are_those_of_scikit_learn(tmp_path, power):
    """N / (C · n) for a label that occurs n times, or its root."""
    training = begun(tagging(class_weights=power), tmp_path)
    labels = np.array(list("".join(label for _, label in ROWS)))
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert training.class_weights.tolist() == pytest.approx((expected**power).tolist())


def test_a_label_that_never_occurs_weighs_nothing(tmp_path):
    """Smoothing would otherwise pull all answers towards it, by the weight of what is rarest."""
    recipe = tagging(class_weights=1.0, label_smoothing=0.1)
    labels = sorted({label for _, row in ROWS for label in row})
    more = recipe.model_copy(update={"data": recipe.data.model_copy(update={"labels": ["never", *labels]})})
    weights = begun(recipe, tmp_path / "a").class_weights
    assert begun(more, tmp_path / "b").class_weights.tolist() == [0.0, *weights.tolist()]


@pytest.mark.parametrize("weights", [0.0, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_by_its_formula(tmp_path, smoothing, weights):
    """(1 - s) of the gold label's -ln p and s of the mean over all labels', weighted, over the sum of weights."""
    training = begun(tagging(label_smoothing=smoothing, class_weights=weights), tmp_path)
    batch = training.data.train.rows.batch(np.arange(len(ROWS)))
    logits = training.network(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
    w = training.weights if weights else torch.ones(logits.shape[-1])
    nats, total, weight = -functional.log_softmax(logits, -1), 0.0, 0.0
    for row, column in zip(*np.nonzero(batch.targets != IGNORE), strict=True):
        gold, own = int(batch.targets[row, column]), nats[row, column]
        total += (1 - smoothing) * w[gold] * own[gold] + smoothing * (w * own).mean()
        weight += w[gold]
    found = training._loss(batch) / training._weight(batch)
    torch.testing.assert_close(found, total / weight)


def test_the_best_checkpoint_holds_the_mean(tmp_path):
    """It is the mean that is measured and kept; without averaging it would be the last step's weights."""
    recipe = tagging(averaging=0.5, learning_rate=0.1)
    ended = train(recipe, load(recipe, tmp_path), tmp_path / "run")
    saved = load_file(tmp_path / "run" / Layout.best / Layout.model)
    means = load_file(tmp_path / "run" / Layout.last / Layout.optimizer)
    names = list(dict(ended.network.named_parameters()))
    for number, name in enumerate(names):
        weight = dict(ended.network.named_parameters())[name]
        assert torch.equal(means[f"weights.{number}"], weight), (
            "resuming goes on from the last step's weights"
        )
        assert not torch.equal(saved[name], weight)


def test_carried_gradients_stop_where_a_row_begins(tmp_path):
    """Those of a batch that carries state are those of its rows from that state, held fixed."""
    training = begun(running(tmp_path, carry_state=True, batch_size=2), tmp_path)
    first, second = list(training._read())[:2]
    network = training.network
    with torch.no_grad():
        training._loss(first)
        _, (state,) = network.carry(torch.from_numpy(first.ids), None)
    training._loss(second).backward()
    found = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    out, _ = network.layers[0][0](network.embedding(torch.from_numpy(second.ids)), tuple(state))
    targets = torch.from_numpy(second.targets).flatten()
    functional.cross_entropy(network.head(out).flatten(0, 1), targets, reduction="sum").backward()
    for have, weight in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(have, weight.grad)


def test_bfloat16_needs_a_gpu(tmp_path):
    """On a CPU it is refused, with the key and what to set."""
    with pytest.raises(
        RecipeError, match=r'train\.precision: "bfloat16" needs a GPU, this is cpu; set "float32"'
    ):
        begun(tagging(precision="bfloat16"), tmp_path)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    recipe = running(folder, {"tied": True})
    data = load(recipe, folder)
    finish(train(recipe, data, folder / "run"), data)
    return folder, data


def test_a_tied_network_is_exported_and_answers_alike(tied):
    """Saved, loaded, proved; the bundle's figures are the network's."""
    folder, data = tied
    network, _, vocabulary, _ = load_network(folder / "run")
    assert network.head.weight is network.embedding.weight
    export(folder / "run", folder / "bundle", formats=["onnx"])
    model = ohlol.load(folder / "bundle")
    mine = evaluate_network(network, data.dev, vocabulary)
    assert evaluate_model(model, data.dev, vocabulary, "lm") == pytest.approx(mine, rel=1e-5)


def test_tied_weights_are_counted_once(tied):
    """By `compare` of the run and of its bundle, and by `inspect`, as the network itself counts them."""
    folder, _ = tied
    network, *_ = load_network(folder / "run")
    expected = sum(weight.numel() for weight in network.parameters())
    if not (folder / "bundle").exists():
        export(folder / "run", folder / "bundle", formats=["onnx"])
    found = [row.parameters for row in compare([str(folder / "run"), str(folder / "bundle")])]
    assert found == [expected, expected]
    assert dict(describe_run(folder / "run"))["parameters"] == f"{expected:,}"

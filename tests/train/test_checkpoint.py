"""A checkpoint comes back bit for bit, and a damaged one is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import CheckpointError
from ohlol.artifacts.run import Layout, Vocabulary
from ohlol.train.checkpoint import (
    State,
    load_last,
    load_network,
    load_weights,
    new_network,
    save_last,
    save_weights,
)
from ohlol.train.network import Network
from ohlol.train.optimise import OPTIMIZERS, Optimiser
from ohlol.train.recipe import Recipe, Train

RECIPE = Recipe.parse(
    {
        "task": {"kind": "tag"},
        "data": {"format": "tsv", "train": "train"},
        "model": {"hidden_size": 3, "embedding_size": 2, "cell": "gru", "num_layers": 2, "dropout": 0.5},
    },
    "it",
)
VOCABULARY = Vocabulary(Alphabet("aé😀"), ("x", "y"), None)
WEIGHT = "layers.0.0.weight_ih_l0"


def made(name: Any, averaging: float = 0.0) -> tuple[Network, Optimiser]:
    network = new_network(RECIPE, VOCABULARY)
    return network, Optimiser(network, Train(optimizer=name, learning_rate=0.1, averaging=averaging), 10)


def step(network: Network, optimiser: Optimiser, number: int = 0) -> None:
    """One step of training, dropout included, drawn from the step's number."""
    network.train()
    torch.manual_seed(number)
    network(torch.tensor([[2, 3, 4], [4, 1, 0]]), torch.tensor([3, 2])).square().sum().backward()
    optimiser.step(number)


def weights(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    return expected.keys() == found.keys() and all(
        torch.equal(expected[name], found[name]) for name in expected
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one step, by Adam."""
    torch.manual_seed(0)
    network, optimiser = made("adam")
    step(network, optimiser)
    (tmp_path / Layout.recipe).write_text(RECIPE.to_toml(), encoding="utf-8")
    VOCABULARY.save(tmp_path)
    save_weights(network, tmp_path / Layout.best)
    save_last(network, optimiser, State(epoch=1, history=[{"epoch": 1, "loss": 0.5}]), tmp_path)
    return tmp_path


def load(run: Path) -> State:
    return load_last(*made("adam"), run)[0]


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, name: str, averaging: float) -> None:
    """Weights, their mean and the optimizer come back exactly: two steps with a break are two without."""
    torch.manual_seed(0)
    network, optimiser = made(name, averaging)
    step(network, optimiser)
    state = State(
        epoch=3, step=7, loss=0.1, weight=11, best_epoch=2, best_value=0.3, digests={"é": {"sha256": "0"}}
    )
    carried = [[torch.rand(1, 2, 3)], [torch.rand(1, 2, 3), torch.rand(1, 2, 3)]]
    optimiser.swap()
    save_last(network, optimiser, state, tmp_path, carried)
    optimiser.swap()
    saved = weights(network)
    step(network, optimiser, 1)

    torch.manual_seed(99)
    other, again = made(name, averaging)
    found, held = load_last(other, again, tmp_path)
    assert state == found
    assert held is not None
    assert all(
        torch.equal(a, b)
        for own, its in zip(carried, held, strict=True)
        for a, b in zip(own, its, strict=True)
    )
    assert same(saved, weights(other))
    step(other, again, 1)
    assert same(weights(network), weights(other))
    optimiser.swap()
    again.swap()
    assert same(weights(network), weights(other))
    before, after = (o.optimizer.state_dict()["state"] for o in (optimiser, again))
    assert before.keys() == after.keys()
    assert all(same(before[number], after[number]) for number in before)


def test_a_network_comes_back_with_all_that_describes_it(run: Path) -> None:
    """Exporting needs the run's folder and nothing else."""
    network, recipe, vocabulary, state = load_network(run)
    assert (recipe, vocabulary, state.epoch) == (RECIPE, VOCABULARY, 1)
    assert same(load_file(run / Layout.best / Layout.model), weights(network))
    assert not network.training


def test_the_record_is_one_json_object_an_epoch(run: Path) -> None:
    """`metrics.jsonl` can be read while training goes on."""
    lines = (run / Layout.metrics).read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == [{"epoch": 1, "loss": 0.5}]


@pytest.mark.skipif(os.name != "posix", reason="mode bits are POSIX")
def test_what_is_saved_can_be_read_by_whom_the_umask_allows(run: Path) -> None:
    """A run trained by one person can be exported by another: no file is made for its owner alone."""
    before = os.umask(0o022)
    try:
        network, optimiser = made("adam")
        step(network, optimiser)
        save_last(network, optimiser, State(), run)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (run / Layout.last).iterdir()}
    assert {Layout.model: 0o644, Layout.optimizer: 0o644, Layout.state: 0o644} == modes


@pytest.mark.parametrize("name", [Layout.model, Layout.optimizer, Layout.state])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "garbage", "a pickle"])
def test_a_damaged_file_is_refused_by_name(run: Path, name: str, harm: str) -> None:
    """Whatever happened to a file of a checkpoint, the error names it and nothing of it runs."""
    file = run / Layout.last / name
    data = file.read_bytes()
    file.unlink()
    contents = {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "garbage": bytes(range(256)) * 4,
        "a pickle": pickle.dumps(Trap(run / "ran")),
    }
    if harm in contents:
        file.write_bytes(contents[harm])
    with pytest.raises(CheckpointError, match="missing" if harm == "missing" else "damaged") as caught:
        load(run)
    assert str(caught.value).startswith(f"{file}: ")
    assert not (run / "ran").exists()


class Trap:
    """Unpickling it leaves a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_trap_works(tmp_path: Path) -> None:
    """The test above would notice an unpickling."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


def test_a_saved_torch_module_is_refused(run: Path) -> None:
    """`torch.save` pickles: such a file in the place of the weights is not loaded."""
    file = run / Layout.best / Layout.model
    torch.save({"anything": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(run)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WEIGHT, lambda w: w[:, :1], r"expected \(9, 2\), found \(9, 1\)"),
        (WEIGHT, lambda w: w.T, r"expected \(9, 2\), found \(2, 9\)"),
        (WEIGHT, lambda w: w.double(), "expected torch.float32, found torch.float64"),
        (WEIGHT, lambda w: w.half(), "expected torch.float32, found torch.float16"),
        (WEIGHT, lambda w: None, r"expected \(9, 2\), found nothing"),
        ("head.more", lambda w: torch.zeros(()), r"expected nothing, found \(\)"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused_by_name(
    run: Path, name: str, change: Any, message: str
) -> None:
    """The weight, what was expected and what was found; the network is left as it was."""
    file = run / Layout.last / Layout.model
    tensors = load_file(file)
    changed = change(tensors.pop(name, None))
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, file)
    network, _ = made("adam")
    before = weights(network)
    with pytest.raises(CheckpointError, match=f"weight {name}: {message}") as caught:
        load_weights(network, run / Layout.last)
    assert str(caught.value).startswith(f"{file}: ")
    assert same(before, weights(network))


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": 5},
        {"digests": {"train": 5}},
        {"history": None},
        {"history": [5]},
        {"epoch": "2"},
        {"optimizer": None},
        {"optimizer": {"x.step": 1}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(run: Path, changes: dict[str, Any]) -> None:
    """A `state.json` that is JSON but not ours is one of our errors."""
    file = run / Layout.last / Layout.state
    facts = json.loads(file.read_bytes())
    file.write_text(json.dumps({**facts, **changes}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        load(run)


def test_a_state_without_the_optimizer_is_refused(run: Path) -> None:
    """A key that is missing is damage as well."""
    file = run / Layout.last / Layout.state
    facts = json.loads(file.read_bytes())
    del facts["optimizer"]
    file.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        load(run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"characters": 5, "normalisation": "NFC", "labels": [], "label_scheme": null}',
        '{"characters": "aa", "normalisation": "NFC", "labels": [], "label_scheme": null}',
        '{"characters": "a", "normalisation": "NFX", "labels": [], "label_scheme": null}',
        '{"characters": "a", "normalisation": "NFC", "labels": [1], "label_scheme": null}',
        '{"characters": "a", "normalisation": "NFC", "labels": "xy", "label_scheme": null}',
        '{"characters": "a", "normalisation": "NFC", "labels": ["x"], "label_scheme": "BIO"}',
    ],
)
def test_a_damaged_alphabet_is_refused(run: Path, text: str) -> None:
    """Characters and labels are read as strictly as weights."""
    (run / Layout.alphabet).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_network(run)
    assert str(caught.value).startswith(f"{run / Layout.alphabet}: ")


def test_the_old_checkpoint_answers_for_a_killed_save(run: Path) -> None:
    """Killed between the two renames, `last/` is found under its other name."""
    (run / Layout.last).rename(run / f".{Layout.last}.old")
    assert load(run).epoch == 1


@pytest.mark.parametrize("name", [Layout.recipe, Layout.alphabet, Layout.best, Layout.last])
def test_a_run_that_lacks_something_is_refused(run: Path, name: str) -> None:
    """The part that is missing is named, with what makes one."""
    (run / name).rename(run / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: missing; expected a run made by `ohlol train`"):
        load_network(run)

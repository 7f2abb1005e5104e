"""The network is torch's own layers on packed rows, whatever company a row has."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ohlol.artifacts.contract import TASKS, Task
from ohlol.artifacts.errors import RecipeError
from ohlol.train.network import CELLS, Loop, Network, OneHot, layer, reverse
from ohlol.train.recipe import ModelSection

Cell = Literal["rnn", "gru", "lstm"]
CHARACTERS, CLASSES, HIDDEN = 9, 4, 5
LENGTHS = [6, 1, 4, 6, 2]
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}

every_network = pytest.mark.parametrize(
    ("cell", "ways", "layers", "kind"),
    [
        case
        for case in itertools.product(CELLS, (1, 2), (1, 2, 3), TASKS)
        if case[1] == 1 or case[3] != "lm"  # an lm task reads one way
    ],
    ids=lambda value: str(value),
)


def network_of(cell: str, ways: int, layers: int, kind: Task, **keys: Any) -> Network:
    torch.manual_seed(0)
    settings = {
        "cell": cell,
        "bidirectional": ways == 2,
        "num_layers": layers,
        "hidden_size": HIDDEN,
        "embedding_size": 3,
    }
    model = ModelSection.model_validate({**settings, **keys})
    return Network(model, kind, CHARACTERS, CLASSES).eval()


def ragged(lengths: list[int] | None = None, padding: int = 0) -> tuple[Tensor, Tensor]:
    """`ids (B, T)` with `padding` more columns than the longest row, and `lengths (B,)`."""
    lengths = lengths or LENGTHS
    ids = torch.randint(1, CHARACTERS, (len(lengths), max(lengths) + padding), generator=torch.manual_seed(1))
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
    return ids, torch.tensor(lengths)


def by_torch(network: Network, ids: Tensor, lengths: Tensor, ways: int, layers: int) -> Tensor:
    """The logits that torch's own multi-layer module gives on packed rows, with the same weights."""
    width = network.embedding(ids).shape[-1]
    twin = CELLS[network.cell][0](width, HIDDEN, num_layers=layers, bidirectional=ways == 2, batch_first=True)
    weights = {}
    for number, directions in enumerate(network.layers):
        assert isinstance(directions, nn.ModuleList)
        for module, suffix in zip(directions, ("", "_reverse"), strict=False):
            for name, value in module.state_dict().items():
                weights[name.replace("_l0", f"_l{number}") + suffix] = value
    twin.load_state_dict(weights)
    packed = pack_padded_sequence(network.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    out, state = twin(packed)
    hidden = state[0] if isinstance(state, tuple) else state  # (layers * ways, B, H)
    if network.task == "classify":
        return network.head(torch.cat(list(hidden[-ways:]), dim=-1))
    return network.head(pad_packed_sequence(out, batch_first=True)[0])


def on_characters(logits: Tensor, lengths: Tensor, kind: str) -> list[Tensor]:
    """Each row's logits, padding left out."""
    if kind == "classify":
        return list(logits)
    return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]


def assert_close(expected: list[Tensor], found: list[Tensor]) -> None:
    for want, have in zip(expected, found, strict=True):
        torch.testing.assert_close(have, want, **CLOSE)


@every_network
@torch.inference_mode()
def test_the_network_is_torchs_own(cell: str, ways: int, layers: int, kind: Task) -> None:
    """Two passes with reversal answer as nn.RNN, nn.GRU and nn.LSTM do on packed rows."""
    network = network_of(cell, ways, layers, kind)
    ids, lengths = ragged()
    found = network(ids, lengths)
    assert ((5, CLASSES) if kind == "classify" else (5, 6, CLASSES)) == found.shape
    expected = by_torch(network, ids, lengths, ways, layers)
    assert_close(on_characters(expected, lengths, kind), on_characters(found, lengths, kind))


@every_network
@torch.inference_mode()
def test_a_row_alone_answers_as_in_company(cell: str, ways: int, layers: int, kind: Task) -> None:
    """A batch's other rows never change an answer."""
    network = network_of(cell, ways, layers, kind)
    ids, lengths = ragged()
    together = on_characters(network(ids, lengths), lengths, kind)
    alone = [
        on_characters(
            network(ids[row : row + 1, :length], lengths[row : row + 1]), lengths[row : row + 1], kind
        )[0]
        for row, length in enumerate(lengths.tolist())
    ]
    assert_close(alone, together)


@every_network
@torch.inference_mode()
def test_more_padding_changes_nothing(cell: str, ways: int, layers: int, kind: Task) -> None:
    """Padding reaches no character, whatever stands there."""
    network = network_of(cell, ways, layers, kind)
    (ids, lengths), (wide, _) = ragged(), ragged(padding=7)
    wide[:, :6] = ids
    wide[:, 6:] = CHARACTERS - 1
    for row, length in enumerate(lengths.tolist()):
        wide[row, length:] = row + 2
    expected = on_characters(network(ids, lengths), lengths, kind)
    assert_close(expected, on_characters(network(wide, lengths), lengths, kind))


def test_one_hot_leaves_padding_and_unknown_zero() -> None:
    """A known character is one number, what is not known is none."""
    found = OneHot(5)(torch.tensor([[0, 1, 2, 4]]))
    assert torch.float32 == found.dtype
    assert found.tolist() == [[[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]]]


def test_the_embedding_of_padding_is_zero_and_stays() -> None:
    """Padding is learnt by nobody; the unknown character has an embedding of its own."""
    network = network_of("rnn", 1, 1, "tag").train()
    ids, lengths = ragged()
    network(ids, lengths).sum().backward()
    assert isinstance(network.embedding, nn.Embedding)
    assert network.embedding.weight.grad is not None
    assert [0.0] * 3 == network.embedding.weight[0].tolist() == network.embedding.weight.grad[0].tolist()
    assert any(network.embedding.weight.grad[1].tolist())


@torch.inference_mode()
def test_a_one_hot_network_is_torchs_own_too() -> None:
    """The other input takes the same path."""
    network = network_of("gru", 2, 2, "tag", input="one_hot")
    ids, lengths = ragged()
    expected = on_characters(by_torch(network, ids, lengths, 2, 2), lengths, "tag")
    assert_close(expected, on_characters(network(ids, lengths), lengths, "tag"))


@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_is_its_layer(cell: str) -> None:
    """A cell in a loop over time and the layer of the same weights answer alike, shapes included."""
    torch.manual_seed(0)
    loop = Loop(cell, 3, HIDDEN)
    twin = loop.as_layer()
    assert isinstance(twin, CELLS[cell][0])
    assert isinstance(layer(cell, 3, HIDDEN), CELLS[cell][0])
    x = torch.randn(2, 7, 3)
    out, hidden = loop(x)
    want, state = twin(x)
    assert (out.shape, hidden.shape) == ((2, 7, HIDDEN), (1, 2, HIDDEN))
    torch.testing.assert_close(out, want, **CLOSE)
    torch.testing.assert_close(hidden, state[0] if cell == "lstm" else state, **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
@torch.inference_mode()
def test_a_network_of_loops_becomes_one_of_layers(cell: str) -> None:
    """What is trained cell by cell is exported as layers, with the same answers and in the same mode."""
    network = network_of(cell, 2, 2, "tag", loop=True)
    ids, lengths = ragged()
    expected = network(ids, lengths)
    twin = network.as_layers()
    assert not [module for module in twin.modules() if isinstance(module, Loop)]
    assert not [module for module in twin.modules() if module.training]
    torch.testing.assert_close(twin(ids, lengths), expected, **CLOSE)


@pytest.mark.parametrize(("ways", "hidden"), [(1, CLASSES), (2, CLASSES // 2)])
@torch.inference_mode()
def test_without_a_head_the_hidden_state_is_the_answer(ways: int, hidden: int) -> None:
    """No linear layer, no weights of one: the seed's first models."""
    network = network_of("rnn", ways, 1, "tag", head="none", hidden_size=hidden)
    assert not [name for name in network.state_dict() if name.startswith("head")]
    logits = network(*ragged())
    assert logits.shape == (5, 6, CLASSES)
    assert logits.abs().max() <= 1


@pytest.mark.parametrize(
    ("ways", "kind", "message"),
    [
        (1, "tag", "the hidden state is the answer and has 5 numbers, the data has 4 labels"),
        (2, "classify", "the hidden state is the answer and has 10 numbers, the data has 4 labels"),
        (1, "lm", "the hidden state is the answer and has 5 numbers, the data has 4 characters"),
    ],
)
def test_without_a_head_the_width_must_fit(ways: int, kind: Task, message: str) -> None:
    """A hidden state of another width than the labels is refused with both numbers."""
    with pytest.raises(RecipeError, match=message):
        network_of("rnn", ways, 1, kind, head="none")


def test_one_hot_of_nothing_is_refused() -> None:
    """An alphabet in which nothing is known has no one-hot input, and the recipe is told so."""
    with pytest.raises(RecipeError, match=r'model.input = "one_hot"'):
        Network(ModelSection(input="one_hot"), "tag", 2, CLASSES)


def test_dropout_is_between_layers_only_in_training() -> None:
    """Answers in use are the same at every call."""
    network = network_of("rnn", 1, 2, "tag", dropout=0.5)
    ids, lengths = ragged()
    torch.testing.assert_close(network(ids, lengths), network(ids, lengths), rtol=0, atol=0)
    assert not torch.equal(network.train()(ids, lengths), network(ids, lengths))
    one = network_of("rnn", 1, 1, "tag", dropout=0.5).train()
    assert torch.equal(one(ids, lengths), one(ids, lengths))


def test_reverse_turns_each_row_within_its_own_length() -> None:
    """Padding stays where it is, and twice is none."""
    x = torch.tensor([[[1], [2], [3]], [[4], [5], [0]], [[6], [7], [8]]])
    lengths = torch.tensor([3, 2, 1])
    found = reverse(x, lengths)
    assert found.squeeze(-1).tolist() == [[3, 2, 1], [5, 4, 0], [6, 7, 8]]
    assert x.tolist() == reverse(found, lengths).tolist()

"""The network is torch's own layers on packed rows, whatever company a row has."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ohlol.artifacts.alphabet import PADDING, UNKNOWN
from ohlol.artifacts.contract import TASKS, Task
from ohlol.artifacts.errors import RecipeError
from ohlol.train.network import CELLS, CharacterDropout, Dropout, Loop, Network, OneHot, layer, reverse
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


# Options


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(share: float) -> None:
    """A share of zeros, the others times 1 / (1 - share), nothing in evaluation."""
    torch.manual_seed(0)
    dropout, x = Dropout(share), torch.ones(50, 40, 50)
    found = dropout(x)
    kept = found[found != 0]
    assert 1 - kept.numel() / x.numel() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)))
    assert torch.equal(dropout.eval()(x), x)


def test_locked_dropout_is_one_mask_a_row() -> None:
    """All characters of a row lose the same numbers, other rows others."""
    torch.manual_seed(0)
    found = Dropout(0.5, locked=True)(torch.ones(4, 9, 64))
    assert torch.equal(found, found[:, :1].expand(-1, 9, -1))
    assert len({str(row[0].tolist()) for row in found}) == 4
    free = Dropout(0.5)(torch.ones(1, 2, 64))
    assert not torch.equal(free[:, 0], free[:, 1])


@pytest.mark.parametrize("locked", [False, True])
def test_processes_drop_together_what_one_would(locked: bool) -> None:
    """Each draws the mask of the whole batch and takes its rows of it."""
    x = torch.ones(5, 3, 8)
    dropout = Dropout(0.5, locked)
    torch.manual_seed(0)
    whole = dropout(x)
    for rank in range(2):
        ours = slice(rank, None, 2)
        dropout.batch = 5, ours
        torch.manual_seed(0)
        assert torch.equal(dropout(x[ours]), whole[ours])


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("dropout", "between_layers"),
        ("embedding_dropout", "after_embedding"),
        ("output_dropout", "before_head"),
        ("character_dropout", "characters"),
    ],
)
def test_each_dropout_stands_where_it_says(key: str, place: str) -> None:
    """The key reaches its own module and no other, which the forward pass goes through."""
    network = network_of("gru", 2, 2, "tag", **{key: 0.25, "locked_dropout": True}).train()
    assert [getattr(network, place)] == network.dropouts
    assert (network.dropouts[0].share, network.dropouts[0].locked) == (0.25, key != "character_dropout")
    ids, lengths = ragged()
    torch.manual_seed(0)
    assert not torch.equal(network(ids, lengths), network.eval()(ids, lengths))


def test_character_dropout_makes_known_characters_unknown() -> None:
    """At its rate; padding stays padding, and in evaluation nothing changes."""
    torch.manual_seed(0)
    ids = torch.randint(2, CHARACTERS, (100, 200))
    ids[:, 150:] = PADDING
    dropout = CharacterDropout(0.2)
    found = dropout(ids)
    assert not found[:, 150:].any()
    changed = found[:, :150] != ids[:, :150]
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert set(found[:, :150][changed].tolist()) == {UNKNOWN}
    assert torch.equal(dropout.eval()(ids), ids)


@pytest.mark.parametrize("cell", CELLS)
def test_orthogonal_initialisation(cell: str) -> None:
    """Each gate's recurrent matrix is orthogonal; biases are 0, but an LSTM's forget gate begins at 1."""
    network = network_of(cell, 2, 2, "tag", initialisation="orthogonal")
    for name, weight in network.layers.named_parameters():
        gates = weight.detach().split(HIDDEN)
        if "weight_hh" in name:
            for gate in gates:
                torch.testing.assert_close(gate @ gate.T, torch.eye(HIDDEN), **CLOSE)
        elif "bias" in name:
            forget = 1 if cell == "lstm" and "bias_ih" in name else None
            expected = [float(number == forget) for number in range(len(gates))]
            assert [gate.unique().tolist() for gate in gates] == [[value] for value in expected]


def test_a_tied_head_is_the_embedding() -> None:
    """One tensor, which learns from both of its uses: its gradient is the sum of theirs."""
    torch.manual_seed(0)
    model = ModelSection(tied=True, embedding_size=HIDDEN, hidden_size=HIDDEN)
    tied = Network(model, "lm", CHARACTERS, CHARACTERS)
    apart = Network(model.model_copy(update={"tied": False}), "lm", CHARACTERS, CHARACTERS)
    apart.load_state_dict(tied.state_dict())
    assert tied.head.weight is tied.embedding.weight
    assert len(list(tied.parameters())) == len(list(apart.parameters())) - 1
    for network in (tied, apart):
        network(*ragged()).square().mean().backward()
    both = apart.head.weight.grad + apart.embedding.weight.grad  # type: ignore[operator, union-attr]
    torch.testing.assert_close(tied.embedding.weight.grad, both, **CLOSE)  # type: ignore[union-attr]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_carried_state_reads_on(cell: str, layers: int) -> None:
    """A row in pieces, each from the state of the one before, answers as the row whole; no gradient goes back."""
    network = network_of(cell, 1, layers, "lm")
    ids, lengths = ragged([12, 12, 12])
    state, found = None, []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        logits, state = network.carry(ids[:, start:end], state)
        assert not any(part.requires_grad for own in state for part in own)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), network(ids, lengths), **CLOSE)

"""The network: embedding or one-hot, recurrent layers one way or both, linear head or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ohlol.artifacts.alphabet import PADDING, RESERVED, UNKNOWN
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import RecipeError
from ohlol.train.recipe import ModelSection

# A layer and the cell it is made of.
CELLS: dict[str, tuple[Callable[..., nn.RNNBase], Callable[..., nn.RNNCellBase]]] = {
    "rnn": (nn.RNN, nn.RNNCell),
    "gru": (nn.GRU, nn.GRUCell),
    "lstm": (nn.LSTM, nn.LSTMCell),
}


class Network(nn.Module):
    """Characters in, logits out.

    `characters` is V, the size of the alphabet with padding and unknown; `classes` is the number of
    labels (V for `lm`). Both ways is two passes, the second over each row reversed within its own
    length, so that padding never reaches a character.
    Raises `RecipeError` where `head = "none"` and the hidden state is not as wide as `classes`, and where
    the input is one-hot and no character is known.
    """

    def __init__(self, model: ModelSection, task: Task, characters: int, classes: int) -> None:
        super().__init__()
        self.task = task
        self.cell = model.cell
        directions = 2 if model.bidirectional else 1
        self.embedding: nn.Module
        if model.input == "embedding":
            self.embedding = nn.Embedding(characters, model.embedding_size, padding_idx=PADDING)
            with torch.no_grad():
                # Where training meets no unknown character, one says nothing, as in one-hot.
                self.embedding.weight[UNKNOWN] = 0.0
            width = model.embedding_size
        else:
            if characters == RESERVED:
                raise RecipeError(
                    'model.input = "one_hot": no character is known; lower data.min_count or mend data.alphabet'
                )
            self.embedding = OneHot(characters)
            width = characters - RESERVED
        make = Loop if model.loop else layer
        self.layers = nn.ModuleList()
        for _ in range(model.num_layers):
            self.layers.append(
                nn.ModuleList(make(model.cell, width, model.hidden_size) for _ in range(directions))
            )
            width = directions * model.hidden_size
        self.characters = CharacterDropout(model.character_dropout)
        self.after_embedding = Dropout(model.embedding_dropout, model.locked_dropout)
        self.between_layers = Dropout(model.dropout, model.locked_dropout)
        self.before_head = Dropout(model.output_dropout, model.locked_dropout)
        self.head: nn.Module = nn.Linear(width, classes) if model.head == "linear" else nn.Identity()
        if model.head == "none" and width != classes:
            raise RecipeError(
                f'model.head = "none": the hidden state is the answer and has {width} numbers, the data has '
                f'{classes} {"characters" if task == "lm" else "labels"}; make them equal, or set head = "linear"'
            )
        if model.initialisation == "orthogonal":
            _orthogonal(self)
        if model.tied:
            assert isinstance(self.head, nn.Linear)
            assert isinstance(self.embedding, nn.Embedding)
            with torch.no_grad():  # as small as a head begins: an embedding's logits would be too sure
                self.embedding.weight.mul_(width**-0.5)
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """`ids (B, T) int64`, `lengths (B,) int64` to `logits (B, T, C) float32`; `classify`: `(B, C)`.

        Logits on padding mean nothing.
        """
        x = self._embedded(ids)
        for number, directions in enumerate(self.layers):
            if number:
                x = self.between_layers(x)
            assert isinstance(directions, nn.ModuleList)
            outs = [directions[0](x)[0]]  # (B, T, H)
            if len(directions) == 2:
                outs.append(reverse(directions[1](reverse(x, lengths))[0], lengths))
            x = torch.cat(outs, dim=-1)  # (B, T, H) or (B, T, 2H)
        if self.task == "classify":
            # Each direction's state after its whole row: the last character for one, the first for the other.
            last = reverse(outs[0], lengths)[:, 0]
            x = torch.cat([last, *(out[:, 0] for out in outs[1:])], dim=-1)  # (B, H) or (B, 2H)
        logits: Tensor = self.head(self.before_head(x))
        return logits

    def carry(self, ids: Tensor, state: list[list[Tensor]] | None) -> tuple[Tensor, list[list[Tensor]]]:
        """As `forward`, of a one-way network over whole rows, from `state` on; and the state they end in.

        `state` has for each layer one tensor `(1, B, H)`, or two for an LSTM; None is zeros. Gradients do
        not flow back into the rows before.
        """
        x, after = self._embedded(ids), []
        for number, directions in enumerate(self.layers):
            if number:
                x = self.between_layers(x)
            assert isinstance(directions, nn.ModuleList)
            before: Any = None
            if state is not None:
                before = tuple(state[number]) if self.cell == "lstm" else state[number][0]
            x, end = directions[0](x, before)
            after.append([part.detach() for part in (end if isinstance(end, tuple) else (end,))])
        return self.head(self.before_head(x)), after

    def _embedded(self, ids: Tensor) -> Tensor:
        x: Tensor = self.after_embedding(self.embedding(self.characters(ids)))
        return x  # (B, T, D)

    @property
    def dropouts(self) -> list[Dropout]:
        """Those that do something."""
        return [module for module in self.modules() if isinstance(module, Dropout) and module.share]

    def as_layers(self) -> Network:
        """This network with every `Loop` as the layer that has the same weights."""
        for directions in self.layers:
            assert isinstance(directions, nn.ModuleList)
            for number, module in enumerate(directions):
                if isinstance(module, Loop):
                    directions[number] = module.as_layer()
        return self


class Dropout(nn.Module):
    """Zeroes a share of the numbers of `x (B, T, D)` or `(B, D)` in training, and scales up the others.

    `locked`: one mask for all characters of a row (Gal and Ghahramani 2016, arXiv:1512.05287).
    """

    def __init__(self, share: float, locked: bool = False) -> None:
        super().__init__()
        self.share = share
        self.locked = locked
        # Where several processes share a batch of so many rows, these are ours. Each draws the mask of the
        # whole batch and takes its rows, so that they drop together what one process would.
        self.batch: tuple[int, slice] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x * self._kept(x) / (1 - self.share) if self.training and self.share else x

    def _kept(self, x: Tensor) -> Tensor:
        rows, ours = self.batch or (x.shape[0], slice(None))
        shape = [rows, *x.shape[1:]]
        if self.locked and x.dim() == 3:
            shape[1] = 1
        return x.new_empty(shape, dtype=torch.float32).bernoulli_(1 - self.share)[ours]


class CharacterDropout(Dropout):
    """Makes a share of the known characters unknown in training, so that there is something to learn of those."""

    def forward(self, ids: Tensor) -> Tensor:
        """`ids (B, T) int64` to the same."""
        if not (self.training and self.share):
            return ids
        return torch.where(self._kept(ids).bool() | (ids == PADDING), ids, UNKNOWN)


class OneHot(nn.Module):
    """One number for each known character; padding and unknown are the zero vector."""

    one: Tensor

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = characters
        self.register_buffer("one", torch.ones(()), persistent=False)  # has the network's number type

    def forward(self, ids: Tensor) -> Tensor:
        """`ids (B, T) int64` to `(B, T, V - 2)`, float32 unless the network was cast."""
        return functional.one_hot(ids, self.characters)[..., RESERVED:] * self.one


class Loop(nn.Module):
    """A recurrent layer as its definition reads: one cell, the same weights at every step, a loop over time."""

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.kind = cell
        self.cell: Any = CELLS[cell][1](input_size, hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x (B, T, D)` to `out (B, T, H)` and `hidden (1, B, H)`, as a layer answers."""
        B, T, _ = x.shape
        hidden = x.new_zeros(B, self.cell.hidden_size)
        state: Any = (hidden, hidden) if self.kind == "lstm" else hidden
        out = []
        for t in range(T):
            state = self.cell(x[:, t], state)
            hidden = state[0] if self.kind == "lstm" else state
            out.append(hidden)
        return torch.stack(out, dim=1), hidden.unsqueeze(0)

    def as_layer(self) -> nn.RNNBase:
        twin = layer(self.kind, self.cell.input_size, self.cell.hidden_size)
        twin.load_state_dict({f"{name}_l0": value for name, value in self.cell.state_dict().items()})
        return twin.train(self.training)


def layer(cell: str, input_size: int, hidden_size: int) -> nn.RNNBase:
    """One direction of one recurrent layer, batch first."""
    return CELLS[cell][0](input_size, hidden_size, batch_first=True)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """`x (B, T, D)` with each row's first `lengths[b]` steps in reverse order; padding stays where it is."""
    _, T, D = x.shape
    time = torch.arange(T, device=x.device).unsqueeze(0)  # (1, T)
    end = lengths.unsqueeze(1)  # (B, 1)
    index = torch.where(time < end, end - 1 - time, time)  # (B, T)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, D))


def _orthogonal(network: Network) -> None:
    """Recurrent weights orthogonal, gate by gate (Saxe et al. 2014, arXiv:1312.6120); the others of Glorot's
    uniform; biases 0, an LSTM's forget gate 1 (Jozefowicz et al. 2015).
    """
    for name, weight in network.layers.named_parameters():
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[network.cell]
        if "weight" in name:
            start = nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_
            for gate in weight.chunk(gates):
                start(gate)
        else:
            nn.init.zeros_(weight)
            if network.cell == "lstm" and "bias_ih" in name:  # gates stand in the order i f g o
                nn.init.ones_(weight.chunk(gates)[1])

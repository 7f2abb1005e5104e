"""A network that others trained, taken apart, and the same as one of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ohlol.artifacts import run
from ohlol.artifacts.alphabet import RESERVED, Alphabet, Form
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import AdoptError
from ohlol.artifacts.files import new_folder
from ohlol.artifacts.run import Vocabulary
from ohlol.train.checkpoint import State, new_network, save_last, save_weights
from ohlol.train.network import Network
from ohlol.train.optimise import Optimiser
from ohlol.train.recipe import Recipe, Train

Weights = dict[str, Tensor]
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of one direction of one layer, as PyTorch has them
MARGIN = 20.0  # e^-20 is below half of float32's last digit beside 1


@dataclass(frozen=True)
class Found:
    """The parts of a module, each with its name in it."""

    embedding: tuple[str, nn.Embedding] | None
    recurrent: list[tuple[str, nn.RNNBase]]
    linear: tuple[str, nn.Linear] | None

    @property
    def in_order(self) -> list[tuple[str, nn.Module]]:
        return [part for part in (self.embedding, *self.recurrent, self.linear) if part is not None]


@dataclass(frozen=True)
class Parts:
    """The weights by what they do. `N` is the number of their ids, `W` the width of the last hidden state.

    `embedding (N, D)`, or None where the input is one-hot, `N` wide; `layers[n][w]`, of layer n and way w, has
    a tensor for each of `NAMES`; `head` is `weight (C, W)` and `bias (C,)`, or None where the hidden state is
    the answer.
    """

    cell: Literal["rnn", "gru", "lstm"]
    embedding: Tensor | None
    layers: Sequence[Sequence[Weights]]
    head: tuple[Tensor, Tensor] | None

    @property
    def ids(self) -> int:
        """N."""
        if self.embedding is not None:
            return len(self.embedding)
        return self.layers[0][0]["weight_ih"].shape[1]

    @property
    def hidden_size(self) -> int:
        return self.layers[0][0]["weight_hh"].shape[1]

    @property
    def width(self) -> int:
        """W."""
        return self.hidden_size * len(self.layers[-1])

    @property
    def classes(self) -> int:
        """C."""
        return self.width if self.head is None else len(self.head[0])


@dataclass(frozen=True)
class Ids:
    """What their ids mean: `characters[k]` is the character of id k, or None where k is none.

    `unknown` is their id for unknown characters; where there is none, one says nothing: the zero vector.
    Raises `AdoptError`.
    """

    characters: tuple[str | None, ...]
    unknown: int | None = None

    def __post_init__(self) -> None:
        for number, character in enumerate(self.characters):
            if character is not None and len(character) != 1:
                raise AdoptError(
                    f"alphabet: id {number} is {character!r}, expected one code point, or None for an id that is no "
                    "character"
                )
        if self.unknown is None:
            return
        if not 0 <= self.unknown < len(self.characters):
            raise AdoptError(f"unknown: found id {self.unknown}, expected one from 0 to {len(self) - 1}")
        if self.characters[self.unknown] is not None:
            raise AdoptError(
                f"unknown: id {self.unknown} is the character {self.characters[self.unknown]!r}; expected None at "
                "that place of the alphabet, or another id"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.characters)

    def described(self) -> str:
        """What was taken for what: a shifted alphabet shows here."""
        none = sum(character is None for character in self.characters)
        known = [(k, c) for k, c in enumerate(self.characters) if c is not None]
        ends = (
            f"{known[0][0]} is {known[0][1]!r}, {known[-1][0]} is {known[-1][1]!r}"
            if known
            else "no character"
        )
        unknown = "none" if self.unknown is None else self.unknown
        return f"{len(self)}, of which {none} are no characters; {ends}; for unknown characters: {unknown}"

    def alphabet(self, normalisation: Form) -> Alphabet:
        return Alphabet("".join(c for c in self.characters if c is not None), normalisation)

    @property
    def ours(self) -> list[int | None]:
        """For each of our ids, theirs: padding has none, then the unknown, then the characters."""
        return [None, self.unknown, *(k for k, c in enumerate(self.characters) if c is not None)]


def converted(parts: Parts, ids: Ids, task: Task) -> tuple[dict[str, Any], Weights]:
    """The keys of the recipe's `[model]`, and the weights by the names of `Network`.

    A one-hot input that has a vector for unknown characters becomes an embedding whose rows are those vectors,
    since ours has none. For `lm` the columns are rearranged as the ids are: see `_columns`.
    """
    table, head, order = parts.embedding, parts.head, ids.ours
    if table is None and ids.unknown is not None:
        table = torch.eye(parts.ids)
    if task == "lm":
        head = _columns(head or (torch.eye(parts.width), torch.zeros(parts.width)), order)
    weights = {
        f"layers.{number}.{way}.{name}_l0": value
        for number, layer in enumerate(parts.layers)
        for way, direction in enumerate(layer)
        for name, value in direction.items()
    }
    if table is not None:
        weights["embedding.weight"] = _rearranged(table, order)
    else:
        for way in range(len(parts.layers[0])):
            name = f"layers.0.{way}.weight_ih_l0"
            weights[name] = weights[name][:, order[RESERVED:]]  # one column for each known character
    if head is not None:
        weights["head.weight"], weights["head.bias"] = head
    model: dict[str, Any] = {
        "input": "one_hot" if table is None else "embedding",
        "cell": parts.cell,
        "hidden_size": parts.hidden_size,
        "num_layers": len(parts.layers),
        "bidirectional": len(parts.layers[0]) == 2,
        "head": "none" if head is None else "linear",
        "loop": False,
    }
    if table is not None:
        model["embedding_size"] = table.shape[1]
    return model, weights


def _columns(head: tuple[Tensor, Tensor], order: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """Their answer for id k as ours for the same character.

    Ours with no counterpart get no weights, and a bias that lies `MARGIN` below what the best of the others can
    fall to, since every number of a hidden state lies between -1 and 1: they never win, and are too small to
    change another's probability. A bias like -1e9 would do that too, and make every tolerance that is in
    proportion to the answer's size meaningless.
    """
    known = [k for k in order if k is not None]
    lowest = (head[1] - head[0].abs().sum(dim=1))[known]
    low = float(lowest.max()) - MARGIN if known else 0.0
    return _rearranged(head[0], order), _rearranged(head[1], order, low)


def _rearranged(table: Tensor, order: Sequence[int | None], fill: float = 0.0) -> Tensor:
    """The rows of `table (N, ...)` in our order `(V, ...)`; where theirs has none, `fill`."""
    out = table.new_full((len(order), *table.shape[1:]), fill)
    for number, theirs in enumerate(order):
        if theirs is not None:
            out[number] = table[theirs]
    return out


def as_ours(recipe: Recipe, vocabulary: Vocabulary, weights: Mapping[str, Tensor]) -> Network:
    """The network with these weights, in evaluation mode. Raises `AdoptError` where one is not finite."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise AdoptError(
                f"weight {name}: holds a number that is not finite; take weights that are all finite"
            )
    network = new_network(recipe, vocabulary)
    network.load_state_dict(dict(weights))
    return network.eval()


def may_write(folder: Path) -> None:
    """Raises `AdoptError` where there is something already."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise AdoptError(f"{folder}: is there and is not an empty folder; name another")


def write_run(
    folder: Path,
    recipe: Recipe,
    vocabulary: Vocabulary,
    network: Network,
    source: dict[str, str],
    data: str = "",
) -> None:
    """A run as training leaves one, whole or not at all; `source` says where the weights come from.

    `data` is the folder where the recipe's files are looked for.
    """
    versions = {name: version(name) for name in ("ohlol", "torch")}
    state = State(digests={"weights": source}, versions=versions, data_folder=data)
    with new_folder(folder.resolve()) as part:
        save_weights(network, part / run.Layout.best)
        # An optimizer that has done nothing yet: `last/` is as before the first step.
        save_last(network, Optimiser(network, Train(optimizer="sgd"), 0), state, part)
        (part / run.Layout.recipe).write_text(recipe.to_toml(), encoding="utf-8")
        vocabulary.save(part)

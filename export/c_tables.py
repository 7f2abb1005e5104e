"""A network's weights as the tables of its C source: in the order in which they are read, rounded or not."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ohlol.artifacts.alphabet import RESERVED, UNKNOWN, Alphabet
from ohlol.artifacts.errors import ProofError
from ohlol.train.network import Network, OneHot, layer

Weights = Literal["float32", "int8"]
Floats = NDArray[np.float32]

LEVELS = 127
# Which rows of PyTorch's weights, gate by gate, stand where in the sums that a step needs. A GRU's sums are n, r, z and
# once more n: the input's product is added to the first three of them, the state's to the last three.
INPUT_GATES = {"rnn": (0,), "gru": (2, 0, 1), "lstm": (0, 1, 2, 3)}
STATE_GATES = {"rnn": (0,), "gru": (0, 1, 2), "lstm": (0, 1, 2, 3)}


class Matrix(NamedTuple):
    """`values (n, m)` float32, or int8 with `scales (n,) float32` to multiply the rows with."""

    values: NDArray[Any]
    scales: Floats | None


class Direction(NamedTuple):
    """One direction of a layer. `input (D, M)`, of the first layer where it is a table `(characters, M)`; `own (H, M)`."""

    input: Matrix
    own: Matrix
    bias: Floats  # (sums,)


@dataclass(frozen=True)
class Tables:
    """All numbers of a network. A character's row, here and in `pages`, is its id less one: 0 is the unknown."""

    cell: str
    hidden: int
    classes: int
    embedding: Matrix | None  # (characters, D); None: the first layer's input is a table
    layers: list[list[Direction]]
    head: Matrix | None  # (W, C); None: the hidden state is the answer
    head_bias: Floats | None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """Every array of weights."""
        matrices = [self.embedding, self.head]
        matrices += [matrix for ways in self.layers for way in ways for matrix in (way.input, way.own)]
        found = [array for matrix in matrices if matrix is not None for array in matrix]
        found += [way.bias for ways in self.layers for way in ways] + [self.head_bias]
        return [array for array in found if array is not None]


def tables(network: Network, whole: bool, weights: Weights) -> Tables:
    """The tables of `network`, which `folded` gave; `whole` says whether its first layer's input is a table."""
    embedding: Any = network.embedding
    characters = _numbers(embedding.weight)[UNKNOWN:]
    layers: Any = network.layers
    M = len(layers[0][0].weight_ih_l0)
    all_layers = []
    for number, ways in enumerate(layers):
        own = []
        for way, one in enumerate(ways):
            W, R = _numbers(one.weight_ih_l0), _numbers(one.weight_hh_l0)
            given = characters[:, way * M : (way + 1) * M] if whole and not number else W.T
            own.append(
                Direction(
                    _stored(_ordered(given.T, INPUT_GATES[network.cell]).T, weights),
                    _stored(_ordered(R, STATE_GATES[network.cell]).T, weights),
                    _bias(_numbers(one.bias_ih_l0), _numbers(one.bias_hh_l0), network.cell),
                )
            )
        all_layers.append(own)
    H = layers[0][0].hidden_size
    head = network.head if isinstance(network.head, nn.Linear) else None
    return Tables(
        network.cell,
        H,
        len(head.weight) if head else H * len(layers[0]),
        None if whole else _stored(characters, weights),
        all_layers,
        _stored(_numbers(head.weight).T, weights) if head else None,
        _numbers(head.bias) if head else None,
    )


def folded(network: Network) -> tuple[Network, bool]:
    """The same network, and whether its first layer's input is now a table.

    That is its embedding multiplied with the first layer's input weights, a row for each character, where it is no
    larger than the two, and for one-hot always. As a network, it is an embedding of those products behind which
    the weights are a matrix of zeros and ones.
    """
    network = copy.deepcopy(network).as_layers().cpu().eval().requires_grad_(False)
    if isinstance(network.head, nn.Linear):  # where the recipe has it tied, no longer so
        network.head.weight = nn.Parameter(network.head.weight.detach().clone(), requires_grad=False)
    embedding: Any = network.embedding
    ways: Any = network.layers[0]
    W = torch.cat([way.weight_ih_l0 for way in ways])  # (ways * M, D)
    if isinstance(embedding, OneHot):
        vectors = torch.eye(embedding.characters)[:, RESERVED:]
    else:
        vectors = embedding.weight
        if vectors.shape[0] * W.shape[0] > vectors.numel() + W.numel():
            return network, False
    table = (vectors.double() @ W.double().T).float()
    network.embedding = nn.Embedding(*table.shape).requires_grad_(False)
    network.embedding.load_state_dict({"weight": table})
    for number, way in enumerate(ways):
        M, H = len(way.weight_ih_l0), way.hidden_size
        twin = layer(network.cell, len(W), H).eval().requires_grad_(False)
        state = way.state_dict()
        state["weight_ih_l0"] = torch.eye(len(W))[number * M : (number + 1) * M]
        twin.load_state_dict(state)
        ways[number] = twin
    return network, True


def rounded(network: Network, whole: bool) -> Network:
    """What `folded` gave with every matrix rounded to int8 as `tables` stores it.

    Raises `ProofError` where one is rounded further than it has to be.
    """
    network = copy.deepcopy(network)
    embedding: Any = network.embedding
    layers: Any = network.layers
    pieces = embedding.weight.chunk(len(layers[0]), dim=1) if whole else [embedding.weight]
    stored_rows = [*pieces]
    for number, ways in enumerate(layers):
        for way in ways:
            stored_rows += (
                [way.weight_hh_l0.T] if whole and not number else [way.weight_hh_l0.T, way.weight_ih_l0.T]
            )
    if isinstance(network.head, nn.Linear):
        stored_rows.append(network.head.weight.T)
    with torch.no_grad():
        for rows in stored_rows:  # views: what is written to them is in the network
            values, scales = quantised(_numbers(rows))
            near = torch.from_numpy(values * scales[:, None])
            # The C source and its oracle round by the same function; what it may do is told apart from it.
            if not bool(((near - rows).abs() <= rows.abs().amax(dim=1, keepdim=True) / 127 * 0.501).all()):
                raise ProofError("int8: a weight is rounded further than int8 has to; please report this")
            rows.copy_(near)
    return network


def quantised(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """`rows (n, m)` as int8 and a scale for each row `(n,)`."""
    largest = np.abs(rows).max(axis=1)
    scales = (np.where(largest > 0, largest, LEVELS) / LEVELS).astype(np.float32)
    return np.round(rows / scales[:, None]).astype(np.int8), scales


def pages(alphabet: Alphabet) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """`bits`, `pages (P,)` and `rows (Q << bits,)` of the smallest table in which a code point's row is found:
    `rows[pages[c >> bits] << bits | c & (1 << bits) - 1]`, 0 for the unknown, and where `c >> bits` is P or more.
    """
    points = [ord(character) for character in alphabet.characters]
    found = []
    for bits in range(3, 12):
        known = sorted({point >> bits for point in points})
        number = {page: k for k, page in enumerate(known, start=1)}  # page 0 has no character
        index = np.array(
            [number.get(page, 0) for page in range(known[-1] + 1 if known else 1)], dtype=np.int32
        )
        rows = np.zeros((len(known) + 1) << bits, dtype=np.int32)
        for row, point in enumerate(points, start=1):
            rows[(number[point >> bits] << bits) + (point & (1 << bits) - 1)] = row
        found.append((bits, index, rows))
    return min(found, key=lambda one: sum(array.size * unsigned(array) for array in one[1:]))


def unsigned(array: NDArray[np.int32]) -> int:
    """Bytes of the smallest unsigned type that holds every number of it."""
    largest = int(array.max())
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4


def _numbers(weight: Tensor) -> Floats:
    numbers: Floats = weight.detach().numpy()
    return numbers


def _stored(rows: Floats, weights: Weights) -> Matrix:
    return Matrix(*quantised(rows)) if weights == "int8" else Matrix(np.ascontiguousarray(rows), None)


def _ordered(weight: Floats, gates: tuple[int, ...]) -> Floats:
    parts = np.split(weight, len(gates))
    return np.concatenate([parts[number] for number in gates])


def _bias(given: Floats, own: Floats, cell: str) -> Floats:
    """The biases in the order of the sums; those of a GRU's n stay apart, since the reset stands between them."""
    if cell != "gru":
        return given + own
    (r, z, n), (own_r, own_z, own_n) = np.split(given, 3), np.split(own, 3)
    return np.concatenate([n, r + own_r, z + own_z, own_n])

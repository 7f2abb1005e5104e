"""The recurrent layers in ONNX: its own operators, or a `Scan` of one step.

Which is faster was measured (docs/results.md): `Scan` for the vanilla RNN, whose operator is slow in ONNX
Runtime, and for GRU and LSTM where a batch has many rows; with few rows, their operators. int8 is always `Scan`,
since the operators know no integers. (Both forms in one file, behind an `If` by the number of rows, were as
fast as the better one, but OpenVINO 2026.4 reads freed memory behind such an `If`.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ohlol.artifacts.alphabet import RESERVED
from ohlol.artifacts.contract import BATCH
from ohlol.export.nodes import Precision, Scope, value
from ohlol.train.network import Network, OneHot

Floats = NDArray[np.float32]

# ONNX keeps the gates in another order than PyTorch: rows of the weights, as PyTorch's gate numbers.
# GRU: r z n -> z r h; LSTM: i f g o -> i o f c. So the gates that have a sigmoid stand together.
GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
TABLE = 2**20  # numbers in the largest table of the first layer's products, made when the file is loaded
ONE_HOT = 128  # characters in the largest alphabet whose one-hot vectors stand in the file
# A hidden state lies between -1 and 1, so its step in int8 is the same whatever else is in the batch.
STEP, ZERO = np.array(1 / 127, dtype=np.float32), np.array(128, dtype=np.uint8)


class Direction(NamedTuple):
    """One direction of one layer, the gates in ONNX's order."""

    W: Floats  # (G * H, D), of the input
    R: Floats  # (G * H, H), of the state
    w: Floats  # (G * H,), the input's bias
    r: Floats  # (G * H,), the state's bias


def direction(layer: Any, cell: str) -> Direction:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return Direction(*(_reordered(getattr(layer, name).detach().numpy(), cell) for name in names))


def _reordered(weight: Floats, cell: str) -> Floats:
    gates = np.split(weight, len(GATES[cell]))
    return np.concatenate([gates[number] for number in GATES[cell]])


def _one_hot(V: int) -> Floats:
    """One-hot vectors `(V, V - 2)`; padding and unknown are zeros. Nothing where they would be too many."""
    return (
        np.eye(V, V - RESERVED, k=-RESERVED, dtype=np.float32)
        if V <= ONE_HOT
        else np.zeros((0, 0), np.float32)
    )


def times(s: Scope, x: str, name: str, W: Floats, bias: Floats) -> str:
    """`x (..., D)`, hidden states, times `W (n, D)` plus `bias (n,)`: `(..., n)`."""
    if s.precision == "int8":
        found = integer_times(s, x, name, W)
    else:
        found = s.add("MatMul", x, s.matrix(name, W, transposed=True), out=f"{name}.product")
    return s.add("Add", found, s.weight(f"{name}.bias", bias), out=f"{name}.sum")


def integer_times(s: Scope, x: str, name: str, W: Floats) -> str:
    """`x (..., D)`, hidden states, times `W (n, D)`, both as integers: `(..., n) float32`."""
    zero = s.weight("state.zero", ZERO)
    short = x.removeprefix(s.prefix)
    whole = s.once("QuantizeLinear", x, s.weight("state.step", STEP), zero, out=f"{short}.int8")
    integers, scales = s.integers(name, W, transposed=True, step=float(STEP))
    product = s.add("MatMulInteger", whole, integers, zero, out=f"{name}.integers")
    single = s.add("Cast", product, out=f"{name}.unscaled", to=TensorProto.FLOAT)
    return s.add("Mul", single, scales, out=f"{name}.product")


class Layers:
    """The recurrent layers of `network`, to be written into a graph of `precision`.

    `carried`: the state is given and given back; else it begins as zeros. `batch`: for many rows.
    """

    def __init__(self, network: Network, precision: Precision, carried: bool, batch: bool) -> None:
        self.cell, self.carried, self.classify = network.cell, carried, network.task == "classify"
        embedding: Any = network.embedding
        self.one_hot = isinstance(embedding, OneHot)
        self.V = embedding.characters if self.one_hot else len(embedding.weight)
        self.scans = batch or self.cell == "rnn" or precision == "int8" or (self.one_hot and self.V > ONE_HOT)
        self.embedding: Floats = _one_hot(self.V) if self.one_hot else embedding.weight.detach().numpy()
        layers: Any = network.layers
        self.layers = [[direction(layer, self.cell) for layer in ways] for ways in layers]
        self.H = self.layers[0][0].R.shape[1]
        # The rows of gates that are computed at once: the reset gate of PyTorch's GRU stands between the two
        # products of the last one.
        gru = {"zr": slice(2 * self.H), "h": slice(2 * self.H, None)}
        self.parts = gru if self.cell == "gru" else {"": slice(None)}
        self.states = 2 if self.cell == "lstm" else 1

    def write(self, s: Scope, ids: str, ends: str, state: list[str]) -> tuple[str, list[str]]:
        """The last layer's answers for `ids (T, B)`, `(T, B, H)` or both ways `(T, B, 2H)`, and the next state.

        `ends (B,) int64` are the lengths of the rows. `state`, if carried, and the next one are `(1, B, H)` for
        h (and c) of each layer. The last layer of `classify` leaves each direction's answers in the order in
        which it reads, so that both are done at a row's last step.
        """
        if self.scans and not self.carried:
            rows = s.add("Shape", ids, out="rows", start=1, end=2)
            shape = s.add("Concat", rows, s.numbers(self.H), out="state.shape", axis=0)
            state = [s.add("ConstantOfShape", shape, out="state.zeros")] * self.states * len(self.layers)
        x, after = ids, []
        for number, ways in enumerate(self.layers):
            name = f"layer{number}"
            given = [x] if len(ways) == 1 else [x, reverse(s, x, ends, f"{name}.reversed")]
            own = state[number * self.states :][: self.states]
            (x, *back), now = (self.scan if self.scans else self.operators)(s, number, given, own)
            if back:
                if not (self.classify and ways is self.layers[-1]):
                    back = [reverse(s, back[0], ends, f"{name}.unreversed")]
                x = s.add("Concat", x, *back, out=f"{name}.both", axis=-1)
            after += now
        return x, after

    def operators(
        self, s: Scope, number: int, given: list[str], state: list[str]
    ) -> tuple[list[str], list[str]]:
        """The answers of each direction to what is given to it, `(T, B, H)`, and the next state."""
        attributes = {"hidden_size": self.H}
        if self.cell == "gru":
            attributes["linear_before_reset"] = 1  # PyTorch's GRU; ONNX's default is another one
        outs, after = [], []
        for way, (own, x) in enumerate(zip(self.layers[number], given, strict=True)):
            name = f"layer{number}.{way}"
            x = x if number else self.vectors(s, x, name)
            weights = [s.matrix(f"{name}.{k}", matrix[None]) for k, matrix in (("W", own.W), ("R", own.R))]
            weights.append(s.weight(f"{name}.B", np.concatenate([own.w, own.r])[None]))
            last = [f"{name}.next_{k}" for k in "hc"[: self.states]] if self.carried else []
            if self.carried:
                weights += ["", *state]
            found = s.parts(self.cell.upper(), x, *weights, outs=[f"{name}.steps", *last], **attributes)
            outs.append(s.add("Squeeze", found[0], s.numbers(1), out=f"{name}.answers"))
            after += found[1:]
        return outs, after

    def scan(self, s: Scope, number: int, given: list[str], state: list[str]) -> tuple[list[str], list[str]]:
        """As `operators`; one `Scan` steps through all directions."""
        name = f"layer{number}"
        step = s.inner(f"{name}.step.")
        products: list[str] = []
        inputs, states, nexts, answers = [], [], [], []
        for way, (own, x) in enumerate(zip(self.layers[number], given, strict=True)):
            xs = {}
            for part, rows in self.parts.items():
                products.append(self.projected(s, number, f"{name}.{way}.W{part}", own, part, x))
                xs[part] = f"{step.prefix}x{way}{part}"
                inputs.append(value(xs[part], (BATCH, len(own.W[rows]))))
            before = [f"{step.prefix}{k}{way}" for k in "hc"[: self.states]]
            now = self.step(step, way, f"{name}.{way}.R", own, xs, *before)
            answers.append(step.add("Identity", now[0], out=f"answer{way}"))
            states += before
            nexts += now
        if self.carried:
            state = [s.add("Squeeze", x, s.numbers(0), out=f"{name}.state{k}") for k, x in enumerate(state)]
        else:
            state = state * len(given)
        declared = [[value(x, (BATCH, self.H)) for x in names] for names in (states, nexts + answers)]
        found = s.parts(
            "Scan", *state, *products,
            outs=[f"{name}.after{k}" for k, _ in enumerate(nexts)] + [f"{name}.{way}" for way, _ in enumerate(given)],
            body=step.graph(f"{name}_step", declared[0] + inputs, declared[1]),
            num_scan_inputs=len(products),
        )  # fmt: skip
        after = found[: len(nexts)] if self.carried else []
        after = [s.add("Unsqueeze", x, s.numbers(0), out=f"{name}.next{k}") for k, x in enumerate(after)]
        return found[len(nexts) :], after

    def step(
        self, s: Scope, way: int, name: str, own: Direction, x: dict[str, str], h: str, c: str = ""
    ) -> list[str]:
        """One step of one direction, in the subgraph of a `Scan`: the next h (and c), `(B, H)`."""
        sigmoids = len(GATES[self.cell]) - 1

        def of_state(part: str, plus: str) -> str:
            """The state's product with its gates, `plus` added."""
            R = own.R[self.parts[part]]
            if s.precision == "int8":
                product = integer_times(s, h, f"{name}{part}", R)
                return s.add("Add", product, plus, out=f"sum{way}{part}")
            return s.add("Gemm", h, s.matrix(f"{name}{part}", R), plus, out=f"sum{way}{part}", transB=1)

        if self.cell == "rnn":
            return [s.add("Tanh", of_state("", x[""]), out=f"next_h{way}")]
        if self.cell == "gru":
            both = s.add("Sigmoid", of_state("zr", x["zr"]), out=f"zr{way}")
            z, r = s.parts("Split", both, outs=[f"z{way}", f"r{way}"], axis=1, num_outputs=sigmoids)
            bias = s.weight(f"{name}h.bias", own.r[self.parts["h"]])
            reset = s.add("Mul", r, of_state("h", bias), out=f"reset{way}")
            new = s.add("Tanh", s.add("Add", reset, x["h"], out=f"new_sum{way}"), out=f"new{way}")
            kept = s.add("Mul", z, s.add("Sub", h, new, out=f"change{way}"), out=f"kept{way}")
            return [s.add("Add", new, kept, out=f"next_h{way}")]  # (1 - z) * new + z * h
        sizes, halves = s.numbers(sigmoids * self.H, self.H), [f"iof_sum{way}", f"cell_sum{way}"]
        iof, cell = s.parts("Split", of_state("", x[""]), sizes, outs=halves, axis=1)
        gates = s.add("Sigmoid", iof, out=f"iof{way}")
        i, o, f = s.parts("Split", gates, outs=[f"{k}{way}" for k in "iof"], axis=1, num_outputs=sigmoids)
        new = s.add("Mul", i, s.add("Tanh", cell, out=f"cell{way}"), out=f"new{way}")
        now = s.add("Add", s.add("Mul", f, c, out=f"kept{way}"), new, out=f"next_c{way}")
        return [s.add("Mul", o, s.add("Tanh", now, out=f"shown{way}"), out=f"next_h{way}"), now]

    def projected(self, s: Scope, number: int, name: str, own: Direction, part: str, x: str) -> str:
        """The input's product with its gates and the biases that can be added at once: `(T, B, n)`."""
        rows = self.parts[part]
        W, bias = own.W[rows], (own.w if part == "h" else own.w + own.r)[rows]
        if number:
            return times(s, x, name, W, bias)
        if self.one_hot or self.V * len(W) <= TABLE:
            return s.add("Gather", self.table(s, name, W, bias), x, out=f"{name}.looked_up")
        columns = s.matrix(name, W, transposed=True)
        product = s.add("MatMul", self.vectors(s, x, name), columns, out=f"{name}.product")
        return s.add("Add", product, s.weight(f"{name}.bias", bias), out=f"{name}.sum")

    def table(self, s: Scope, name: str, W: Floats, bias: Floats) -> str:
        """Every character's product with gates of the first layer, bias added: `(V, n)`.

        Where that is no larger than what it is made of, it stands in the file; else it is made on loading.
        """
        if self.one_hot:  # a one-hot vector picks a column of W
            none = np.zeros((RESERVED, len(W)), dtype=np.float32)
            if s.precision == "single":
                return s.weight(f"{name}.table", np.concatenate([none, W.T]) + bias)
            none_known = s.weight(f"no_character_{len(W)}", none)
            rows = s.add("Concat", none_known, s.matrix(name, W, transposed=True), out=f"{name}.rows", axis=0)
            return s.add("Add", rows, s.weight(f"{name}.bias", bias), out=f"{name}.table")
        if s.precision == "single" and self.V * len(W) <= self.embedding.size + W.size:
            exact = self.embedding.astype(np.float64) @ W.T.astype(np.float64) + bias
            return s.weight(f"{name}.table", exact.astype(np.float32))
        known, columns = s.matrix("embedding", self.embedding), s.matrix(name, W, transposed=True)
        return s.add("Gemm", known, columns, s.weight(f"{name}.bias", bias), out=f"{name}.table")

    def vectors(self, s: Scope, ids: str, name: str) -> str:
        """The characters' vectors, `(T, B, D)`."""
        known = (s.weight if self.one_hot else s.matrix)("embedding", self.embedding)
        return s.add("Gather", known, ids, out=f"{name}.vectors")


def reverse(s: Scope, x: str, ends: str, out: str) -> str:
    """`x (T, B, ...)` with the first `ends[b]` steps of each row in reverse order."""
    return s.add("ReverseSequence", x, ends, out=out, batch_axis=1, time_axis=0)

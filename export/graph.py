"""The exported network: code points and lengths in, the contract's outputs out.

`Graph` computes with PyTorch's operators and is traced to TorchScript. `OnnxGraph` is the same, with
ONNX's own operators in the places where PyTorch's would be refused, frozen or taken apart by the
exporter: the recurrent layers, the reversal of rows, look-ups and the division into pages.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ohlol.artifacts.alphabet import PAGE, RESERVED, Alphabet
from ohlol.artifacts.contract import OPSET
from ohlol.train.network import Network, OneHot, reverse

# ONNX keeps the gates in another order than PyTorch: rows of the weights, as PyTorch's gate numbers.
# GRU: r z n -> z r h; LSTM: i f g o -> i o f c.
GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class Graph(nn.Module):
    """Time runs along the first axis inside, since ONNX's recurrent operators know no other."""

    pages: Tensor
    table: Tensor
    inputs: Tensor

    def __init__(self, network: Network, alphabet: Alphabet) -> None:
        super().__init__()
        network = copy.deepcopy(network).cpu().eval().as_layers()
        pages, table = (torch.from_numpy(array.copy()) for array in alphabet.page_table)
        self.task = network.task
        self.cell = network.cell
        self.register_buffer("pages", pages)  # (P,) int32
        self.register_buffer("table", table)  # (Q * 256,) int32
        self.register_buffer("inputs", _input_table(network))  # (V, D) float32
        self.layers = nn.ModuleList()
        for directions in network.layers:
            assert isinstance(directions, nn.ModuleList)
            self.layers.append(nn.ModuleList(_time_first(layer) for layer in directions))
        self.head = network.head
        self.requires_grad_(False)

    def forward(self, codepoints: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """`codepoints (B, T) int32`, `lengths (B,) int32` to the outputs of the task's contract."""
        _, T = codepoints.shape
        ends = lengths.long()
        points = codepoints.t().clamp(0, len(self.pages) * PAGE - 1)  # (T, B)
        page, place = self.divide(points)
        ids = self.take(self.table, self.take(self.pages, page) + place)
        x = self.take(self.inputs, ids)  # (T, B, D)
        for number in range(len(self.layers)):
            outs = self.both_ways(number, x, ends)
            x = torch.cat(outs, dim=-1) if len(outs) > 1 else outs[0]
        if self.task == "classify":
            # Reversed, a row's last step is its first: each direction's state after the whole row.
            last = [self.reverse(outs[0], ends)[0], *(out[0] for out in outs[1:])]
            logits = self.head(torch.cat(last, dim=-1) if len(last) > 1 else last[0])  # (B, C)
            return logits, logits.softmax(-1), logits.argmax(-1).int()
        inside = torch.arange(T).unsqueeze(0) < ends.unsqueeze(1)  # (B, T)
        keep = inside.unsqueeze(-1).float()
        logits = self.head(x).transpose(0, 1) * keep  # (B, T, C), 0 on padding
        probabilities = logits.softmax(-1) * keep
        if self.task == "lm":
            return logits, probabilities
        return logits, probabilities, torch.where(inside, logits.argmax(-1).int(), -1)

    def both_ways(self, number: int, x: Tensor, ends: Tensor) -> list[Tensor]:
        """The outputs of layer `number`, `(T, B, H)` for each direction, in the order of the characters."""
        directions: Any = self.layers[number]
        outs = [self.layer(directions[0], x)]
        if len(directions) == 2:
            outs.append(self.reverse(self.layer(directions[1], self.reverse(x, ends)), ends))
        return outs

    def layer(self, layer: nn.RNNBase, x: Tensor) -> Tensor:
        """`x (T, B, D)` to `(T, B, H)`, from a state of zeros."""
        out: Tensor = layer(x)[0]
        return out

    def reverse(self, x: Tensor, ends: Tensor) -> Tensor:
        """`x (T, B, D)` with each row's first `ends[b]` steps reversed."""
        return reverse(x.transpose(0, 1), ends).transpose(0, 1)

    def take(self, table: Tensor, index: Tensor) -> Tensor:
        return table[index.long()]

    def divide(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Page number and place in the page of code points, which are not negative."""
        return torch.div(points, PAGE, rounding_mode="trunc"), torch.remainder(points, PAGE)


class OnnxGraph(Graph):
    """`Graph` in ONNX's own operators. It can be exported, not run."""

    def __init__(self, network: Network, alphabet: Alphabet) -> None:
        super().__init__(network, alphabet)
        # As ONNX stacks them, so that nothing is split, reordered or joined at run time.
        for number, directions in enumerate(self.layers):
            assert isinstance(directions, nn.ModuleList)
            for way, layer in enumerate(directions):
                layer.place = f"{number}_{way}"  # type: ignore[assignment]
                for name, weight in zip("WRB", _stacked(layer, self.cell), strict=True):
                    self.register_buffer(f"{name}_{layer.place}", weight)
        self.register_buffer("page_size", torch.tensor(PAGE, dtype=torch.int32))

    def layer(self, layer: nn.RNNBase, x: Tensor) -> Tensor:
        T, B, _ = x.shape
        weights = [getattr(self, f"{name}_{layer.place}") for name in "WRB"]
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        if self.cell == "gru":
            attributes["linear_before_reset"] = 1  # PyTorch's GRU; ONNX's default is another one
        out = _onnx(self.cell.upper(), [x, *weights], attributes, x, (T, 1, B, layer.hidden_size))
        return out.squeeze(1)

    def reverse(self, x: Tensor, ends: Tensor) -> Tensor:
        return _onnx("ReverseSequence", [x, ends], {"batch_axis": 1, "time_axis": 0}, x, x.shape)

    def take(self, table: Tensor, index: Tensor) -> Tensor:
        return _onnx("Gather", [table, index], {"axis": 0}, table, (*index.shape, *table.shape[1:]))

    def divide(self, points: Tensor) -> tuple[Tensor, Tensor]:
        size: Any = self.page_size
        page = _onnx("Div", [points, size], {}, points, points.shape)
        return page, _onnx("Mod", [points, size], {}, points, points.shape)


def _onnx(op: str, inputs: list[Tensor], attributes: dict[str, Any], like: Tensor, shape: Any) -> Tensor:
    out: Tensor = torch.onnx.ops.symbolic(
        op, inputs, attributes, dtype=like.dtype, shape=shape, version=OPSET
    )
    return out


def _input_table(network: Network) -> Tensor:
    """What the first layer reads for each id, `(V, D) float32`."""
    if isinstance(network.embedding, OneHot):
        known = torch.eye(network.embedding.characters - RESERVED)
        return torch.cat([torch.zeros(RESERVED, known.shape[1]), known])
    weight: Any = network.embedding.weight
    return weight.detach().clone()  # type: ignore[no-any-return]


def _time_first(layer: Any) -> nn.RNNBase:
    twin: nn.RNNBase = type(layer)(layer.input_size, layer.hidden_size)
    twin.load_state_dict(layer.state_dict())
    return twin.eval()


def _stacked(layer: nn.Module, cell: str) -> tuple[Tensor, Tensor, Tensor]:
    """`W (1, G * H, D)`, `R (1, G * H, H)`, `B (1, 2 * G * H)` with ONNX's order of the gates."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    W, R, input_bias, hidden_bias = (_reordered(getattr(layer, name), cell) for name in names)
    return W[None], R[None], torch.cat([input_bias, hidden_bias])[None]


def _reordered(weight: Tensor, cell: str) -> Tensor:
    gates = weight.detach().chunk(len(GATES[cell]))
    return torch.cat([gates[number] for number in GATES[cell]])

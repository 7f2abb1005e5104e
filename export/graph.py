"""The exported network in PyTorch: code points and lengths in, the contract's outputs out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.functional import linear

from ohlol.artifacts.alphabet import PAGE, Alphabet
from ohlol.train.network import Network


class Graph(nn.Module):
    """What is traced to TorchScript; with `scan`, exported to `.pt2`."""

    pages: Tensor
    table: Tensor

    def __init__(self, network: Network, alphabet: Alphabet, scan: bool = False) -> None:
        super().__init__()
        pages, table = (torch.from_numpy(array.copy()) for array in alphabet.page_table)
        self.task = network.task
        self.register_buffer("pages", pages)  # (P,) int32
        self.register_buffer("table", table)  # (Q * 256,) int32
        self.network = copy.deepcopy(network).cpu().eval().as_layers()
        if scan:
            for directions in self.network.layers:
                assert isinstance(directions, nn.ModuleList)
                for number, layer in enumerate(directions):
                    directions[number] = Steps(layer, network.cell)
        self.requires_grad_(False)

    def forward(self, codepoints: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """`codepoints (B, T) int32`, `lengths (B,) int32` to the outputs of the task's contract."""
        _, T = codepoints.shape
        ends = lengths.long()
        points = codepoints.long().clamp(0, len(self.pages) * PAGE - 1)
        page = torch.div(points, PAGE, rounding_mode="trunc")
        ids = self.table[(self.pages[page] + torch.remainder(points, PAGE)).long()].long()  # (B, T)
        logits = self.network(ids, ends)
        if self.task == "classify":
            return logits, logits.softmax(-1), logits.argmax(-1).int()
        inside = torch.arange(T, device=codepoints.device) < ends.unsqueeze(1)  # (B, T)
        keep = inside.unsqueeze(-1).float()
        logits = logits * keep  # (B, T, C), 0 on padding
        probabilities = logits.softmax(-1) * keep
        if self.task == "lm":
            return logits, probabilities
        return logits, probabilities, torch.where(inside, logits.argmax(-1).int(), -1)


class Steps(nn.Module):
    """A recurrent layer as a scan over time, which `torch.export` keeps of any length.

    Layers of `nn.RNN`, `nn.GRU` and `nn.LSTM` it unrolls for the length of the example (torch 2.13).
    """

    def __init__(self, layer: Any, cell: str) -> None:
        super().__init__()
        self.layer, self.cell = layer, cell

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x (B, T, D)` to `out (B, T, H)` and the last state `(B, H)`."""
        layer, B = self.layer, x.shape[0]  # `len` would fix it
        products = linear(x.transpose(0, 1), layer.weight_ih_l0, layer.bias_ih_l0)  # (T, B, G * H)
        zeros = [x.new_zeros(B, layer.hidden_size) for _ in range(2 if self.cell == "lstm" else 1)]
        (h, *_), out = scan(self.step, zeros, products, dim=0)
        return out.transpose(0, 1), h

    def step(self, state: list[Tensor], product: Tensor) -> tuple[list[Tensor], Tensor]:
        """The equations of torch.nn.RNN, GRU and LSTM for one step."""
        h = state[0]
        own = linear(self.seen(h), self.layer.weight_hh_l0, self.layer.bias_hh_l0)
        if self.cell == "rnn":
            h = (product + own).tanh()
            return [h], h.clone()
        if self.cell == "gru":
            reset, update, new = product.chunk(3, dim=-1)
            own_reset, own_update, own_new = own.chunk(3, dim=-1)
            z = (update + own_update).sigmoid()
            n = (new + (reset + own_reset).sigmoid() * own_new).tanh()
            h = n + z * (h - n)
            return [h], h.clone()
        i, f, g, o = (product + own).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return [h, c], h.clone()

    def seen(self, h: Tensor) -> Tensor:
        """The state as products see it."""
        return h


class RoundedSteps(Steps):
    """A recurrent layer whose states are rounded, as int8 files round them, wherever they are multiplied.

    `shown`: so are its answers, which the next layer or the head multiplies.
    """

    def __init__(self, layer: Any, cell: str, step: float, shown: bool) -> None:
        super().__init__(layer, cell)
        self.grid, self.shown = step, shown

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer, B = self.layer, x.shape[0]
        state = [x.new_zeros(B, layer.hidden_size) for _ in range(2 if self.cell == "lstm" else 1)]
        answers = []
        for product in linear(x.transpose(0, 1), layer.weight_ih_l0, layer.bias_ih_l0):
            state, h = self.step(state, product)
            answers.append(self.seen(h) if self.shown else h)
        return torch.stack(answers, dim=1), state[0]

    def seen(self, h: Tensor) -> Tensor:
        return torch.round(h / self.grid) * self.grid

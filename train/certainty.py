"""How sure a network is of its answers, and how it is surprised."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ohlol.train.data import IGNORE, Split
from ohlol.train.evaluate import _logits
from ohlol.train.network import Network


def sure_answers(
    network: Network, split: Split, device: torch.device | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The label id of each row of `split` and the probability it got, `(N,)` each (`classify`)."""
    ids = np.zeros(len(split.rows), dtype=np.int64)
    sure = np.zeros(len(split.rows), dtype=np.float32)
    for index, logits, _ in _logits(network, split, device):
        ids[index] = logits.argmax(-1).cpu().numpy()
        sure[index] = logits.softmax(-1).amax(-1).cpu().numpy()
    return ids, sure


def surprises(
    network: Network, split: Split, device: torch.device | None = None
) -> list[NDArray[np.float32]]:
    """−ln p of each character after the first, for each row of `split` (`lm`)."""
    found = [np.zeros(0, dtype=np.float32)] * len(split.rows)
    lengths = split.rows.lengths
    for index, logits, targets in _logits(network, split, device):
        nats = functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )  # (B, T)
        for row, values in zip(index.tolist(), nats.cpu().numpy(), strict=True):
            found[row] = values[: lengths[row]].copy()
    return found

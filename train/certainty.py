"""How sure a network is of its answers, and how it is surprised."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ohlol.train.data import Split
from ohlol.train.evaluate import logits_of, surprise
from ohlol.train.network import Network


def sure_answers(
    network: Network, split: Split, device: torch.device | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The label id of each row of `split` and the probability it got, `(N,)` each (`classify`)."""
    ids = np.zeros(len(split.rows), dtype=np.int64)
    sure = np.zeros(len(split.rows), dtype=np.float32)
    for stretches, logits, _ in logits_of(network, split, device):
        rows = [s.row for s in stretches]
        ids[rows] = logits.argmax(-1).cpu().numpy()
        sure[rows] = logits.softmax(-1).amax(-1).cpu().numpy()
    return ids, sure


def surprises(
    network: Network, split: Split, device: torch.device | None = None
) -> list[NDArray[np.float32]]:
    """−ln p of each character after the first, for each row of `split` (`lm`)."""
    found = [np.zeros(length, dtype=np.float32) for length in split.rows.lengths.tolist()]
    for s, own in surprise(network, split, device):
        found[s.row][s.start : s.end] = own
    return found

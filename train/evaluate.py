"""A split's metrics, by a network or by a bundle's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ohlol.artifacts.contract import Task
from ohlol.artifacts.run import Vocabulary
from ohlol.train.data import IGNORE, Split
from ohlol.train.metrics import Metrics, label_metrics, lm_metrics, tag_metrics
from ohlol.train.network import Network

CHARACTERS = 65_536  # in one batch, padding included


def evaluate_network(
    network: Network, split: Split, vocabulary: Vocabulary, device: torch.device | None = None
) -> Metrics:
    """The metrics of `split`; the network is left in evaluation mode."""
    if network.task == "lm":
        nats = 0.0
        for _, logits, targets in _logits(network, split, device):
            loss = functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            nats += float(loss)
        return lm_metrics(nats, len(split.rows.targets))
    return _label_metrics(split, answers(network, split, device), vocabulary, network.task)


def answers(network: Network, split: Split, device: torch.device | None = None) -> list[NDArray[np.int64]]:
    """The network's label ids for each row of `split`: `(T,)` (`tag`) or `(1,)` (`classify`)."""
    predicted: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(split.rows)
    lengths = split.rows.lengths
    for index, logits, _ in _logits(network, split, device):
        for row, ids in zip(index.tolist(), logits.argmax(-1).cpu().numpy(), strict=True):
            predicted[row] = ids[: lengths[row]] if network.task == "tag" else ids[None]
    return predicted


def evaluate_results(results: Iterable[Any], split: Split, vocabulary: Vocabulary, task: Task) -> Metrics:
    """The metrics of a bundle's answers to the examples of `split`, in their order."""
    if task == "lm":
        scored = [result for result in results if result.nats_per_character is not None]
        nats = sum(result.nats_per_character * (len(result.text) - 1) for result in scored)
        return lm_metrics(nats, sum(len(result.text) - 1 for result in scored))
    numbers = {label: number for number, label in enumerate(vocabulary.labels)}
    labels = (result.labels if task == "tag" else (result.label,) for result in results)
    predicted = [np.array([numbers[label] for label in row], dtype=np.int64) for row in labels]
    return _label_metrics(split, predicted, vocabulary, task)


def _label_metrics(
    split: Split, predicted: list[NDArray[np.int64]], vocabulary: Vocabulary, task: Task
) -> Metrics:
    if task == "tag":
        return tag_metrics(split, predicted, vocabulary)
    return label_metrics(split.rows.targets, np.concatenate(predicted), len(vocabulary.labels))


def _logits(
    network: Network, split: Split, device: torch.device | None
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Row numbers, logits and targets of batches over the whole split."""
    network.eval()
    with torch.inference_mode():
        for index in _batches(split):
            ids, lengths, targets = (torch.from_numpy(array).to(device) for array in split.rows.batch(index))
            yield index, network(ids, lengths), targets


def _batches(split: Split) -> Iterable[NDArray[np.int64]]:
    """Rows of like length together, at most `CHARACTERS` with padding (or one row)."""
    lengths = split.rows.lengths
    batch: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and lengths[row] * (len(batch) + 1) > CHARACTERS:
            yield np.array(batch)
            batch = []
        batch.append(row)
    if batch:
        yield np.array(batch)

"""A split's metrics, by a network or by a bundle's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ohlol.artifacts.contract import Task
from ohlol.artifacts.run import Vocabulary
from ohlol.train.batches import IGNORE
from ohlol.train.data import Split
from ohlol.train.metrics import Metrics, label_metrics, lm_metrics, tag_metrics
from ohlol.train.network import Network

CHARACTERS = 65_536  # in one batch, padding included
STRETCH = 4096  # characters of a long row that are answered at once
CONTEXT = 256  # characters read before them and, by a tagger, after them too


class Stretch(NamedTuple):
    """The characters from `start` to `end` of a row are answered, those from `first` to `last` read."""

    row: int
    start: int
    end: int
    first: int
    last: int


def evaluate_network(
    network: Network, split: Split, vocabulary: Vocabulary, device: torch.device | None = None
) -> Metrics:
    """The metrics of `split`; the network is left in evaluation mode."""
    if network.task != "lm":
        return _label_metrics(split, answers(network, split, device), vocabulary, network.task)
    nats = sum(float(own.sum()) for _, own in surprise(network, split, device))
    return lm_metrics(nats, split.rows.characters)


def answers(network: Network, split: Split, device: torch.device | None = None) -> list[NDArray[np.int64]]:
    """The network's label ids for each row of `split`: `(T,)` (`tag`) or `(1,)` (`classify`)."""
    sizes = np.ones(len(split.rows), dtype=np.int64) if split.rows.per_row else split.rows.lengths
    predicted = [np.zeros(size, dtype=np.int64) for size in sizes]
    for stretches, logits, _ in logits_of(network, split, device):
        for s, ids in zip(stretches, logits.argmax(-1).cpu().numpy(), strict=True):
            if split.rows.per_row:
                predicted[s.row][0] = ids
            else:
                predicted[s.row][s.start : s.end] = ids[s.start - s.first : s.end - s.first]
    return predicted


def surprise(
    network: Network, split: Split, device: torch.device | None = None
) -> Iterator[tuple[Stretch, NDArray[np.float32]]]:
    """Of an `lm`: stretches of the rows of `split`, with −ln p of each character they predict, in nats."""
    for stretches, logits, targets in logits_of(network, split, device):
        nats = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu().numpy()
        for s, own in zip(stretches, nats, strict=True):
            yield s, own[s.start - s.first : s.end - s.first]


def evaluate_model(
    model: Callable[[Iterator[str]], Iterator[Any]], split: Split, vocabulary: Vocabulary, task: Task
) -> Metrics:
    """The metrics of a bundle's model, which answers texts, on the examples of `split`."""
    numbers = {label: number for number, label in enumerate(vocabulary.labels)}
    if task == "classify":
        predicted = [np.array([numbers[result.label]]) for result in model(split.examples.texts())]
        return _label_metrics(split, predicted, vocabulary, task)
    texts = list(split.examples.texts())
    predicting = 1 if task == "lm" else 0  # the last character is only predicted
    lengths = np.array([len(text) - predicting for text in texts], dtype=np.int64)
    stretches = list(_stretches(lengths, task))
    results = model(texts[s.row][s.first : s.last + predicting] for s in stretches)
    if task == "tag":
        parts: list[list[NDArray[np.int64]]] = [[] for _ in texts]
        for s, result in zip(stretches, results, strict=True):
            own = result.labels[s.start - s.first : s.end - s.first]
            parts[s.row].append(np.array([numbers[label] for label in own]))
        return _label_metrics(split, [np.concatenate(own) for own in parts], vocabulary, task)
    context = (texts[s.row][s.first : s.start + 1] for s in stretches if s.start > s.first)
    nats = sum(map(_nats, results)) - sum(map(_nats, model(context)))
    return lm_metrics(nats, int(lengths.sum()))


def _nats(result: Any) -> float:
    return result.nats_per_character * (len(result.text) - 1) if len(result.text) > 1 else 0.0


def _label_metrics(
    split: Split, predicted: list[NDArray[np.int64]], vocabulary: Vocabulary, task: Task
) -> Metrics:
    if task == "tag":
        return tag_metrics(split, predicted, vocabulary)
    return label_metrics(split.rows.targets, np.concatenate(predicted), len(vocabulary.labels))


def logits_of(
    network: Network, split: Split, device: torch.device | None
) -> Iterator[tuple[list[Stretch], Tensor, Tensor]]:
    """Stretches, their logits and targets, in batches over the whole split; context has the target `IGNORE`."""
    rows = split.rows
    network.eval()
    with torch.inference_mode():
        for stretches in _batches(list(_stretches(rows.lengths, network.task))):
            number, start, end, first, last = np.array(stretches).T
            if rows.per_row:
                batch = rows.batch(number)
            else:
                batch = rows.cut(rows.spans[number][0] + first, last - first)
                time = np.arange(batch.ids.shape[1])
                answered = ((start - first)[:, None] <= time) & (time < (end - first)[:, None])
                batch = batch._replace(targets=np.where(answered, batch.targets, IGNORE))
            ids, lengths, targets = (torch.from_numpy(array).to(device) for array in batch)
            yield stretches, network(ids, lengths), targets


def _stretches(lengths: NDArray[np.int64], task: Task) -> Iterator[Stretch]:
    """Rows whole, but for `tag` and `lm` long ones in stretches with some context around them.

    The order is that of the rows.
    """
    for row, length in enumerate(lengths.tolist()):
        size = length if task == "classify" or length <= 2 * STRETCH else STRETCH
        for start in range(0, length, max(size, 1)):
            end = min(start + size, length)
            last = min(end + CONTEXT, length) if task == "tag" else end
            yield Stretch(row, start, end, max(start - CONTEXT, 0) if start else 0, last)


def _batches(stretches: list[Stretch]) -> Iterable[list[Stretch]]:
    """Those of like length together, at most `CHARACTERS` with padding (or one)."""
    batch: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda s: s.last - s.first):
        if batch and (stretch.last - stretch.first) * (len(batch) + 1) > CHARACTERS:
            yield batch
            batch = []
        batch.append(stretch)
    if batch:
        yield batch

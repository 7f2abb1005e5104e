"""Metrics, on predictions from a checkpoint and from a bundle alike. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.run import LOWER_IS_BETTER, Vocabulary
from ohlol.artifacts.words import Span, sentence_spans, word_spans
from ohlol.train.confusion import Confusion
from ohlol.train.data import Split

Metrics = dict[str, float]


def tag_metrics(split: Split, predicted: Sequence[NDArray[np.int64]], vocabulary: Vocabulary) -> Metrics:
    """Accuracy and macro-F1 over characters and, for labels of the scheme "words", F1 over spans.

    `predicted` holds the label ids of each row, `(T,) int64`. The span scores are those of the CoNLL 2018
    shared task: a span counts where it covers the same characters, spaces left out.
    """
    metrics = label_metrics(split.rows.targets, np.concatenate(predicted), len(vocabulary.labels))
    if vocabulary.label_scheme:
        names = np.array(vocabulary.labels)
        for name, spans in (("words_f1", word_spans), ("sentences_f1", sentence_spans)):
            right = found = gold = 0
            for example, ids in zip(split.examples, predicted, strict=True):
                expected = _without_spaces(spans(example.labels), example.text)
                answered = _without_spaces(spans(names[ids].tolist()), example.text)
                right += len(expected & answered)
                found += len(answered)
                gold += len(expected)
            metrics[name] = 2 * right / (found + gold) if found + gold else 0.0
    return metrics


def label_metrics(gold: NDArray[np.int64], predicted: NDArray[np.int64], labels: int) -> Metrics:
    """Accuracy, and F1 averaged over the labels that occur in `gold (N,)` or `predicted (N,)`."""
    confusion = Confusion.of(gold, predicted, [str(k) for k in range(labels)])
    scores = [score.f1 for score in confusion.scores() if score.f1 is not None]
    return {
        "accuracy": float(confusion.count[~confusion.wrong].sum() / max(len(gold), 1)),
        "macro_f1": float(np.mean(scores)) if scores else 0.0,
    }


def lm_metrics(nats: float, characters: int) -> Metrics:
    """From the sum of −ln p over `characters` predicted ones."""
    per_character = nats / characters
    return {"nats_per_character": per_character, "bits_per_character": per_character / float(np.log(2))}


def better(name: str, value: float, than: float | None) -> bool:
    if than is None:
        return True
    return value < than if name in LOWER_IS_BETTER else value > than


def _without_spaces(spans: Sequence[Span], text: str) -> set[Span]:
    """Spans counted in characters that are not spaces; a span of spaces alone is left out."""
    seen = np.concatenate(([0], np.cumsum([not character.isspace() for character in text])))
    counted = ((int(seen[start]), int(seen[end])) for start, end in spans)
    return {(start, end) for start, end in counted if end > start}

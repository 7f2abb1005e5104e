"""What a task makes of the outputs of a text that comes in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.answers import R, classified
from ohlol.serve.results import Classified, Labels, Scored, Tagged
from ohlol.serve.state import State


class Piecewise(ABC, Generic[R]):
    """The answer for one piece, which is put to the network in parts."""

    asks: ClassVar[tuple[str, ...]]  # outputs of stream.onnx
    keeps_last: ClassVar[bool] = True

    def __init__(self, manifest: Manifest, labels: Labels, before: State) -> None:
        self.manifest = manifest
        self.labels = labels
        self.last = before.last  # of `State`

    @abstractmethod
    def add(self, points: NDArray[np.int32], outputs: list[NDArray[Any]]) -> None:
        """The next part, `points (T,)`, and its row of the outputs `asks`."""

    @abstractmethod
    def result(self, text: str) -> R: ...


class _Tags(Piecewise[Tagged]):
    asks = ("label_ids", "probabilities")
    keeps_last = False

    def __init__(self, manifest: Manifest, labels: Labels, before: State) -> None:
        super().__init__(manifest, labels, before)
        self._ids = [np.zeros(0, dtype=np.int32)]
        self._parts = [np.zeros((0, manifest.classes), dtype=np.float32)]

    def add(self, points: NDArray[np.int32], outputs: list[NDArray[Any]]) -> None:
        ids, probabilities = outputs
        self._ids.append(ids)
        self._parts.append(probabilities)

    def result(self, text: str) -> Tagged:
        return Tagged(text, np.concatenate(self._ids), np.concatenate(self._parts), self.labels)


class _Class(Piecewise[Classified]):
    asks = ("probabilities",)

    def add(self, points: NDArray[np.int32], outputs: list[NDArray[Any]]) -> None:
        self.last = outputs[0].copy()

    def result(self, text: str) -> Classified:
        if not len(self.last):
            return Classified(text, None, None, {})
        return classified(text, int(self.last.argmax()), self.last, self.labels)


class _Score(Piecewise[Scored]):
    asks = ("logits",)

    def __init__(self, manifest: Manifest, labels: Labels, before: State) -> None:
        super().__init__(manifest, labels, before)
        self._nats, self._characters = 0.0, 0

    def add(self, points: NDArray[np.int32], outputs: list[NDArray[Any]]) -> None:
        ids = self.manifest.alphabet.ids(points)
        (logits,) = outputs
        before = np.concatenate([self.last[None], logits[:-1]]) if len(self.last) else logits[:-1]
        self._nats += float(nats(before, ids[len(ids) - len(before) :]).sum())
        self._characters += len(before)
        self.last = logits[-1].copy()

    def result(self, text: str) -> Scored:
        if not len(self.last):
            return Scored(text, None, None, None)
        best = int(self.last.argmax())
        p = float(np.exp(-nats(self.last[None], np.array([best]))[0]))
        mean = self._nats / self._characters if self._characters else None
        return Scored(text, self.manifest.alphabet.character(best), p, mean)


def nats(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """−ln p of `ids (…)` by `logits (…, V)`, in float64."""
    exact = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    highest = exact.max(axis=1)
    total = np.log(np.exp(exact - highest[:, None]).sum(axis=1)) + highest
    found: NDArray[np.float64] = total - exact[np.arange(len(exact)), ids.ravel()]
    return found.reshape(ids.shape)


PIECEWISE: dict[Task, type[Piecewise[Any]]] = {"tag": _Tags, "classify": _Class, "lm": _Score}

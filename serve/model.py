"""A model that is loaded and answers: texts in, results out, by ONNX Runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import HELLO, ONNX, Bundle, Layout, open_named
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.answers import ANSWERS, Answers, classified
from ohlol.serve.opening import checked_session, read_manifest
from ohlol.serve.results import Classified, Labels, Scored, Tagged
from ohlol.serve.rows import Rows
from ohlol.serve.runner import LONG, Runner

R = TypeVar("R", Tagged, Classified, Scored)

# Texts that are looked at together, so that those of like length share a batch: up to so many, or so many characters.
WINDOW, WINDOW_CHARACTERS = 16_384, 1 << 20
LONGEST_WHOLE = 65_536  # characters of a text that can only be read whole


class Model(ABC, Generic[R]):
    """Answers texts: a `Tagger`, a `Classifier` or a `LanguageModel`, by its task. `manifest` says what it is.

    A call may come from several threads at once. Texts of more than 8,192 characters are read in pieces (docs/predict.md);
    those of more than `max_length`, where that is not None, are refused.
    """

    def __init__(
        self, manifest: Manifest, files: dict[str, bytes], where: str, *, threads: int = 1, workers: int = 0
    ) -> None:
        """`files` are those of a bundle, by name: `model.onnx`, and of the others those that are there."""
        self.manifest = manifest
        self.labels = Labels(manifest.labels, manifest.label_scheme)
        self._session = checked_session(files[Layout.onnx], "model", manifest, where, threads)
        others = {
            name: cache(partial(checked_session, files[name], kind, manifest, f"{where} ({name})", threads))
            for name, kind in ((Layout.batch, ONNX[Layout.batch]), (Layout.stream, ONNX[Layout.stream]))
            if name in files
        }
        self._runner = Runner(
            manifest, self._session, others.get(Layout.batch), others.get(Layout.stream), workers
        )
        whole = manifest.task == "classify" and Layout.stream not in files
        self.max_length: int | None = LONGEST_WHOLE if whole else None

    @overload
    def __call__(self, texts: str) -> R: ...
    @overload
    def __call__(self, texts: list[str] | tuple[str, ...]) -> list[R]: ...
    @overload
    def __call__(self, texts: Iterator[str]) -> Iterator[R]: ...
    def __call__(self, texts: str | Iterable[str]) -> R | list[R] | Iterator[R]:
        """One text gives one result, a list or tuple a list, any other iterable an iterator that reads ahead
        by at most 32,768 texts. Results come in the order of the texts.

        Raises `InputError` where a text is not a `str`, or longer than `max_length`.
        """
        if isinstance(texts, str):
            text = self.manifest.alphabet.normalise(texts)
            alone = len(text) <= LONG and (self.max_length is None or len(text) <= self.max_length)
            return self._one(text) if alone else next(self._results([text]))
        if isinstance(texts, list | tuple):
            return list(self._results(texts))
        if not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray):
            raise InputError(f"expected a str or several of them, found {type(texts).__name__}")
        return self._results(texts)

    @abstractmethod
    def _one(self, text: str) -> R:
        """The result for one normalised text that is not long."""

    def outputs(self, codepoints: NDArray[np.int32], lengths: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """The contract's outputs, padding included, for `codepoints (B, T) int32` and `lengths (B,) int32`.

        Raises `InputError` on arrays outside the contract: with no rows the runtime would end the process.
        """
        B, T = codepoints.shape if codepoints.ndim == 2 else (0, 0)
        right = codepoints.dtype == lengths.dtype == np.int32 and lengths.shape == (B,) and B > 0 < T
        if not right or lengths.min() < 1 or lengths.max() > T:
            raise InputError(
                f"expected codepoints (B, T) int32 and lengths (B,) int32 from 1 to T, with B and T at least 1; found "
                f"{codepoints.shape} {codepoints.dtype} and {lengths.shape} {lengths.dtype}"
            )
        names = [tensor.name for tensor in contract.outputs(self.manifest.task)]
        found = self._session.run(names, {"codepoints": codepoints, "lengths": lengths})
        return dict(zip(names, found, strict=True))

    def answers(self, windows: Iterable[Rows], *, probabilities: bool = False) -> Iterator[Answers[R]]:
        """The answers to each of `windows`, in order; while one is given out, the next one is at work.

        Raises `InputError` where a text is longer than `max_length`.
        """
        begun: deque[tuple[Answers[R], list[Any]]] = deque()
        try:
            for rows in windows:
                self._check_lengths(rows)
                answers = ANSWERS[self.manifest.task](rows, self.labels, self.manifest, probabilities)
                begun.append((answers, self._runner.begin(rows, answers)))
                if len(begun) > 1:
                    yield _ended(*begun[0])
                    begun.popleft()
            while begun:
                yield _ended(*begun[0])
                begun.popleft()
        finally:  # whoever stops early, by Ctrl-C too, does not wait for batches that nobody will read
            for _, work in begun:
                for part in work:
                    part.cancel()

    def _results(self, texts: Iterable[str]) -> Iterator[R]:
        windows = (Rows.of(window, self.manifest.alphabet) for window in windows_of(texts))
        for answers in self.answers(windows, probabilities=True):
            yield from answers.results()

    def _check_lengths(self, rows: Rows) -> None:
        if (
            self.max_length is not None
            and len(rows)
            and (longest := int(rows.lengths.max())) > self.max_length
        ):
            raise InputError(
                f"a text of {longest:,} characters, expected at most {self.max_length:,}; cut it into shorter ones"
            )

    def _run(self, text: str, names: list[str]) -> list[NDArray[Any]]:
        points = codepoints(text)
        lengths = np.array([len(points)], dtype=np.int32)
        outputs: list[NDArray[Any]] = self._session.run(
            names, {"codepoints": points[None], "lengths": lengths}
        )
        return outputs


class Tagger(Model[Tagged]):
    """A label for every character."""

    def _one(self, text: str) -> Tagged:
        if not text:
            none = np.zeros((0, len(self.manifest.labels)), dtype=np.float32)
            return Tagged("", np.zeros(0, dtype=np.int32), none, self.labels)
        label_ids, probabilities = self._run(text, ["label_ids", "probabilities"])
        return Tagged(text, label_ids[0], probabilities[0], self.labels)


class Classifier(Model[Classified]):
    """A label for the text."""

    def _one(self, text: str) -> Classified:
        if not text:
            return Classified("", None, None, {})
        label_ids, probabilities = self._run(text, ["label_ids", "probabilities"])
        return classified(text, int(label_ids[0]), probabilities[0], self.labels)


class LanguageModel(Model[Scored]):
    """How likely the text is, and what comes next."""

    def _one(self, text: str) -> Scored:
        return next(self._results([text]))


TASKS: dict[Task, type[Model[Any]]] = {"tag": Tagger, "classify": Classifier, "lm": LanguageModel}


def load(path: str | Path, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """See `ohlol.load`."""
    if isinstance(path, Path) or path != HELLO:
        path = Path(path)
        if path.suffix == ".onnx" and path.is_file():
            onnx = path.read_bytes()
            manifest, _ = read_manifest(onnx, str(path))
            return of_file(manifest, onnx, str(path), threads=threads, workers=workers)
    return of_bundle(open_named(path), threads=threads, workers=workers)


def of_bundle(bundle: Bundle, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """The model of a bundle that is open."""
    return TASKS[bundle.manifest.task](
        bundle.manifest, bundle.contents, str(bundle.path / Layout.onnx), threads=threads, workers=workers
    )


def of_file(manifest: Manifest, onnx: bytes, where: str, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """The model of the bytes of a file that takes whole texts."""
    return TASKS[manifest.task](manifest, {Layout.onnx: onnx}, where, threads=threads, workers=workers)


def windows_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts to look at together, at most `WINDOW` and about `WINDOW_CHARACTERS`."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) == WINDOW or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _ended(answers: Answers[R], work: list[Any]) -> Answers[R]:
    for part in work:
        part.result()
    return answers

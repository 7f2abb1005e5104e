"""A model that is loaded and answers: texts in, results out, by ONNX Runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, overload

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_named, read
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.onnx_file import metadata
from ohlol.serve.answers import ANSWERS, Answers, R, classified
from ohlol.serve.opening import checked_session, digest_of
from ohlol.serve.results import Classified, Labels, Scored, Tagged
from ohlol.serve.rows import Rows
from ohlol.serve.runner import Runner
from ohlol.serve.runtimes import cpus, run

if TYPE_CHECKING:
    from concurrent.futures import Future

    from onnxruntime import InferenceSession

    from ohlol.serve.stream import Stream, StreamFile


# Texts that are looked at together, so that those of like length share a batch: up to so many, or so many characters.
WINDOW, WINDOW_CHARACTERS = 16_384, 1 << 20
WINDOW_NUMBERS = 1 << 24  # probabilities of a window, at most
LONGEST_WHOLE = 65_536  # characters of a text that can only be read whole


class Model(ABC, Generic[R]):
    """Answers texts: a `Tagger`, a `Classifier` or a `LanguageModel`, by its task. `manifest` says what it is.

    A call may come from several threads at once. Texts of more than 8,192 characters are read in pieces (docs/predict.md);
    those of more than `max_length`, where that is not None, are refused.
    """

    def __init__(
        self,
        manifest: Manifest,
        files: Mapping[str, bytes],
        where: str,
        *,
        threads: int = 1,
        workers: int = 0,
    ) -> None:
        """See `of_files`."""
        self.manifest = manifest
        self.labels = Labels(manifest.labels, manifest.label_scheme)
        self._session = checked_session(files[Layout.onnx], "model", manifest, where, threads)
        self._where, self._threads = where, threads
        self.digest = digest_of(manifest, files)  # tells this model from any other
        # Of all the bundle's bytes, only these are kept: their sessions are opened when they are needed.
        self._kept = {name: files[name] for name in (Layout.batch, Layout.stream) if name in files}
        self.runner = Runner(
            manifest,
            self._session,
            (lambda: self._batch_session) if Layout.batch in files else None,
            (lambda: self._stream_file.session) if Layout.stream in files else None,
            workers if workers != 0 else max(1, cpus() // threads),
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
            alone = len(text) <= self.runner.long and (
                self.max_length is None or len(text) <= self.max_length
            )
            return self._one(text) if alone else next(self.results([text]))
        if isinstance(texts, list | tuple):
            return list(self.results(texts))
        if not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray):
            raise InputError(f"expected a str or several of them, found {type(texts).__name__}")
        return self.results(texts)

    def stream(self) -> Stream[R]:
        """A new text that comes in pieces. Raises `InputError` where the bundle has no stream.onnx."""
        return self._stream_file.stream()

    def feed_all(self, pieces: Iterable[tuple[Stream[R], str]], *, end: bool = False) -> list[R]:
        """The next piece of many streams at once, in batches; see `ohlol.serve.stream.StreamFile.feed_all`."""
        return self._stream_file.feed_all(pieces, end=end)

    @cached_property
    def _batch_session(self) -> InferenceSession:
        where = f"{self._where} ({Layout.batch})"
        return checked_session(self._kept[Layout.batch], "model", self.manifest, where, self._threads)

    @cached_property
    def _stream_file(self) -> StreamFile[R]:
        from ohlol.serve.stream import StreamFile, missing  # late: one text needs none

        if Layout.stream not in self._kept:
            raise missing(self.manifest, self._where)
        where = f"{self._where} ({Layout.stream})"
        return StreamFile(self.manifest, self._kept[Layout.stream], where, threads=self._threads)

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
        found = run(self._session, names, {"codepoints": codepoints, "lengths": lengths})
        return dict(zip(names, found, strict=True))

    def answers(self, windows: Iterable[Rows], *, probabilities: bool = False) -> Iterator[Answers[R]]:
        """The answers to each of `windows`, in order; while one is given out, the next one is at work.

        Raises `InputError` where a text is longer than `max_length`.
        """
        begun: deque[tuple[Answers[R], list[Future[Any]]]] = deque()
        try:
            for rows in windows:
                self._check_lengths(rows)
                answers = ANSWERS[self.manifest.task](rows, self.labels, self.manifest, probabilities)
                begun.append((answers, self.runner.begin(rows, answers)))
                if len(begun) > 1:
                    yield _first_of(begun)
            while begun:
                yield _first_of(begun)
        finally:
            # After Ctrl-C or an error nobody waits for what has not begun.
            for _, work in begun:
                for part in work:
                    part.cancel()

    def results(self, texts: Iterable[str], *, probabilities: bool = True) -> Iterator[R]:
        """The result of each text, in order. Without `probabilities` those of the results are empty.

        Raises `InputError` as a call does.
        """
        numbers = self.manifest.classes if probabilities and self.manifest.task == "tag" else 1
        windows = windows_of(texts, min(WINDOW_CHARACTERS, max(1, WINDOW_NUMBERS // numbers)))
        rows = (Rows.of(window, self.manifest.alphabet) for window in windows)
        for answers in self.answers(rows, probabilities=probabilities):
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
        return run(self._session, names, {"codepoints": points[None], "lengths": lengths})


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
        return next(self.results([text]))

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
    ) -> Iterator[str]:
        """Characters that may follow `prompt`, as they are made; see `ohlol.serve.generate`."""
        from ohlol.serve.generate import Sampling, generate

        sampling = Sampling(temperature, top_k, top_p)
        return generate(self._stream_file, prompt, length=length, sampling=sampling, seed=seed, stop=stop)


TASKS: dict[Task, type[Model[Any]]] = {"tag": Tagger, "classify": Classifier, "lm": LanguageModel}


def load(path: str | Path, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """See `ohlol.load`."""
    if isinstance(path, Path) or path != HELLO:
        path = Path(path)
        if is_onnx_file(path):
            onnx = read(path)
            manifest = Manifest.from_metadata(metadata(onnx, str(path)), str(path))
            return of_file(manifest, onnx, str(path), threads=threads, workers=workers)
    return of_bundle(open_named(path), threads=threads, workers=workers)


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is a single `.onnx` file; what cannot even be looked at is none."""
    try:
        return path.suffix == ".onnx" and path.is_file()
    except OSError:
        return False


def of_bundle(bundle: Bundle, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """The model of a bundle that is open."""
    where = str(bundle.path / Layout.onnx)
    return of_files(bundle.manifest, bundle.contents, where, threads=threads, workers=workers)


def of_file(manifest: Manifest, onnx: bytes, where: str, *, threads: int = 1, workers: int = 0) -> Model[Any]:
    """The model of the bytes of a file that takes whole texts."""
    return of_files(manifest, {Layout.onnx: onnx}, where, threads=threads, workers=workers)


def of_files(
    manifest: Manifest, files: Mapping[str, bytes], where: str, *, threads: int = 1, workers: int = 0
) -> Model[Any]:
    """The model of a bundle's files, by name: `model.onnx`, and of the others those that are there."""
    return TASKS[manifest.task](manifest, files, where, threads=threads, workers=workers)


def windows_of(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Texts to look at together, at most `WINDOW` and about so many characters."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) == WINDOW or characters >= most:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _first_of(begun: deque[tuple[Answers[R], list[Future[Any]]]]) -> Answers[R]:
    """The first answers, once they are whole; they stay in `begun` until then."""
    answers, work = begun[0]
    for part in work:
        part.result()
    begun.popleft()
    return answers

"""Text in pieces: streams that own their state, on stream.onnx."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_named, read
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.serve import state as states
from ohlol.serve.answers import R
from ohlol.serve.cut import ready
from ohlol.serve.opening import checked_session, read_manifest
from ohlol.serve.piecewise import PIECEWISE, Piecewise
from ohlol.serve.results import Labels
from ohlol.serve.runner import CHARACTERS
from ohlol.serve.runtimes import run
from ohlol.serve.state import State

NUMBERS = 2**20  # in one output of a call: 4 MB
ROWS = 1_024  # in one call


class Stream(Generic[R]):
    """One text that comes in pieces. It owns its state: nobody has to carry it, nobody else can have it.

    Made by `model.stream()`. One thread at a time: a call while another one runs raises `InputError`. Where a
    call raises, the stream is as it was before.
    """

    def __init__(self, file: StreamFile[R]) -> None:
        self._file: StreamFile[R] = file
        self._busy = Lock()
        self._ended = False
        self._state = file.beginning()

    @property
    def characters(self) -> int:
        """How many characters were answered so far."""
        return self._state.characters

    def feed(self, text: str) -> R:
        """The answer for the next piece, of any size, an empty one too; `result.text` is what it is about.

        Where the model normalises, the last character is held back with its marks until a later piece or `finish`
        shows that it is complete; a space or a line end is complete at once.

        `tag` labels the piece's characters, `classify` the text so far (with the piece as `text`). `lm` scores
        the piece's characters, each given all before it, those of earlier pieces too; only the very first of the
        text has nothing before it, so it does not count. `next` is what follows the text so far.

        Raises `InputError` where `text` is not a `str`, the stream has ended or is in use.
        """
        return self._file.feed_all([(self, text)])[0]

    def finish(self) -> R:
        """End the text: the answer for what was held back, often nothing. The stream cannot be used after it."""
        return self._file.feed_all([(self, "")], end=True)[0]

    def state_dict(self) -> bytes:
        """Where the text stands, for `load_state_dict` of a stream of the same model, here or elsewhere.

        It holds up to a few characters of the text as they are.
        """
        with self._alone():
            return states.to_bytes(self._state, self._file.sha256)

    def load_state_dict(self, data: bytes) -> None:
        """Go on where the stream that gave `data` stood. Raises `InputError` on damaged or foreign bytes."""
        with self._alone():
            self._state = self._file.read_state(data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise InputError(
                "the stream is in use, by another thread or twice in one call; a stream is one text: open one for each "
                "with model.stream()"
            )
        try:
            if self._ended:
                raise InputError("the stream has ended; begin another text with model.stream()")
            yield
        finally:
            self._busy.release()


class StreamFile(Generic[R]):
    """An open `stream.onnx`. It holds no state, so it may be used by several threads at once."""

    def __init__(self, manifest: Manifest, onnx: bytes, where: str, *, threads: int = 1) -> None:
        self.manifest = manifest
        self.sha256 = hashlib.sha256(onnx).digest()
        self.session = checked_session(onnx, "stream", manifest, where, threads)
        self._labels = Labels(manifest.labels, manifest.label_scheme)
        self._answer: type[Piecewise[R]] = PIECEWISE[manifest.task]
        S, _, H = manifest.shape(contract.inputs("stream")[1])
        self._shape = int(S), int(H)
        self.most = min(CHARACTERS, max(1, NUMBERS // manifest.classes))  # characters in one call

    def stream(self) -> Stream[R]:
        """A new stream, at the beginning of a text."""
        return Stream(self)

    def beginning(self) -> State:
        return State(np.zeros(self._shape, dtype=np.float32), np.zeros(0, dtype=np.float32))

    def read_state(self, data: bytes) -> State:
        """See `Stream.load_state_dict`."""
        last = self.manifest.classes if self._answer.keeps_last else 0
        state = states.from_bytes(data, self.sha256, self._shape, last)
        form = self.manifest.alphabet.normalisation
        if ready(state.held, form)[0]:
            raise InputError(f"the state of a stream holds back what is complete; {states.AGAIN}")
        return state

    def run(
        self, outputs: Sequence[str], points: NDArray[np.int32], hidden: NDArray[np.float32]
    ) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
        """One call: `outputs` and the next state for `points (B, T) int32` and `hidden (S, B, H) float32`.

        B and T must be at least 1.
        """
        feed = {"codepoints": points, "state": np.ascontiguousarray(hidden)}
        *found, hidden = run(self.session, [*outputs, "next_state"], feed)
        return found, hidden

    def feed_all(self, pieces: Iterable[tuple[Stream[R], str]], *, end: bool = False) -> list[R]:
        """`feed` for many streams at once, in batches; `end` ends them all. Answers come in the order of the pieces.

        Raises `InputError` where a stream is there twice, is in use, has ended or is of another model; then all
        streams are as they were before.
        """
        pieces = list(pieces)
        for stream, text in pieces:
            if not isinstance(stream, Stream):
                raise InputError(f"expected a stream, found {type(stream).__name__}: {stream!r:.60}")
            if not isinstance(text, str):
                raise InputError(f"expected a str, found {type(text).__name__}: {text!r:.60}")
            if stream._file.sha256 != self.sha256:
                raise InputError("the stream is of another model; feed it by itself, or by its own model")
        form = self.manifest.alphabet.normalisation
        with ExitStack() as alone:
            for stream, _ in pieces:
                alone.enter_context(stream._alone())
            cut = [ready(stream._state.held + text, form) for stream, text in pieces]
            if end:
                cut = [(text + self.manifest.alphabet.normalise(held), "") for text, held in cut]
            rows = [codepoints(text) for text, _ in cut]
            answers = [self._answer(self.manifest, self._labels, stream._state) for stream, _ in pieces]
            hidden = self._read(rows, [stream._state.hidden for stream, _ in pieces], answers)
            results = [answer.result(text) for answer, (text, _) in zip(answers, cut, strict=True)]
            for (stream, _), (_, held), row, after, answer in zip(
                pieces, cut, rows, hidden, answers, strict=True
            ):
                stream._state = State(after, answer.last, held, stream._state.characters + len(row))
                stream._ended = end
        return results

    def _read(
        self,
        rows: list[NDArray[np.int32]],
        hidden: list[NDArray[np.float32]],
        answers: Sequence[Piecewise[R]],
    ) -> list[NDArray[np.float32]]:
        """Tell `answers` the outputs of rows of any length, piece by piece; the states after them.

        The longest come first, and a row that has ended leaves the batch: a row of a call cannot be padded, since it
        would read its padding.
        """
        after = list(hidden)
        longest = sorted((k for k, row in enumerate(rows) if len(row)), key=lambda k: -len(rows[k]))
        for first in range(0, len(longest), ROWS):
            batch = longest[first : first + ROWS]
            now = np.stack([hidden[k] for k in batch], axis=1)  # (S, B, H)
            start = 0
            while batch:
                stop = min(len(rows[batch[-1]]), start + max(1, self.most // len(batch)))
                points = np.stack([rows[k][start:stop] for k in batch])
                found, now = self.run(self._answer.asks, points, now)
                for place, k in enumerate(batch):
                    answers[k].add(points[place], [output[place] for output in found])
                start = stop
                while batch and len(rows[batch[-1]]) == start:
                    after[batch.pop()] = now[:, -1].copy()
                    now = now[:, :-1]
        return after


def load(path: str | Path, *, threads: int = 1) -> StreamFile[Any]:
    """The stream file of a bundle, of `"hello"`, or a single `stream.onnx`. Raises `BundleError`, `InputError`."""
    path = path if path == HELLO else Path(path)
    if isinstance(path, Path) and path.suffix == ".onnx" and path.is_file():
        onnx = read(path)
        manifest, kind = read_manifest(onnx, str(path))
        if kind != "stream":
            raise InputError(f"{path}: takes whole texts; streams need {Layout.stream}: give the bundle")
        return StreamFile(manifest, onnx, str(path), threads=threads)
    return of_bundle(open_named(path), threads=threads)


def of_bundle(bundle: Bundle, *, threads: int = 1) -> StreamFile[Any]:
    """The stream file of a bundle that is open. Raises `InputError` where it has none."""
    if Layout.stream in bundle.contents:
        where = str(bundle.path / Layout.stream)
        return StreamFile(bundle.manifest, bundle.contents[Layout.stream], where, threads=threads)
    raise missing(bundle.manifest, str(bundle.path))


def missing(manifest: Manifest, where: str) -> InputError:
    """Why what `where` names has no stream file, and what to do."""
    if manifest.network.get("bidirectional"):
        return InputError(
            f"{where}: the network reads both ways, so its answers need the end of the text and it has no stream; "
            "give it whole texts, or train one with model.bidirectional = false"
        )
    return InputError(
        f"{where}: holds no {Layout.stream}; export it again with --formats onnx,stream, and load the whole bundle"
    )

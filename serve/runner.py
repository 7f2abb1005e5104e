"""Rows through ONNX Runtime: like lengths together, several batches at once, long rows in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ohlol.artifacts import contract
from ohlol.artifacts.errors import InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.answers import Answers
from ohlol.serve.rows import Pieces, Rows, join
from ohlol.serve.runtimes import MOST_THREADS, run

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

CHARACTERS = 8_192  # in one batch, padding included (or one piece); of narrow networks twice as many
NUMBERS = 1 << 22  # logits of a batch, at most: a language model of many characters has smaller batches
LONG = 8_192  # characters; a row of more is read in pieces
STRETCH = 4_096  # characters of a piece
CONTEXT = 256  # characters read before a piece, and after it where the network reads both ways

Open = Callable[[], InferenceSession]


class Runner:
    """Sessions of one model, and the threads that run them; each session computes on one thread by default."""

    def __init__(
        self,
        manifest: Manifest,
        session: InferenceSession,
        open_batch: Open | None,
        open_stream: Open | None,
        workers: int,
    ) -> None:
        self._manifest = manifest
        self._session = session
        self._open_batch = open_batch
        self._open_stream = open_stream
        if not isinstance(workers, int) or not 1 <= workers <= MOST_THREADS:
            raise InputError(
                f"workers is {workers!r}, expected a whole number from 1 to {MOST_THREADS}, or 0"
            )
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        # From so many rows on, the file for many rows is the faster one.
        self._many_rows = contract.many_rows(manifest.network) if open_batch else 0
        # Narrow networks are faster on larger batches, wide ones where a batch stays in the cache.
        most = CHARACTERS * 2 if manifest.network["hidden_size"] <= 128 else CHARACTERS
        self._characters = max(1, min(most, NUMBERS // manifest.classes))
        self.stretch = min(STRETCH, max(CONTEXT, self._characters))  # characters of a piece of a long row
        self.long = LONG * self.stretch // STRETCH  # characters; a row of more is read in pieces

    @property
    def carries_state(self) -> bool:
        """Whether long rows are read in chunks with the state carried, so that no answer changes."""
        return self._open_stream is not None

    def _submit(self, *work: Any) -> Future[Any]:
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # late: one text needs none

                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="ohlol")
        return self._pool.submit(*work)

    def begin(self, rows: Rows, answers: Answers[Any]) -> list[Future[None]]:
        """Begin to fill `answers`; it is whole once all of these are done, whose errors are theirs to raise.

        Nothing is begun in other threads where there is one piece of work only, or one worker.
        """
        long = rows.lengths > self.long
        whole = Pieces.whole(rows, np.flatnonzero((rows.lengths > 0) & ~long))
        rest = Pieces.whole(rows, np.flatnonzero(long))
        chunked = [rest[np.array([k])] for k in range(len(rest))] if self._open_stream else []
        if not chunked and self._manifest.task == "classify":
            whole = join([whole, rest])  # its answer needs the whole text
        elif not chunked:
            after = CONTEXT if self._manifest.network["bidirectional"] else 0
            whole = join([whole, rest.windows(self.stretch, CONTEXT, after)])
        work: list[tuple[Callable[[Pieces, Answers[Any]], object], Pieces]]
        work = [(self.in_chunks, piece) for piece in chunked]
        work += [(self._batch, batch) for batch in whole.batches(self._characters)]
        if self._workers > 1 and len(work) > 1:
            self._open(chunked, work)
            return [self._submit(do, pieces, answers) for do, pieces in work]
        for do, pieces in work:
            do(pieces, answers)
        return []

    def _open(self, chunked: Sequence[Pieces], work: Sequence[tuple[object, Pieces]]) -> None:
        """Open the other files that the work needs, before several threads would do so at once."""
        if chunked and self._open_stream:
            self._open_stream()
        if self._open_batch and any(0 < self._many_rows <= len(pieces) for _, pieces in work):
            self._open_batch()

    def _batch(self, pieces: Pieces, answers: Answers[Any]) -> None:
        # What stands after a row's length is ignored, so that it may be any characters.
        feed = {"codepoints": pieces.of(answers.rows), "lengths": pieces.length.astype(np.int32)}
        many = self._open_batch if 0 < self._many_rows <= len(pieces) else None
        session = many() if many else self._session
        answers.put(pieces, run(session, answers.asks, feed))

    def in_chunks(
        self, pieces: Pieces, answers: Answers[Any], state: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """One long row, or a stretch of one, chunk by chunk, with the state carried from one to the next.

        `state` is that before the piece, None: of nothing; what is returned is the state after it.
        """
        assert self._open_stream
        session = self._open_stream()
        S, _, H = self._manifest.shape(contract.inputs("stream")[1])
        if state is None:
            state = np.zeros((int(S), 1, int(H)), dtype=np.float32)
        chunks = pieces.windows(self.stretch, 0, 0)
        names = [*answers.asks, "next_state"]
        for k in range(len(chunks)):
            chunk = chunks[np.array([k])]
            start = int(chunk.start[0])
            points = answers.rows.points[None, start : start + int(chunk.length[0])]
            *outputs, state = run(session, names, {"codepoints": points, "state": state})
            answers.put(chunk, outputs)
        return state

"""Requests that come together are answered together.

A request that finds the server idle runs at once. While others run, it waits for company: until a worker is
free, `batch_wait` has passed, or there is enough for a batch, whichever the workers allow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ohlol.serve.http.limits import Limits, Refused
from ohlol.serve.http.metrics import Metrics
from ohlol.serve.http.models import Served
from ohlol.serve.results import Result
from ohlol.serve.runner import CHARACTERS

T = TypeVar("T")


@dataclass(eq=False)
class _Job(Generic[T]):
    """What `call` returns for `texts`. Jobs of one `group` may be one call; a job of none runs alone."""

    group: Served | None
    call: Callable[[list[str]], T]
    texts: list[str]
    rows: int
    characters: int
    answer: asyncio.Future[T]


class Batcher:
    """Runs models in threads, at most `workers` at once, and keeps what waits below `queue` requests."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.running = 0
        self._waiting: deque[_Job[Any]] = deque()
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="model")
        self._timer: asyncio.TimerHandle | None = None
        self._due = False

    async def answer(self, served: Served, texts: list[str]) -> list[Result]:
        """The results, in the order of the texts. Raises `Refused`: 503 where too many wait, 504 after `timeout`."""
        if not any(texts):
            return list(served.model(texts))  # empty texts are answered without the model
        characters = sum(map(len, texts))
        call = partial(_results, served)
        return await self._enqueue(_Job(served, call, texts, len(texts), characters, self._future()))

    async def run(self, call: Callable[[], T], rows: int, characters: int) -> T:
        """What `call` returns, in a worker. Raises `Refused` as `answer` does, and what `call` raises."""
        return await self._enqueue(_Job(None, lambda _: call(), [], rows, characters, self._future()))

    def waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _future() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def _enqueue(self, job: _Job[T]) -> T:
        if len(self._waiting) >= self.limits.queue:
            self._waiting = deque(j for j in self._waiting if not j.answer.done())  # those nobody waits for
        if len(self._waiting) >= self.limits.queue:
            message = f"{self.limits.queue:,} requests wait already, the limit (--queue); try again later"
            raise Refused(503, message, Retry_After="1")
        self._waiting.append(job)
        self._schedule()
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await job.answer
        except TimeoutError:
            message = f"no answer within {self.limits.timeout:g} s, the limit (--timeout); send less, or try again later"
            raise Refused(504, message, Retry_After="1") from None

    def _schedule(self) -> None:
        """See to it that what waits will be run."""
        if self.running >= self.limits.workers or not self._waiting:
            return  # a worker that ends comes back here
        loop = asyncio.get_running_loop()
        alone = self.running == 0 or self.limits.batch_wait == 0
        if alone or sum(job.characters for job in self._waiting) >= CHARACTERS:
            if not self._due:
                self._due = True
                loop.call_soon(self._start)  # soon, not now: what the loop has read already comes along
        elif self._timer is None:
            self._timer = loop.call_later(self.limits.batch_wait, self._start)

    def _start(self) -> None:
        """Give batches to the workers that are free."""
        self._due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.running < self.limits.workers and (batch := self._take()):
            self.running += 1
            done = asyncio.get_running_loop().run_in_executor(self._pool, _answers, batch)
            done.add_done_callback(partial(self._finish, batch))

    def _take(self) -> list[_Job[Any]]:
        """The job that waits longest, with others of its model as long as they fit into a batch; order is kept."""
        batch: list[_Job[Any]] = []
        rest: deque[_Job[Any]] = deque()
        characters = 0
        for job in self._waiting:
            if job.answer.done():
                continue  # its client waits no longer
            company = batch and job.group is not None and job.group is batch[0].group
            if not batch or (company and characters + job.characters <= CHARACTERS):
                batch.append(job)
                characters += job.characters
            else:
                rest.append(job)
        self._waiting = rest
        return batch

    def _finish(self, batch: list[_Job[Any]], done: asyncio.Future[list[Any]]) -> None:
        """Hand a batch's answers to those who wait for them; the worker is free again."""
        self.running -= 1
        self.metrics.batch(sum(job.rows for job in batch), sum(job.characters for job in batch))
        for job, answer in zip(batch, done.result(), strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
        self._start()


def _results(served: Served, texts: list[str]) -> list[Result]:
    """One text takes a shorter way through a model than a list does."""
    return [served.model(texts[0])] if len(texts) == 1 else list(served.model(texts))


def _answers(batch: list[_Job[Any]]) -> list[Any]:
    """The answer of each job, or the exception that it raised: none of them fails for another one's sake."""
    if len(batch) > 1:
        try:
            results = iter(batch[0].call([text for job in batch for text in job.texts]))
            return [[next(results) for _ in job.texts] for job in batch]
        except Exception:
            pass  # whose fault it is shows below, where each runs alone
    return [_alone(job) for job in batch]


def _alone(job: _Job[Any]) -> Any:
    try:
        return job.call(job.texts)
    except Exception as error:
        return error

"""Requests answered together: none waits for nothing, none fails for another's sake, none is mixed up."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

pytest.importorskip("starlette", reason="the extra `http` is not installed")

import ohlol
from ohlol.serve.http.batcher import Batcher
from ohlol.serve.http.limits import Limits, Refused
from ohlol.serve.http.metrics import Metrics
from ohlol.serve.http.models import Served
from ohlol.serve.runner import CHARACTERS


class Slow:
    """A model that says which texts came together, and answers when `go` is set."""

    def __init__(self):
        self.model = ohlol.load("hello")
        self.manifest = self.model.manifest
        self.calls = []
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, texts):
        self.calls.append([texts] if isinstance(texts, str) else list(texts))
        self.begun.release()
        assert self.go.wait(60)
        if "bad" in texts:
            raise ValueError("bad")
        return self.model(texts)


@pytest.fixture
def slow():
    model = Slow()
    yield model
    model.go.set()


def run(scenario, limits):
    """Run `scenario(batcher)` in an event loop."""

    async def main():
        batcher = Batcher(limits, Metrics())
        try:
            return await asyncio.wait_for(scenario(batcher), 60)
        finally:
            batcher.close()

    return asyncio.run(main())


async def begun(model):
    await asyncio.to_thread(model.begun.acquire)


def test_what_comes_while_the_worker_is_busy_is_one_batch(slow):
    """The first request runs alone and at once; those that came meanwhile run together, each with its own answer."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.answer(served, ["hello"]))
        await begun(slow)
        rest = [asyncio.create_task(batcher.answer(served, ["h" * k, "e"])) for k in range(1, 9)]
        await asyncio.sleep(0)
        slow.go.set()
        return await first, await asyncio.gather(*rest)

    first, rest = run(scenario, Limits(workers=1))
    assert list(map(str, first)) == ["ohlol"]
    model = ohlol.load("hello")
    assert rest == [model(["h" * k, "e"]) for k in range(1, 9)]
    assert slow.calls == [["hello"], [text for k in range(1, 9) for text in ("h" * k, "e")]]


def test_an_idle_server_waits_for_nobody():
    """However long the window is, a request that finds no other runs at once."""
    served = Served("hello", "hello", ohlol.load("hello"))

    async def scenario(batcher):
        return [await batcher.answer(served, ["hello"]) for _ in range(3)]

    found = run(scenario, Limits(workers=2, batch_wait=1e6))
    assert [str(results[0]) for results in found] == ["ohlol"] * 3


def test_a_free_worker_waits_for_the_window_only(slow):
    """While one worker is busy, what comes within the window is one batch for the other one."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(served, ["hello"]))]
        await begun(slow)
        tasks += [asyncio.create_task(batcher.answer(served, [text])) for text in ("h", "e")]
        await begun(slow)  # the second call, though the first has not ended
        slow.go.set()
        return await asyncio.gather(*tasks)

    run(scenario, Limits(workers=2, batch_wait=0.005))
    assert slow.calls == [["hello"], ["h", "e"]]


def test_enough_for_a_batch_waits_for_nothing(slow):
    """With a batch's worth of characters there is nothing to wait for."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(served, ["hello"]))]
        await begun(slow)
        tasks += [asyncio.create_task(batcher.answer(served, ["h" * CHARACTERS]))]
        await begun(slow)
        slow.go.set()
        return await asyncio.gather(*tasks)

    run(scenario, Limits(workers=2, batch_wait=1e6))
    assert [len(call) for call in slow.calls] == [1, 1]


def test_one_bad_request_fails_alone(slow):
    """A request that the model raises at does not fail those that it came with."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.answer(served, ["hello"]))
        await begun(slow)
        rest = [asyncio.create_task(batcher.answer(served, [text])) for text in ("he", "bad", "ll")]
        await asyncio.sleep(0)
        slow.go.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    found = run(scenario, Limits(workers=1))
    assert [str(one if isinstance(one, Exception) else one[0]) for one in found] == [
        str(slow.model("he")),
        "bad",
        str(slow.model("ll")),
    ]


def test_models_and_loads_are_not_mixed(slow):
    """A batch is of one model; the same bundle loaded anew is another one."""
    old, new = Served("m", "hello", slow), Served("m", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(old, ["hello"]))]
        await begun(slow)
        tasks += [asyncio.create_task(batcher.answer(one, ["he"])) for one in (old, new, old, new)]
        await asyncio.sleep(0)
        slow.go.set()
        await asyncio.gather(*tasks)

    run(scenario, Limits(workers=1))
    assert slow.calls == [["hello"], ["he", "he"], ["he", "he"]]


def test_a_batch_has_an_end(slow):
    """As many characters as the model itself puts into a batch; a longer request runs alone."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(served, ["hello"]))]
        await begun(slow)
        sizes = (CHARACTERS // 2, CHARACTERS // 2, 1, 2 * CHARACTERS)
        tasks += [asyncio.create_task(batcher.answer(served, ["h" * size])) for size in sizes]
        await asyncio.sleep(0)
        slow.go.set()
        await asyncio.gather(*tasks)

    run(scenario, Limits(workers=1))
    assert [[len(text) for text in call] for call in slow.calls[1:]] == [[4096, 4096], [1], [16384]]


def test_a_full_queue(slow):
    """503 beyond the limit, at once; the others are answered. Who gave up makes room."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(served, ["hello"]))]
        await begun(slow)
        tasks += [asyncio.create_task(batcher.answer(served, ["h"])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="--queue") as raised:
            await batcher.answer(served, ["h"])
        assert (raised.value.status, raised.value.headers) == (503, {"Retry-After": "1"})
        tasks.pop().cancel()
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.answer(served, ["e"])))
        await asyncio.sleep(0)
        slow.go.set()
        return await asyncio.gather(*tasks)

    found = run(scenario, Limits(workers=1, queue=3))
    assert [str(results[0]) for results in found] == list(map(str, slow.model(["hello", "h", "h", "e"])))
    assert slow.calls == [["hello"], ["h", "h", "e"]]


def test_who_waits_too_long_is_told_and_not_run(slow):
    """504 after the timeout; what nobody waits for any longer is not put to the model."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.answer(served, ["hello"]))
        await begun(slow)
        with pytest.raises(Refused, match="--timeout") as raised:
            batcher.limits = replace(batcher.limits, timeout=0.01)
            await batcher.answer(served, ["late"])
        assert raised.value.status == 504
        slow.go.set()
        return await first

    assert str(run(scenario, Limits(workers=1))[0]) == "ohlol"
    assert slow.calls == [["hello"]]


def test_calls_run_beside_batches(slow):
    """What runs alone has its place in the queue too, and its exception is its own."""
    served = Served("hello", "hello", slow)

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer(served, ["hello"]))]
        await begun(slow)
        tasks += [asyncio.create_task(batcher.run(lambda: 6 * 7, 1, 1))]
        tasks += [asyncio.create_task(batcher.run(lambda: 1 / 0, 1, 1))]
        tasks += [asyncio.create_task(batcher.answer(served, ["h"]))]
        await asyncio.sleep(0)
        slow.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(scenario, Limits(workers=1))
    assert found[1] == 42
    assert isinstance(found[2], ZeroDivisionError)
    assert str(found[3][0]) == str(slow.model("h"))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("batch_wait", [0.0, 0.002])
def test_many_at_once(workers, batch_wait):
    """Hundreds of requests of several texts over several workers: each gets the answers to its own."""
    served = Served("hello", "hello", ohlol.load("hello"))
    requests = [["helo"[k % 4] * (k % 50), "hello"[: k % 6]] for k in range(400)]

    async def scenario(batcher):
        return await asyncio.gather(*(batcher.answer(served, texts) for texts in requests))

    found = run(scenario, Limits(workers=workers, batch_wait=batch_wait, queue=400))
    assert found == [served.model(texts) for texts in requests]


def test_empty_texts_never_wait(slow):
    """An empty text has no need of a worker: its answer comes while all of them are busy."""
    served = Served("hello", "hello", ohlol.load("hello"))

    async def scenario(batcher):
        busy = asyncio.create_task(batcher.answer(Served("hello", "hello", slow), ["hello"]))
        await begun(slow)
        empty = await batcher.answer(served, ["", ""])
        slow.go.set()
        await busy
        return empty

    assert list(map(str, run(scenario, Limits(workers=1)))) == ["", ""]

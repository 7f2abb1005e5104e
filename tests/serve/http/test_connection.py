"""How long a connection may take over what: the whole server but for its sockets, with a clock that the tests turn on."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("starlette", reason="the extra `http` is not installed")
pytest.importorskip("uvicorn", reason="the extra `http` is not installed")

from starlette.responses import Response
from starlette.routing import Route, Router
from uvicorn.server import ServerState

from ohlol.serve.http.app import App
from ohlol.serve.http.gate import Gate
from ohlol.serve.http.limits import Limits
from ohlol.serve.http.metrics import Metrics
from ohlol.serve.http.models import Models
from ohlol.serve.http.server import DRAIN, configured

BUFFER = 64 * 2**10  # bytes that a transport of asyncio takes before it says that there are too many
LIMITS = Limits(workers=1, read_timeout=10)
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n"


class Clock(asyncio.SelectorEventLoop):
    """An event loop in which time passes when it is told to."""

    now = 0.0

    def time(self):
        return self.now

    async def forward(self, seconds):
        """Let time pass, and then do all that is due."""
        self.now += seconds
        for _ in range(50):
            await asyncio.sleep(0)


class Line(asyncio.Transport):
    """A connection to an application; its client takes nothing until it is told to."""

    def __init__(self, app, limits=LIMITS):
        super().__init__()
        self.clock = asyncio.get_running_loop()
        config = configured(app, limits)
        self.sent = bytearray()
        self.untaken = 0
        self.paused = self.closing = False
        self.open = True
        config.load()
        self.protocol = config.http_protocol_class(config, ServerState(), {})
        self.protocol.connection_made(self)

    async def send(self, data):
        """From the client; what has to be done at once is done."""
        if data:  # none would be the end of all data to uvicorn
            self.protocol.data_received(data)
        await self.clock.forward(0)

    def take(self):
        """The client takes all that there is for it, and this is it."""
        self.untaken = 0
        taken = bytes(self.sent)
        self.sent.clear()
        if self.paused:
            self.paused = False
            self.protocol.resume_writing()
        if self.closing:
            self.abort()
        return taken

    # What the server sees of it.

    def write(self, data):
        self.sent += data
        self.untaken += len(data)
        if self.untaken > BUFFER and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def close(self):
        self.closing = True
        if not self.untaken:
            self.abort()

    def abort(self):
        if self.open:
            self.open, self.closing = False, True
            self.clock.call_soon(self.protocol.connection_lost, None)

    def is_closing(self):
        return self.closing

    def get_extra_info(self, name, default=None):
        return default

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Answer:
    """An application that answers with so many bytes, for `/` at once, for other paths when `go` is set."""

    def __init__(self, size):
        self.size = size
        self.go = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] != "/":
            await self.go.wait()
        headers = [(b"content-length", str(self.size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * self.size})


@pytest.fixture
def clocked():
    """Run `scenario(clock)` in a loop with a clock of its own."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        yield lambda scenario: runner.run(scenario(runner.get_loop()))


@pytest.fixture
def gate():
    app = App(Models({"hello": "hello"}), LIMITS, None, None, lambda line: pytest.fail(line))
    yield app.gate
    app.batcher.close()


def status(answer):
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("first", [b"", GET])
@pytest.mark.parametrize("begun", [b"", GET[:10]])
def test_a_header_has_its_time(clocked, first, begun):
    """Who sends no whole header is hung up on when the time is over, not before; after an answer too."""

    async def scenario(clock):
        line = Line(Answer(5))
        await line.send(first)
        assert bool(first) == line.take().endswith(b"xxxxx")
        await line.send(begun)
        await clock.forward(9.9)
        assert line.open
        await clock.forward(0.1)
        assert not line.open

    clocked(scenario)


def test_the_model_has_its_own_time(clocked):
    """While the application works it is not the client's turn, however long that takes."""

    async def scenario(clock):
        app = Answer(5)
        line = Line(app)
        await line.send(GET.replace(b"/ ", b"/slow "))
        await clock.forward(1_000)
        assert line.open
        app.go.set()
        await clock.forward(0)
        assert status(line.take()) == 200

    clocked(scenario)


def test_an_answer_has_its_time(clocked):
    """Who takes none of an answer is hung up on when the time from its beginning is over."""

    async def scenario(clock):
        line = Line(Answer(2 * BUFFER))
        await line.send(GET)
        await clock.forward(9.9)
        assert line.open
        await clock.forward(0.1)
        assert not line.open

    clocked(scenario)


@pytest.mark.parametrize("worked", [9.9, 11.0])
def test_an_answer_after_others_has_its_time(clocked, worked):
    """An answer that fits into the buffers no more gets the whole time from when it begins, whether the time for the
    header is almost over then or long gone, and not more: nobody is held for ever."""

    async def scenario(clock):
        app = Answer(BUFFER - 60)  # with its header it just fits; the next one's header does not
        line = Line(app)
        await line.send(GET + GET.replace(b"/ ", b"/slow "))
        assert not line.paused
        await clock.forward(worked)
        app.go.set()
        await clock.forward(0)
        assert (line.paused, line.protocol.cycle.response_complete) == (True, False)
        await clock.forward(9.9)
        assert line.open
        await clock.forward(0.1)
        assert not line.open

    clocked(scenario)


def test_who_took_an_answer_in_time_has_time_for_the_next_header(clocked):
    """The time for a header begins when the answer before it was taken, not when it was written."""

    async def scenario(clock):
        line = Line(Answer(2 * BUFFER))
        await line.send(GET)
        await line.send(GET[:10])
        await clock.forward(9.9)
        line.take()
        await clock.forward(9.9)
        assert line.open
        await line.send(GET[10:])
        assert status(line.take()) == 200

    clocked(scenario)


def test_answers_that_nobody_takes_have_a_limit(clocked, monkeypatch):
    """Long answers wait in memory for their clients up to a limit, beyond which others are told so; short ones never.
    What was taken, or was hung up on, counts no longer; until then a request is not over."""
    monkeypatch.setattr("ohlol.serve.http.gate.UNTAKEN", 5 * BUFFER)

    async def long(request):
        return Response(b"x" * (2 * BUFFER + 100))

    async def short(request):
        return Response(b"x")

    async def scenario(clock):
        router = Router([Route("/long", long), Route("/short", short)])
        gate = Gate(router, LIMITS, Metrics(), None, None, lambda line: pytest.fail(line))
        first, second, third = lines = [Line(gate) for _ in range(3)]
        for line in lines:
            await line.send(GET.replace(b"/ ", b"/long "))
        assert (gate.begun, gate.untaken) == (2, 4 * BUFFER + 200)
        head, _, body = third.take().partition(b"\r\n\r\n")
        assert (status(head), b"retry-after: 1" in head) == (503, True)
        assert "bytes wait" in json.loads(body)["error"]
        await third.send(GET.replace(b"/ ", b"/short "))
        assert status(third.take()) == 200
        assert len(first.take().partition(b"\r\n\r\n")[2]) == 2 * BUFFER + 100
        await clock.forward(0)
        assert (gate.begun, gate.untaken) == (1, 2 * BUFFER + 100)
        await third.send(GET.replace(b"/ ", b"/long "))
        assert status(third.take()) == 200
        await clock.forward(10)
        assert (second.open, gate.begun, gate.untaken) == (False, 0, 0)

    clocked(scenario)


@pytest.mark.parametrize("drip", [b"", b" "])
def test_a_body_has_its_time(clocked, gate, drip):
    """A body that stops half-way, or comes byte by byte without end: 408, and the connection ends."""

    async def scenario(clock):
        line = Line(gate)
        await line.send(POST + b'{"texts": ')
        for _ in range(9):
            await clock.forward(1)
            await line.send(drip)
        assert not line.sent
        await clock.forward(1)
        answer = line.take()
        assert status(answer) == 408
        assert "--read-timeout" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        await clock.forward(0)
        assert not line.open

    clocked(scenario)


def test_a_connection_that_idles_is_drained(clocked, gate):
    """When the server is told to stop, a request whose first bytes are there already is waited for; none, and it ends."""

    async def scenario(clock):
        idle, late = Line(gate), Line(gate)
        await late.send(GET[:10])
        gate.stopping = True
        idle.protocol.shutdown()
        late.protocol.shutdown()
        await clock.forward(DRAIN * 0.9)
        assert (idle.open, late.open) == (True, True)
        await late.send(GET[10:])
        answer = late.take()
        assert (status(answer), b"connection: close" in answer) == (200, True)
        await clock.forward(DRAIN * 0.1)
        assert (idle.open, late.open) == (False, False)

    clocked(scenario)

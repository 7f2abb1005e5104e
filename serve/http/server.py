"""The server process: a socket, connections that may not idle, signals, and an end without a lost answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import signal
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from math import ceil
from typing import Any

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ohlol.artifacts.errors import OhlolError
from ohlol.serve.http.app import App
from ohlol.serve.http.limits import Limits
from ohlol.serve.http.models import Models

DRAIN = 1.0  # seconds in which a connection that idles may still bring a request after the server was told to stop
HEADER = 64 * 2**10  # bytes of a request's header
SPARE = 64  # connections beyond the limit that are still told so
FILES = 64  # that the process has open besides

Say = Callable[[str], object]


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 takes a free one. Raises `OhlolError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise OhlolError(f"--host {host}: {error}; expected a name or address of this machine") from error
    if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # not on Windows
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise OhlolError(
            f"{host}:{port}: {error.strerror or error}; choose another --host or --port (0: a free one)"
        ) from error
    return found


def make_room(connections: int) -> None:
    """See to it that the process may have as many files open. Raises `OhlolError` where the system forbids it."""
    if find_spec("resource") is None:  # not on Windows, which has no such limit
        return
    import resource

    needed = connections + SPARE + FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise OhlolError(
                f"--connections {connections}: needs {needed} open files, this process may have {hard} (ulimit -n); "
                "raise that, or take fewer"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


class _Connection(H11Protocol):
    """A connection on which a request's header has to come, and an answer has to be taken, within `patience`.

    uvicorn itself waits for ever for both, but for silence after an answer. `_ends` is set anew whenever it becomes the
    client's turn to do either.
    """

    patience = 10.0
    most = 512

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._ends = self.loop.call_later(self.patience, self._give_up)
        self._draining = False
        if len(self.connections) > self.most + SPARE:
            transport.abort()  # each takes a file of the process, and there is a limit on those

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._clients_turn()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """There is more to take than the system's buffers hold: the time for that begins."""
        super().pause_writing()
        self._clients_turn()

    def resume_writing(self) -> None:
        """It was taken; that of the next header begins."""
        super().resume_writing()
        self._clients_turn()

    def _clients_turn(self) -> None:
        self._ends.cancel()
        self._ends = self.loop.call_later(self.patience, self._give_up)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give_up(self) -> None:
        if self._idle() or self.flow.write_paused:  # else the app has a request, and limits of its own
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, answered in the JSON that all errors are."""
        if self._idle() or not self.cycle.response_started:
            body = json.dumps({"error": msg}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
            self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n\r\n".encode() + body)
        self.transport.close()

    def shutdown(self) -> None:
        """What is begun is finished; a connection that idles closes a moment later, in case a request is under way."""
        if self._idle() and not self._draining:
            self._draining = True
            self.loop.call_later(DRAIN, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()


class _Server(Server):
    """uvicorn's server, told to stop by us: it would end the process by the signal that it got, not with code 0."""

    def __init__(self, config: Config, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    models: dict[str, str], bound: socket.socket, host: str, limits: Limits, token: str | None, say: Say
) -> bool:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the models anew. `say` is told what happens.

    `bound` was made of `host`. On this machine only and without a token, other names in a request's Host are refused: a
    page could reach the server by having its own name lead here, and the browser would think it the page's own site.

    True if everything that was begun was finished. Raises `OhlolError` where a model cannot be opened, or the limits
    are more than the system's.
    """
    make_room(limits.connections)
    hosts = frozenset({"localhost", host.lower()}) if token is None and is_loopback(bound) else None
    app = App(Models(models), limits, token, hosts, say)
    return asyncio.run(_serve(app, configured(app.gate, limits), bound, say))


def configured(gate: ASGIApp, limits: Limits) -> Config:
    """How uvicorn runs an application."""
    connection = type(
        "Connection", (_Connection,), {"patience": limits.read_timeout, "most": limits.connections}
    )
    return Config(
        gate,
        http=connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER,
        timeout_keep_alive=ceil(limits.read_timeout),  # of silence after an answer; ours comes first
        timeout_graceful_shutdown=limits.grace,
    )


async def _serve(app: App, config: Config, bound: socket.socket, say: Say) -> bool:
    loop = asyncio.get_running_loop()
    server = _Server(config, lambda: say(f"{', '.join(app.models.paths)} at {url(bound)}; Ctrl-C stops"))
    app.gate.connections = lambda: len(server.server_state.connections)
    reloads: set[asyncio.Task[Any]] = set()

    def stop(number: int) -> None:
        if server.should_exit:
            server.force_exit = True
            return
        app.gate.stopping = server.should_exit = True
        say(f"{signal.Signals(number).name}: stopping when what was begun is finished; again: at once")

    def reload() -> None:
        task = loop.create_task(app.reload_all())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    ends = (signal.SIGTERM, signal.SIGINT)
    for number in ends:
        signal.signal(number, lambda got, _: loop.call_soon_threadsafe(stop, got))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(reload))
    await server.serve(sockets=[bound])
    for number in ends:
        signal.signal(number, signal.SIG_DFL)
    app.batcher.close()
    return app.gate.begun == 0

"""A server in this process, one in a process of its own, and a client that sends bytes as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading

import pytest

PATIENCE = 60  # seconds until a test that hangs fails; no test takes as long


class Client:
    """One connection of HTTP/1.1, kept open: what is sent and what comes back are bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path, value, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return await self.answer()

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self):
        """Status, headers and body of the next answer; status 0 where the connection ends before it begins."""
        return await asyncio.wait_for(self._answer(), PATIENCE)

    async def _answer(self):
        head = await self.reader.readline()
        if not head:
            return 0, {}, b""
        headers = {}
        while (line := (await self.reader.readline()).rstrip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head.split()[1]), headers, body

    def close(self):
        self.writer.close()

    def abort(self):
        self.writer.transport.abort()


class Process:
    """`ohlol serve` in a process of its own, ready when this is made; `said` is what stderr got.

    What a client may take its time over, it may here, so that a machine that has too much to do fails no test: those of
    how long exactly are in test_connection.py.
    """

    def __init__(self, *arguments, environment=None):
        patient = f"from ohlol.serve.http import server; server.DRAIN = {PATIENCE}; from ohlol.cli import main; main()"
        options = ["--port", "0", "--timeout", PATIENCE, "--read-timeout", PATIENCE]
        command = [sys.executable, "-c", patient, "serve", *map(str, (*options, *arguments))]
        clean = {key: value for key, value in os.environ.items() if key != "OHLOL_TOKEN"}
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | (environment or {}),
        )
        self.said = []
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.ready.wait(PATIENCE), self.said
        found = re.search(r"at (http://127\.0\.0\.1:(\d+));", "".join(self.said))
        assert found, self.said
        self.url, self.port = found[1], int(found[2])

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if " at http" in line:
                self.ready.set()
        self.ready.set()

    def tell(self, number):
        self.process.send_signal(number)

    def end(self):
        """Exit code, stdout and stderr of a process that was told to stop."""
        code = self.process.wait(PATIENCE)
        self.thread.join(PATIENCE)
        return code, self.process.stdout.read(), "".join(self.said)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.thread.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def opened():
    return []


@pytest.fixture
def connect(opened):
    """Open a client to a port."""

    async def open_one(port):
        opened.append(await Client.open(port))
        return opened[-1]

    return open_one


@pytest.fixture
def run(opened):
    """What a coroutine returns; its clients are closed with it."""

    async def closing(main):
        try:
            return await asyncio.wait_for(main, 2 * PATIENCE)
        finally:
            for client in opened:
                client.close()
            await asyncio.sleep(0)

    return lambda main: asyncio.run(closing(main))


@pytest.fixture
def serve():
    """Start servers; all of them end with the test."""
    started = []

    def start(*arguments, **options):
        started.append(Process(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def shared(golden):
    """A server with a model of each task, for the tests of a module that leave it as it is."""
    one = Process("hello", *(golden / name for name in ("words", "classify", "lm")))
    yield one
    one.kill()

"""`ohlol serve` beside a plain FastAPI + onnxruntime endpoint, in one run, with every answer compared.

    python benchmarks/server.py [BUNDLE] [--texts FILE] [--rounds 5] [--seconds 4] [--clients 1 8 64] > server.md

The endpoint is what one writes in ten minutes (`--peer` below): pydantic reads the body, one `session.run` of
ONNX Runtime with its default threads answers it. Both servers are uvicorn with h11. The clients are another process, which
sends requests made beforehand over connections that stay open and looks at the answers only after the clock has stopped.
The two take turns, `--rounds` times, so that what else the machine does falls on both. Latencies are of all rounds
together; requests a second are the median of the rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import ohlol

CLIENTS = [1, 8, 64]


class Connection(asyncio.Protocol):
    """HTTP/1.1 as cheap as Python has it: bytes out, the answer's status and body in."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.last = False  # the server said that it closes after this answer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0 or self.answer is None or self.answer.done():
            return
        found = re.search(rb"content-length: (\d+)", self.buffer[:head], re.IGNORECASE)
        end = head + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) >= end:
            self.last = b"\r\nconnection: close" in self.buffer[:head]
            self.answer.set_result((int(self.buffer[9:12]), bytes(self.buffer[head + 4 : end])))
            del self.buffer[:end]

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("hung up"))


async def connected(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


def request(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}"
    return f"{head}\r\n\r\n".encode() + body


def drawn(path: Path | None, bundle: str, each: int) -> list[list[str]]:
    """The texts of 200 requests: lines of a file, or the bundle's own characters."""
    draw = random.Random(0)
    if path is not None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [draw.choices(lines, k=each) for _ in range(200)]
    known = ohlol.load(bundle).manifest.alphabet.characters
    return [["".join(draw.choices(known, k=draw.randint(20, 60))) for _ in range(each)] for _ in range(200)]


def expected(bundle: str, texts: list[list[str]]) -> list[list[Any]]:
    model = ohlol.load(bundle)
    return [[getattr(r, "label", None) or list(r.labels) for r in model(one)] for one in texts]


def answers(body: bytes) -> list[Any]:
    return [row["label"] if "label" in row else row["labels"] for row in json.loads(body)["results"]]


async def load(port: int, clients: int, seconds: float, texts: list[list[str]]) -> dict[str, Any]:
    """Ask for `seconds` from `clients` connections at once; seconds of each answer, and the answers."""
    requests = [request(json.dumps({"texts": one}).encode()) for one in texts]
    times: list[float] = []
    bodies: dict[tuple[int, bytes], int] = {}
    codes: Counter[int] = Counter()

    async def client(number: int) -> None:
        connection = await connected(port)
        turn = number * 17
        while perf_counter() < end:
            turn = (turn + 1) % len(requests)
            sent = perf_counter()
            code, body = await connection.ask(requests[turn])
            times.append(perf_counter() - sent)
            codes[code] += 1
            if code == 200:
                bodies[turn, body] = bodies.get((turn, body), 0) + 1
        connection.transport.close()

    start = perf_counter()
    end = start + seconds
    await asyncio.gather(*map(client, range(clients)))
    return {"times": times, "codes": codes, "bodies": bodies, "rate": len(times) / (perf_counter() - start)}


def child(given: argparse.Namespace) -> None:
    """The load, in a process of its own: a line of JSON."""
    texts = drawn(given.texts, given.bundle, given.each)
    found = asyncio.run(load(given.port, given.clients[0], given.seconds, texts))
    right = expected(given.bundle, texts)
    wrong = sum(count for (turn, body), count in found.pop("bodies").items() if answers(body) != right[turn])
    print(json.dumps(found | {"wrong": wrong}))


def peer(given: argparse.Namespace) -> None:
    """The plain endpoint."""
    import unicodedata

    import numpy as np
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from ohlol.artifacts.bundle import open_named

    bundle = open_named(given.bundle)
    labels, tags = bundle.manifest.labels, bundle.manifest.task == "tag"
    session = onnxruntime.InferenceSession(bundle.contents["model.onnx"])
    app = FastAPI()

    class Texts(BaseModel):
        texts: list[str]

    def predict(body: Texts) -> dict[str, Any]:
        texts = [unicodedata.normalize("NFC", text) for text in body.texts]
        points = np.zeros((len(texts), max(map(len, texts))), dtype=np.int32)
        for row, text in enumerate(texts):
            points[row, : len(text)] = [ord(c) for c in text]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        (ids,) = session.run(["label_ids"], {"codepoints": points, "lengths": lengths})
        if not tags:
            return {"results": [{"label": labels[k]} for k in ids]}
        return {
            "results": [
                {"labels": [labels[k] for k in row[:length]]}
                for row, length in zip(ids, lengths, strict=True)
            ]
        }

    predict.__annotations__["body"] = Texts  # FastAPI cannot look a local class up by its name
    app.post("/predict")(predict)
    uvicorn.run(app, port=given.port, log_level="warning", http="h11")


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], text=True, stderr=subprocess.PIPE)


def serving(bundle: str, options: str) -> tuple[subprocess.Popen[str], int]:
    server = started(["-m", "ohlol", "serve", bundle, "--port", "0", *options.split()])
    line = server.stderr.readline() if server.stderr else ""
    found = re.search(r"at http://127\.0\.0\.1:(\d+);", line)
    if not found:
        sys.exit(f"ohlol serve did not start: {line}")
    return server, int(found[1])


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def until_up(port: int) -> None:
    for _ in range(300):
        try:
            (await connected(port)).transport.close()
            return
        except OSError:
            await asyncio.sleep(0.1)
    sys.exit(f"nothing listens on port {port}")


def measure(given: argparse.Namespace) -> None:
    port = free_port()
    servers = {
        "FastAPI + onnxruntime": (started([__file__, given.bundle, "--peer", "--port", str(port)]), port)
    }
    servers |= {f"ohlol serve {options}".strip(): serving(given.bundle, options) for options in given.options}
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    try:
        for _, at in servers.values():
            asyncio.run(until_up(at))
        common = [given.bundle, "--each", str(given.each)] + (
            ["--texts", str(given.texts)] if given.texts else []
        )
        for turn in range(given.rounds + 1):
            for clients in given.clients:
                for name, (_, at) in servers.items():
                    seconds = given.seconds if turn else 1.0  # the first round warms up
                    command = [sys.executable, __file__, *common, "--child", "--port", str(at)]
                    command += ["--clients", str(clients), "--seconds", str(seconds)]
                    ran = subprocess.run(command, capture_output=True, text=True, check=False)
                    if ran.returncode:
                        sys.exit(ran.stderr)
                    if turn:
                        results.setdefault((name, clients), []).append(json.loads(ran.stdout))
    finally:
        for server, _ in servers.values():
            server.send_signal(signal.SIGTERM)
    print(
        f"{', '.join(f'{name} {version(name)}' for name in ('ohlol', 'onnxruntime', 'uvicorn', 'starlette', 'fastapi'))}, "
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} CPUs; {given.bundle}, {given.each} text(s) a "
        f"request, {given.rounds} rounds of {given.seconds:g} s\n"
    )
    print("| server | clients | requests/s | least–most | p50, ms | p99, ms | not 200 | wrong |")
    print("|---|---|---|---|---|---|---|---|")
    for clients in given.clients:
        for name in servers:
            rounds = results[name, clients]
            rates = [one["rate"] for one in rounds]
            cuts = quantiles([t for one in rounds for t in one["times"]], n=100)
            bad = sum(n for one in rounds for code, n in one["codes"].items() if code != "200")
            wrong = sum(one["wrong"] for one in rounds)
            print(
                f"| {name} | {clients} | {median(rates):,.0f} | {min(rates):,.0f}–{max(rates):,.0f} | "
                f"{cuts[49] * 1e3:.2f} | {cuts[98] * 1e3:.2f} | {bad} | {wrong} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default="hello", help="of a tag or classify model")
    parser.add_argument(
        "--texts", type=Path, help="a file of lines [default: drawn from the bundle's characters]"
    )
    parser.add_argument("--each", type=int, default=1, help="texts in a request")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--options", nargs="+", default=[""], help='of ohlol serve, a row for each: "" "--batch-wait 0"'
    )
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    (peer if given.peer else child if given.child else measure)(given)


if __name__ == "__main__":
    main()

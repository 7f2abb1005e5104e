"""`ohlol serve` under clients that send right, broken, oversized and cut-off requests, hang up half-way and start again,
while the bundle is loaded anew every second; at the end SIGTERM under that load.

    python benchmarks/soak.py [BUNDLE] [--texts FILE] [--seconds 3600] [--clients 64] [--options "--queue 16"]

Every answer is compared. What happened is counted; the exit code is 1 if an answer was wrong or lost or a 500, if the
server wrote a traceback, or if it did not end with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

from server import answers, connected, drawn, expected, request, serving

MIX = ["right"] * 12 + ["broken", "oversized", "cut off", "hang up"]


def soak(given: argparse.Namespace) -> bool:
    """Whether every request had an answer of its own, and the right one."""
    texts = drawn(given.texts, given.bundle, given.each)
    right = expected(given.bundle, texts)
    server, port = serving(given.bundle, given.options)
    counts: Counter[str] = Counter()
    stopping = False

    async def client(number: int) -> None:
        draw = random.Random(number)
        while not stopping:
            try:
                connection = await connected(port)
            except OSError:
                counts["connection refused"] += 1
                await asyncio.sleep(0.05)
                continue
            used = False
            for _ in range(draw.randint(1, 50)):
                kind, turn = draw.choice(MIX), draw.randrange(len(texts))
                body = json.dumps({"texts": texts[turn]}).encode()
                if kind in ("hang up", "cut off"):
                    whole = request(body)
                    connection.transport.write(
                        whole if kind == "hang up" else whole[: draw.randrange(len(whole))]
                    )
                    counts[kind] += 1
                    break
                if kind == "broken":
                    body = bytes(draw.randrange(256) for _ in range(40))
                if kind == "oversized":
                    body = b" " * 3_000_000
                try:
                    code, answer = await asyncio.wait_for(connection.ask(request(body)), 60)
                except TimeoutError:
                    counts["LOST: no answer in 60 s"] += 1
                    break
                except ConnectionError:
                    # A connection that the server had not taken yet when it was told to stop is not lost.
                    counts["not taken any more" if stopping and not used else "LOST: hung up on"] += 1
                    break
                used = True
                counts[f"{kind}: {code}"] += 1
                if code == 200 and answers(answer) != right[turn]:
                    counts["WRONG"] += 1
                if (
                    code == 500
                    or code not in {"right": (200, 503), "broken": (400,), "oversized": (413,)}[kind]
                ):
                    counts[f"UNEXPECTED: {kind}: {code}"] += 1
                if connection.last:
                    break
            connection.transport.abort()

    async def main() -> None:
        nonlocal stopping
        tasks = [asyncio.create_task(client(number)) for number in range(given.clients)]
        end = perf_counter() + given.seconds
        while perf_counter() < end:
            await asyncio.sleep(1)
            server.send_signal(signal.SIGHUP)
            counts["loaded anew"] += 1
        stopping = True
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    said = server.communicate(timeout=120)[1]
    for name, count in sorted(counts.items()):
        print(f"{name:<28} {count:>10,}")
    print(
        f"exit code {server.returncode}; {'a traceback' if 'Traceback' in said else 'no traceback'} on stderr"
    )
    bad = [name for name in counts if name.split(":")[0].isupper()]
    return not bad and server.returncode == 0 and "Traceback" not in said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default="hello", help="of a tag or classify model")
    parser.add_argument(
        "--texts", type=Path, help="a file of lines [default: drawn from the bundle's characters]"
    )
    parser.add_argument("--each", type=int, default=3, help="texts in a request")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--options", default="", help="of ohlol serve")
    sys.exit(not soak(parser.parse_args()))


if __name__ == "__main__":
    main()

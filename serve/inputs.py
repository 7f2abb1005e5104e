"""What texts are read from: arguments, stdin, a pipe, a file."""

from __future__ import annotations

import hashlib
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ohlol.artifacts.errors import InputError
from ohlol.serve.blocks import Blocks, Place
from ohlol.serve.long_line import LongLine
from ohlol.serve.packed import packing, unpacked
from ohlol.serve.readers import windows
from ohlol.serve.windows import Reading, Window, arguments

Item = Window | LongLine
ENDS = 1 << 16  # bytes at both ends of a file by which it is known again


@dataclass(frozen=True)
class Input:
    """`read` gives what stands after a place; `part` says how much stands before one, from 0 to 1, if it can."""

    read: Callable[[Place], Iterator[Item]]
    part: Callable[[Place], float | None] = lambda _: None


@contextmanager
def opened(
    texts: tuple[str, ...], source: Path | None, how: Reading, *, follow: bool = False
) -> Iterator[Input]:
    """The texts of a command line, else those of a file, else those of stdin, which stays open.

    `follow`: lines are given as soon as they are there.
    """
    if texts:
        yield Input(lambda _: arguments(texts, how))
    elif source and how.format == "parquet":
        from ohlol.serve import parquet

        rows = parquet.rows_of(source)
        yield Input(lambda place: parquet.windows(source, place, how), lambda end: end.offset / max(1, rows))
    elif source and follow:
        with _Pipe(source) as pipe:
            yield Input(lambda place: windows(Blocks(pipe, place, arriving=True, name=how.name), how))
    elif source:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = packing(source) is not None
            yield Input(
                lambda place: windows(Blocks(unpacked(file, source), place), how),
                lambda end: (file.tell() if packed else end.offset) / size if size else None,
            )
    else:
        if sys.stdin is None:  # closed, as a daemon has it
            raise InputError("stdin is closed; give TEXT or -i FILE")
        given: Any = sys.stdin.buffer
        given = _Waited(getattr(given, "raw", given) if follow else given)
        yield Input(lambda place: windows(Blocks(given, place, arriving=follow, name=how.name), how))


class _Waited:
    """A file whose `read` waits for bytes, though whoever opened it said that it must not (`O_NONBLOCK`)."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        while (data := self._file.read(size)) is None:
            select.select([self._file], [], [])
        return bytes(data)

    def seek(self, offset: int, /) -> int:
        return int(self._file.seek(offset))


class _Pipe(io.RawIOBase):
    """A named pipe whose writers come and go: where the last one has gone, the next one is waited for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        self._in_line = False

    def read(self, size: int = -1) -> bytes:
        while not (data := os.read(self._handle, size)):
            if self._in_line:  # a writer's last line may lack its end
                self._in_line = False
                return b"\n"
            following = os.open(
                self._path, os.O_RDONLY
            )  # before the old one is closed: no writer meets a closed pipe
            os.close(self._handle)
            self._handle = following
        self._in_line = not data.endswith(b"\n")
        return data

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def identity(path: Path) -> dict[str, Any]:
    """What a file is known by: size, time of its last change, and a digest of both its ends."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(ENDS))
        file.seek(max(0, found.st_size - ENDS))
        digest.update(file.read(ENDS))
    return {"bytes": found.st_size, "changed": found.st_mtime_ns, "sha256": digest.hexdigest()}


def changed(source: Path, before: dict[str, Any]) -> str:
    """What to say where a file is not what it was `before`; a log may grow while it is read.

    Raises `InputError` where it was cut: the answers would be those of a part.
    """
    now = identity(source)
    if now["bytes"] < before["bytes"]:
        raise InputError(f"{source}: was cut while it was read, to {now['bytes']:,} bytes; run it again")
    return (
        f"note: {source} changed while it was read; the answers are of what was there then"
        if now != before
        else ""
    )

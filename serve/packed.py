"""Formats and compression by a file's name; gzip and zstd in and out, by the standard library."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from ohlol.artifacts.errors import InputError

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PACKED = {".gz": "gzip", ".zst": "zstd"}


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def format_of(path: Path | None, given: str | None = None) -> str:
    """The format `given`, or else the one a file's name says, before `.gz` or `.zst`; text without either."""
    if given or path is None:
        return given or "text"
    if packing(path):
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix.lower(), "text")


def packing(path: Path) -> str | None:
    """The compression that a file's last suffix names."""
    return PACKED.get(path.suffix.lower())


def unpacked(file: IO[bytes], path: Path) -> IO[bytes]:
    """What a file holds, decompressed where its name says that it is compressed.

    Reading raises `InputError` where the compressed data are damaged or cut off.
    """
    packed_by = packing(path)
    if packed_by is None:
        return file
    if packed_by == "gzip":
        from gzip import GzipFile  # late: few need it

        return io.BufferedReader(_Unpacked(GzipFile(fileobj=file, mode="rb"), path), 1 << 17)
    return io.BufferedReader(_Unpacked(_zstd(path).ZstdFile(file), path), 1 << 17)


def compressor(path: Path) -> Callable[[], Compressor] | None:
    """Makes what compresses one part of a file; the compressed parts, one after another, are the whole file.

    None where the name says nothing of compression. The bytes depend on what is written alone: no name, no time.
    """
    packed_by = packing(path)
    if packed_by is None:
        return None
    if packed_by == "gzip":
        return lambda: zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    made: Callable[[], Compressor] = _zstd(path).ZstdCompressor
    return made


def _zstd(path: Path) -> Any:
    if not find_spec("compression"):
        raise InputError(
            f"{path}: zstd is in Python's standard library from 3.14 on, and this is an earlier one; "
            "unpack it first (zstd -dc FILE | ohlol predict …), or use gzip"
        )
    return import_module("compression.zstd")


class _Unpacked(io.RawIOBase):
    """A file that decompresses, whose mistakes are one `InputError` that names it."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._told(lambda: self._file.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._told(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def _told(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            # What the libraries raise: EOFError, zlib.error, BadGzipFile, ZstdError. A disk's errors have a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = "it ends too early" if isinstance(error, EOFError) else str(error)
            raise InputError(
                f"{self._path}: cannot be unpacked as {packing(self._path)} ({reason}): the file is damaged, or was "
                "cut off on its way; copy it again"
            ) from error

"""The bytes of a file in blocks of whole lines, each with its place, from any line's beginning on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ohlol.artifacts.errors import InputError

BLOCK = 1 << 20  # bytes
LONGEST = 16 << 20  # bytes of a line that arrives
BOM = b"\xef\xbb\xbf"


class Place(NamedTuple):
    """Where a line begins: bytes (of the unpacked file) and lines before it. In Parquet, both are rows."""

    offset: int = 0
    line: int = 0


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


class Blocks:
    """Gives blocks of at most `BLOCK` bytes that end with a line's end; the file's last may lack it.

    A longer line comes in pieces: blocks without a line's end, and one that ends with it. `begin` and `end` are the
    places of the block given last. What a block holds depends on its place alone, not on where reading began.
    A byte order mark at the beginning is left out.

    `arriving`: `file` is unbuffered, and its `read` gives what is there already. Blocks are then the lines that are
    there, however few, and are never pieces: a line of more than 16 MiB raises `InputError`, which names it by `name`.
    """

    def __init__(
        self,
        file: Readable,
        start: Place = Place(),  # noqa: B008
        *,
        arriving: bool = False,
        name: str = "input",
    ) -> None:
        self.file = file
        self.start = self.begin = self.end = start
        self.arriving, self.name = arriving, name

    def __iter__(self) -> Iterator[bytes]:
        held = bytearray(self._begun())
        scanned = 0  # so much of `held` has no line's end
        in_line = ended = False  # the block before was a piece of a long line; the file has no more
        while True:
            cut = (held.find if in_line else held.rfind)(b"\n", scanned) + 1
            if not ended and (not cut if self.arriving else len(held) < BLOCK):
                scanned = 0 if cut else len(held)
                more = self.file.read(BLOCK if self.arriving else BLOCK - len(held))
                held += more
                ended = not more  # asked once: a terminal would have to be told twice
                if len(held) > LONGEST and b"\n" not in more:  # only of what arrives is so much held
                    raise InputError(
                        f"{self.name}:{self.end.line + 1}: no line's end in {LONGEST >> 20} MiB; what arrives is answered line "
                        "by line: end lines at \\n, or write to a file and predict that"
                    )
                continue
            block = bytes(held[: cut or None])
            if not block:
                return
            del held[: len(block)]
            scanned = 0
            in_line = not cut
            self.begin = self.end
            self.end = Place(self.begin.offset + len(block), self.begin.line + block.count(b"\n"))
            yield block

    def whole_lines(self) -> Iterator[bytes]:
        """Blocks none of which is a piece of a line."""
        blocks = iter(self)
        for block in blocks:
            begin = self.begin
            if not block.endswith(b"\n"):
                block = b"".join(line_of(block, blocks))
                self.begin = begin
            yield block

    def _begun(self) -> bytes:
        """Goes to the start; what had to be read there."""
        self.end = self.start
        if self.start.offset:
            self.file.seek(self.start.offset)
            return b""
        head = b""
        while len(head) < len(BOM) and BOM.startswith(head):
            more = self.file.read(len(BOM) - len(head))
            if not more:
                return head
            head += more
        if head != BOM:
            return head
        self.end = Place(len(BOM), 0)
        return b""


def line_of(piece: bytes, following: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of a line, the first of which is there already."""
    yield piece
    while not piece.endswith(b"\n") and (piece := next(following, b"")):
        yield piece


def not_utf8(where: str, byte: int, column: int) -> InputError:
    return InputError(
        f"{where}: not UTF-8: byte 0x{byte:02x} at column {column}; convert the file to UTF-8, or leave such lines "
        "out with --on-error skip"
    )

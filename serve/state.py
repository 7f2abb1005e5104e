"""Where a text in pieces stands, and its bytes. Specified in docs/streams.md."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.errors import InputError

MAGIC = b"ohlolstr"
VERSION = 1
HEADER = struct.Struct(
    "<8s5IQ32s"
)  # magic, version, states, hidden, last, held, characters, sha256 of the file
DIGEST = 32
AGAIN = "begin the text again with model.stream()"


@dataclass(frozen=True)
class State:
    """Of one text. Nothing changes it: the next piece makes another one.

    `hidden (states, hidden) float32` is the network's; `last (classes,) float32` is what the last character
    brought, where the task needs it for an empty or a later piece (`classify`: the probabilities, `lm`: the
    logits), else `(0,)`; `held` is the text that is not yet normalised; `characters` how many were read.
    """

    hidden: NDArray[np.float32]
    last: NDArray[np.float32]
    held: str = ""
    characters: int = 0


def to_bytes(state: State, file: bytes) -> bytes:
    """`file` is the sha256 of the `stream.onnx` that the state is of."""
    S, H = state.hidden.shape
    numbers = (S, H, len(state.last), len(state.held), state.characters)
    parts = [
        HEADER.pack(MAGIC, VERSION, *numbers, file),
        state.hidden.astype("<f4").tobytes(),
        state.last.astype("<f4").tobytes(),
        state.held.encode("utf-32-le", "surrogatepass"),
    ]
    content = b"".join(parts)
    return content + hashlib.sha256(content).digest()


def from_bytes(data: bytes, file: bytes, shape: tuple[int, int], last: int) -> State:
    """The state of a stream of `file`, whose network has the state `shape`; `last` is the width of its last answer.

    Raises `InputError` where the bytes are damaged, of another version or of another model, or hold what no
    stream leaves.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"the state of a stream is bytes, found {type(data).__name__}")
    data = bytes(data)
    if len(data) < HEADER.size + DIGEST or not data.startswith(MAGIC):
        raise InputError(f"these {len(data):,} bytes are not the state of a stream; {AGAIN}")
    _, version, S, H, L, K, characters, of = HEADER.unpack_from(data)
    if version != VERSION:
        raise InputError(
            f"the state of a stream has version {version}, expected {VERSION}; read it with the version of ohlol that "
            f"wrote it, or {AGAIN}"
        )
    content, digest = data[:-DIGEST], data[-DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise InputError(f"the state of a stream is damaged: its sha256 differs; {AGAIN}")
    if of != file:
        raise InputError(
            f"the state is of another stream.onnx, sha256 {of.hex()[:12]}…, this one's is {file.hex()[:12]}…; load the "
            f"model that wrote it, or {AGAIN}"
        )
    numbers = S * H + L
    right = (*shape, last if characters else 0) == (S, H, L)
    if not right or len(content) != HEADER.size + 4 * (numbers + K):
        raise InputError(f"the state of a stream has sizes that its model does not have; {AGAIN}")
    values = np.frombuffer(content, dtype="<f4", count=numbers, offset=HEADER.size).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"the state of a stream holds a number that is not finite; {AGAIN}")
    try:
        held = content[HEADER.size + 4 * numbers :].decode("utf-32-le", "surrogatepass")
    except UnicodeDecodeError as error:
        raise InputError(f"the state of a stream holds text that is none ({error}); {AGAIN}") from error
    return State(values[: S * H].reshape(S, H), values[S * H :], held, characters)

"""What stands in an `.onnx` file, read without onnx: its digest, nodes, weights, and single tensors.

Field numbers by https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import METADATA_PREFIX
from ohlol.artifacts.errors import BundleError

DIGEST = METADATA_PREFIX + "sha256"  # metadata: the digest of everything in the file but its metadata

# TensorProto.DataType: name and bytes of a number.
DTYPES = {1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 6: ("int32", 4), 7: ("int64", 8), 8: ("string", 0), 10: ("float16", 2)}  # fmt: skip
READ = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4")}
DAMAGED = (IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError)
MOST_AXES = 8  # of a tensor of ours


@dataclass
class Summary:
    """`nodes` counts operators, those of subgraphs too; `weights` is name, dtype and shape of each initialiser."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    nodes: Counter[str] = field(default_factory=Counter)
    weights: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def numbers(self) -> int:
        return sum(math.prod(shape) for _, _, shape in self.weights)


def digest(model: bytes) -> str:
    """sha256 of all of a `ModelProto` but its `metadata_props`. Raises `ValueError` and the like on damage."""
    sha = hashlib.sha256()
    for number, start, end, _ in _fields(model):
        if number != 14:
            sha.update(model[start:end])
    return sha.hexdigest()


def check_digest(model: bytes, metadata: dict[str, str], where: str) -> None:
    """Raise `BundleError` where the file is not what was exported. A file without a digest passes."""
    if DIGEST not in metadata:
        return
    try:
        found = digest(model)
    except DAMAGED as error:
        raise BundleError(f"{where}: damaged ({error}); copy or export it again") from error
    said = metadata[DIGEST].strip('"')  # JSON, as all our metadata
    if found != said:
        raise BundleError(
            f"{where}: damaged or changed: the sha256 of its graph and weights is {found[:12]}…, its metadata says "
            f"{said[:12]}…; copy or export it again"
        )


def summary(model: bytes, where: str) -> Summary:
    """Raises `BundleError` where `model` is no ONNX file."""
    found = Summary()
    try:
        for number, _, _, content in _fields(model):
            if number == 1:
                found.ir_version = content
            elif number == 8:
                opset = {key: value for key, _, _, value in _fields(content)}
                found.opsets[opset.get(1, b"").decode()] = opset[2]
            elif number == 7:
                _add_graph(content, found)
    except DAMAGED as error:
        raise BundleError(f"{where}: not an ONNX file, or damaged ({error}); export it again") from error
    return found


def read_tensor(data: bytes, where: str) -> tuple[str, NDArray[Any]]:
    """Name and values of a `TensorProto` of float32 or int32 that keeps them in `raw_data`."""
    try:
        name, dtype, dims, raw = _tensor(data)
        return name, np.frombuffer(raw, dtype=READ[dtype]).reshape(dims)
    except DAMAGED as error:
        raise BundleError(f"{where}: not a tensor of float32 or int32 ({error}); export it again") from error


def _add_graph(graph: bytes, found: Summary) -> None:
    for number, _, _, content in _fields(graph):
        if number == 5:
            name, dtype, dims, _ = _tensor(content)
            found.weights.append((name, dtype, tuple(dims)))
        elif number == 1:
            for key, _, _, value in _fields(content):
                if key == 4:
                    found.nodes[value.decode()] += 1
                elif key == 5:
                    for kind, _, _, inner in _fields(value):
                        if kind == 6:
                            _add_graph(inner, found)


def _tensor(data: bytes) -> tuple[str, str, list[int], bytes]:
    dims: list[int] = []
    kind, name, raw = 0, "", b""
    for number, _, _, content in _fields(data):
        if number == 1:
            dims += [content] if isinstance(content, int) else _varints(content)
        elif number == 2:
            kind = content
        elif number == 8:
            name = content.decode("utf-8")
        elif number == 9:
            raw = content
    if len(dims) > MOST_AXES or any(not 0 <= size < 2**40 for size in dims):
        raise ValueError(f"a tensor of {len(dims)} axes, the largest of {max(dims)}")
    return name, DTYPES[kind][0], dims, raw


def _fields(data: bytes) -> Iterator[tuple[int, int, int, Any]]:
    """Number, start, end and content (an int, or bytes) of each field of a protobuf message."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            content: Any
            content, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _varint(data, at)
            if size is None or at + size > len(data):
                raise ValueError(f"field {number} at byte {start} is cut off or of no known kind")
            content, at = data[at : at + size], at + size
        yield number, start, at, content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} is too long")


def _varints(data: bytes) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values

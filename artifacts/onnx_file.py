"""What stands in an `.onnx` file, read without onnx: its digest, nodes, weights, and single tensors.

Field numbers by https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import hashlib
import math
import re
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
MOST_NESTED = 16  # graphs inside graphs


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
    sha, view = hashlib.sha256(), memoryview(model)
    for number, start, end, _ in _fields(view):
        if number != 14:
            sha.update(view[start:end])
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
    if not re.fullmatch("[0-9a-f]{64}", said):
        raise BundleError(f"{where}: damaged: its {DIGEST} is {said!r:.80}; copy or export it again")
    if found != said:
        raise BundleError(
            f"{where}: damaged or changed: the sha256 of its graph and weights is {found[:12]}…, its metadata says "
            f"{said[:12]}…; copy or export it again"
        )


def metadata(model: bytes, where: str) -> dict[str, str]:
    """The `metadata_props`. Raises `BundleError` where they cannot be read, or have a name twice."""
    found: dict[str, str] = {}
    graphs = 0
    try:
        for number, _, _, content in _fields(model):
            graphs += number == 7
            if number == 14:
                pair = {key: value for key, _, _, value in _fields(content)}
                name, text = (pair.get(key, b"").decode("utf-8") for key in (1, 2))
                if name in found:
                    raise ValueError(f"{name!r:.60} is there twice")
                found[name] = text
        if not graphs:
            raise ValueError("there is no graph in it")
    except DAMAGED as error:
        raise BundleError(
            f"{where}: not an ONNX file, or its metadata is damaged ({error}); copy or export it again"
        ) from error
    return found


def check_whole(model: bytes, where: str) -> None:
    """Raise `BundleError` where a weight is said to stand in another file: a runtime would go and read that."""
    try:
        outside = _outside(memoryview(model))
    except DAMAGED as error:
        raise BundleError(f"{where}: not an ONNX file, or damaged ({error}); export it again") from error
    if outside:
        raise BundleError(
            f"{where}: a weight of it stands in another file, which an ONNX file of ohlol's never does; refused"
        )


def summary(model: bytes, where: str) -> Summary:
    """Raises `BundleError` where `model` is no ONNX file."""
    found = Summary()
    try:
        for number, _, _, content in _fields(model):
            if number == 1:
                found.ir_version = int(content)
            elif number == 8:
                opset = {key: value for key, _, _, value in _fields(content)}
                found.opsets[opset.get(1, b"").decode()] = int(opset[2])
            elif number == 7:
                _add_graph(content, found)
    except DAMAGED as error:
        raise BundleError(f"{where}: not an ONNX file, or damaged ({error}); export it again") from error
    return found


@dataclass(frozen=True)
class Node:
    """An operator of the graph, with the names of what goes in and comes out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes(model: bytes, where: str) -> list[Node]:
    """The operators of the graph itself, in order, without those of subgraphs. Raises `BundleError`."""
    try:
        graph = next(content for number, _, _, content in _fields(model) if number == 7)
        return [_node(content) for number, _, _, content in _fields(graph) if number == 1]
    except (StopIteration, *DAMAGED) as error:
        raise BundleError(f"{where}: not an ONNX file, or damaged ({error}); export it again") from error


def _node(data: bytes) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for number, _, _, content in _fields(data):
        if number in texts:
            texts[number].append(content.decode("utf-8"))
    (op,) = texts[4]
    return Node(op, tuple(texts[1]), tuple(texts[2]))


def read_tensor(data: bytes, where: str) -> tuple[str, NDArray[Any]]:
    """Name and values of a `TensorProto` of float32 or int32 that keeps them in `raw_data`."""
    try:
        name, dtype, dims, raw = _tensor(data)
        return name, np.frombuffer(raw, dtype=READ[dtype]).reshape(dims)
    except DAMAGED as error:
        raise BundleError(f"{where}: not a tensor of float32 or int32 ({error}); export it again") from error


# Where tensors are in a ModelProto: for each message, its fields that lead on, and what they are.
LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def _outside(data: memoryview, message: str = "model", depth: int = 0) -> bool:
    """Whether a tensor anywhere in `message` has `external_data` (field 13) or a `data_location` (14) that says so."""
    if depth > 4 * MOST_NESTED:
        raise ValueError(f"graphs are nested deeper than {MOST_NESTED}")
    if message == "tensor":
        return any(number == 13 or (number == 14 and content) for number, _, _, content in _fields(data))
    leads = LEADS[message]
    return any(
        _outside(content, leads[number], depth + 1)
        for number, _, _, content in _fields(data)
        if number in leads
    )


def _add_graph(graph: bytes, found: Summary, depth: int = 0) -> None:
    if depth > MOST_NESTED:
        raise ValueError(f"graphs are nested deeper than {MOST_NESTED}")
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
                            _add_graph(inner, found, depth + 1)


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


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, int, int, Any]]:
    """Number, start, end and content (an int, or a part of `data`) of each field of a protobuf message."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        if key >> 32:  # protobuf leaves out the bits above, and would see another field than we do
            raise ValueError(f"the number of the field at byte {start} is too large")
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


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
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

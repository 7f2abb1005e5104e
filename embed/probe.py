"""One more output for a `model.onnx`: the hidden state of the last layer at every character, which the contract has not.

It is added to what is loaded, not to the file: some bytes are put after those of the file. By the rules of protobuf a
message that stands twice is one with the contents of both, so a second `graph` with nothing but outputs in it adds them.
https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from __future__ import annotations

from dataclasses import dataclass

from ohlol.artifacts.onnx_file import Node, nodes

LAYERS = ("RNN", "GRU", "LSTM")
GRAPH, OUTPUT, NAME, TYPE, TENSOR_TYPE, ELEMENT = 7, 12, 1, 2, 1, 1  # fields, from ModelProto inwards
FLOAT = 1


@dataclass(frozen=True)
class Probe:
    """`model + added` answers as `model` does, and has the outputs `names` too, each `(T, B, H) float32`.

    The first is of the direction that reads forwards. Where there is a second one, it is of the other direction and
    in the order in which that reads: its first step is of the last character.
    """

    names: tuple[str, ...]
    added: bytes


def probe(model: bytes, where: str) -> Probe | None:
    """How to see the hidden state of `model`; None where its last layer is not found. Raises `BundleError`."""
    by_output = {name: node for node in nodes(model, where) for name in node.outputs}
    names = tuple(_ways("logits", by_output))
    if not 1 <= len(names) <= 2:
        return None
    outputs = b"".join(_field(OUTPUT, _field(NAME, name.encode()) + _FLOATS) for name in names)
    return Probe(names, _field(GRAPH, outputs))


def _ways(name: str, by_output: dict[str, Node]) -> list[str]:
    """From a tensor back to the last layer: its answers, one name for each direction. Empty where there is none."""
    while name in by_output:
        node = by_output[name]
        source = by_output.get(node.inputs[0]) if node.inputs else None
        if node.op == "Scan" or (node.op == "Squeeze" and source and source.op in LAYERS):
            return [name]
        if node.op == "Concat":
            return [found for way in node.inputs for found in _ways(way, by_output)]
        if not node.inputs:
            break
        name = node.inputs[0]  # the second one is a weight, a mask, a place
    return []


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


_FLOATS = _field(TYPE, _field(TENSOR_TYPE, bytes([ELEMENT << 3, FLOAT])))  # of any shape

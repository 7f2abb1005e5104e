"""An ONNX graph written node by node, with names that tell a person what each is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# How matrices are stored. They are computed with in single precision, int8 products of hidden states aside.
Precision = Literal["single", "half", "int8"]

# int8 weights have 7 bits: the sum of two products of 8 and 7 bits fits 16 bits, in which x86 without VNNI
# adds them, so that every CPU gets the same whole numbers.
LEVELS = 63

DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "string": TensorProto.STRING}


class Scope:
    """The nodes of one graph, in order. `inner` is the scope of a subgraph, which sees this one's values.

    Weights are initialisers of the outermost graph, each stored once, matrices in `precision`. What makes
    single numbers of a matrix stands in the scope that reads it: runtimes do it once, when they load the
    file, and a `Scan` may not read what is computed outside of it (OpenVINO).
    """

    def __init__(self, precision: Precision = "single", prefix: str = "", outer: Scope | None = None) -> None:
        self.precision = precision
        self.prefix = prefix
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = outer.weights if outer else {}
        self._once: dict[str, str] = {}

    def inner(self, prefix: str) -> Scope:
        return Scope(self.precision, self.prefix + prefix, self)

    def add(self, op: str, *inputs: str, out: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output, `out`; the node has that name too."""
        return self.parts(op, *inputs, outs=[out], domain=domain, **attributes)[0]

    def parts(
        self, op: str, *inputs: str, outs: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node with several outputs; one that nobody reads is ``""``."""
        outputs = [self.prefix + out if out else "" for out in outs]
        name = next(filter(None, outputs))
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def once(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        """As `add`; where this scope has the node already, its output."""
        if out not in self._once:
            self._once[out] = self.add(op, *inputs, out=out, **attributes)
        return self._once[out]

    def rename(self, old: str, new: str) -> None:
        """Give a value of this scope another name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
            node.name = new if node.name == old else node.name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """The initialiser `name`, stored at its first use."""
        self.weights.setdefault(name, array)
        return name

    def matrix(self, name: str, rows: NDArray[np.float32], transposed: bool = False) -> str:
        """A weight `(n, m) float32`, stored in this file's precision, as a value of single numbers."""
        if self.precision == "int8":
            integers, scales = self.integers(name, rows, transposed)
            single = self.once("Cast", integers, out=f"{name}.single", to=TensorProto.FLOAT)
            return self.once("Mul", single, scales, out=f"{name}.scaled")
        array = rows.T if transposed else rows
        if self.precision == "half":
            self.weight(name, array.astype(np.float16))
            return self.once("Cast", name, out=f"{name}.single", to=TensorProto.FLOAT)
        return self.weight(name, array)

    def integers(
        self, name: str, rows: NDArray[np.float32], transposed: bool = False, step: float = 1.0
    ) -> tuple[str, str]:
        """A weight `(n, m) float32` as int8, and the scale of each row times `step`, shaped to multiply it."""
        values, scales = quantised(rows)
        self.weight(name, values.T if transposed else values)
        scales = (scales * step).astype(np.float32)
        return name, self.weight(f"{name}.scale", scales.T if transposed else scales)

    def numbers(self, *values: int) -> str:
        """A constant `(n,) int64`: axes, sizes, shapes."""
        return self.weight("numbers_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def graph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """These nodes as a graph; the outermost one holds the weights."""
        weights = [] if self.outer else sorted(self.weights.items())
        tensors = [numpy_helper.from_array(array.copy(order="C"), key) for key, array in weights]
        return helper.make_graph(self.nodes, name, inputs, outputs, tensors)


def value(name: str, shape: Sequence[str | int], dtype: str = "float32") -> onnx.ValueInfoProto:
    """The declaration of a graph's input or output."""
    return helper.make_tensor_value_info(name, DTYPES[dtype], shape)


def quantised(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """`rows (n, m)` as int8 and a scale for each row `(n, 1)`, so that their product is near `rows`."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scales = (np.where(largest > 0, largest, 1) / LEVELS).astype(np.float32)
    return np.round(rows / scales).astype(np.int8), scales


def stored(rows: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """A matrix as a file of this precision holds it."""
    if precision == "int8":
        values, scales = quantised(rows)
        return values * scales
    return rows.astype(np.float16).astype(np.float32) if precision == "half" else rows

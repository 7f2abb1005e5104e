"""The proof replayed where a bundle landed, from its own test data; neither torch nor onnx needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_bundle, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.parity import Arrays, Case, Proof, compare
from ohlol.serve.model import of_bundle

DTYPES = {1: np.dtype("<f4"), 6: np.dtype("<i4")}  # TensorProto.DataType FLOAT and INT32


def verify(path: str | Path) -> Proof:
    """Run the bundle's model on its test data here; the parity table.

    Raises `BundleError` where the bundle cannot be opened or holds no test data.
    """
    bundle = open_bundle(shipped() if path == HELLO else Path(path))
    model = of_bundle(bundle)
    rows = [
        compare(
            Layout.onnx, case, model.outputs(case.codepoints, case.lengths), expected, bundle.manifest.task
        )
        for case, expected in _test_data(bundle)
    ]
    if not rows:
        raise BundleError(f"{bundle.path}: holds no test data to verify it by; export it again")
    return Proof(rows, {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__})


def _test_data(bundle: Bundle) -> list[tuple[Case, Arrays]]:
    cases: list[tuple[Case, Arrays]] = []
    while (folder := Layout.test_data.format(len(cases))) + "/input_0.pb" in bundle.contents:
        inputs, outputs = (
            [
                read_tensor(bundle.contents[name], str(bundle.path / name))
                for number in range(count)
                if (name := f"{folder}/{group}_{number}.pb") in bundle.contents
            ]
            for group, count in (
                ("input", len(contract.INPUTS)),
                ("output", len(contract.outputs(bundle.manifest.task))),
            )
        )
        given, expected = dict(inputs), dict(outputs)
        if given.keys() != {tensor.name for tensor in contract.INPUTS}:
            raise BundleError(f"{bundle.path / folder}: its inputs are {', '.join(given)}; export it again")
        cases.append((Case(folder, given["codepoints"], given["lengths"]), expected))
    return cases


def read_tensor(data: bytes, where: str) -> tuple[str, NDArray[Any]]:
    """Name and values of an ONNX `TensorProto` of float32 or int32 that keeps them in `raw_data`.

    Fields by https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: 1 dims, 2 data_type, 8 name, 9 raw_data.
    """
    dims: list[int] = []
    kind, name, raw = 0, "", b""
    try:
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            field, wire = key >> 3, key & 7
            number, at = _varint(data, at)
            value: int | bytes = number
            if wire == 2:  # that was the length of what follows
                value, at = data[at : at + number], at + number
            if field == 1:
                dims += [value] if isinstance(value, int) else _varints(value)
            elif field == 2 and isinstance(value, int):
                kind = value
            elif field == 8 and isinstance(value, bytes):
                name = value.decode("utf-8")
            elif field == 9 and isinstance(value, bytes):
                raw = value
        return name, np.frombuffer(raw, dtype=DTYPES[kind]).reshape(dims)
    except (IndexError, KeyError, ValueError) as error:
        raise BundleError(f"{where}: not a tensor of float32 or int32 ({error}); export it again") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _varints(data: bytes) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values

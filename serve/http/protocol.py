"""The Open Inference Protocol, version 2: tensors in JSON or in binary, as KServe and Triton send them.

In the binary form a body is JSON and then the tensors' bytes, little-endian; the header
`Inference-Header-Content-Length` says where the JSON ends, each tensor's `binary_data_size` how long it is. Of a
BYTES tensor each element is its length in 4 bytes and then itself.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.serve.http.limits import JSON_NUMBERS, Refused

HEADER = "Inference-Header-Content-Length"
DTYPES = {"int32": "INT32", "float32": "FP32", "string": "BYTES"}  # the contract's names to the protocol's
MOST = 2**31 - 1  # of an axis, and of an int32
AT_ONCE = 4_096  # values that are written as JSON in one go: other threads wait that long

Array = NDArray[Any]  # int32, float32, or object (of str) for BYTES


@dataclass(frozen=True)
class Spec:
    """A tensor of a model. `shape` has −1 for an axis of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Request:
    """A request to infer: arrays by name, and for each output that is wanted whether in binary."""

    id: str | None
    inputs: dict[str, Array]
    outputs: dict[str, bool]


def parse(body: bytes, header: str | None, inputs: tuple[Spec, ...], outputs: tuple[Spec, ...]) -> Request:
    """A request for a model with these inputs and outputs. Raises `Refused` (400) on whatever is not one."""
    length = len(body)
    if header is not None:
        right = header.isascii() and header.isdigit() and len(header) <= 12
        if not right or int(header) > len(body):
            raise Refused(400, f"{HEADER} is {header[:40]!r}, the body has {len(body)} bytes")
        length = int(header)
        if length == 0:
            raise Refused(
                400, f"{HEADER} is 0: a request without JSON is not taken; name the tensors in JSON"
            )
    request = read_object(body[:length])
    id_ = request.get("id")
    if not isinstance(id_, str | None):
        raise Refused(400, f'"id": expected a string, found {_kind(id_)}')
    binary = memoryview(body)[length:]
    arrays: dict[str, Array] = {}
    for tensor in _objects(request, "inputs"):
        spec = _spec(tensor, inputs, "input", arrays)
        shape = _shape(tensor, spec)
        size = _parameters(tensor, spec.name).get("binary_data_size")
        if size is None:
            arrays[spec.name] = _of_json(tensor, spec, shape)
            continue
        if "data" in tensor:
            raise Refused(400, f'input `{spec.name}`: has "data" and "binary_data_size"; send one of them')
        if not _is_int(size) or not 0 <= size <= len(binary):
            raise Refused(
                400, f"input `{spec.name}`: binary_data_size is {size!r:.40}, {len(binary)} bytes are left"
            )
        arrays[spec.name] = _of_bytes(bytes(binary[:size]), spec, shape)
        binary = binary[size:]
    if len(binary):
        raise Refused(400, f"{len(binary)} bytes after the last tensor belong to none; check {HEADER}")
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise Refused(400, f"input {', '.join(f'`{name}`' for name in missing)} is missing")
    default = _flag(_parameters(request, "the request"), "binary_data_output", False)
    wanted: dict[str, bool] = {}
    for tensor in _objects(request, "outputs") if request.get("outputs") is not None else []:
        spec = _spec(tensor, outputs, "output", wanted)
        parameters = _parameters(tensor, spec.name)
        if parameters.get("classification"):
            raise Refused(
                400, f"output `{spec.name}`: the parameter classification is not taken; ask for labels"
            )
        wanted[spec.name] = _flag(parameters, "binary_data", default)
    return Request(id_, arrays, wanted or {spec.name: default for spec in outputs})


def encode(
    name: str, version: str, request: Request, specs: tuple[Spec, ...], answer: Mapping[str, Array]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers. Raises `Refused` (422) where it is too much for JSON."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    tensors: list[str] = []
    chunks: list[bytes] = []
    for output, binary in request.outputs.items():
        array = answer[output]
        facts: dict[str, Any] = {"name": output, "datatype": datatypes[output], "shape": list(array.shape)}
        if binary:
            data = _to_bytes(array)
            chunks.append(data)
            tensors.append(json.dumps(facts | {"parameters": {"binary_data_size": len(data)}}))
            continue
        if array.size > JSON_NUMBERS:
            raise Refused(
                422,
                f"output `{output}` has {array.size:,} elements, the limit for JSON is {JSON_NUMBERS:,}; ask for it in "
                "binary (binary_data), or send less",
            )
        values = ", ".join(_json_values(array.ravel()))
        tensors.append(f'{json.dumps(facts)[:-1]}, "data": [{values}]}}')
    about = {"model_name": name, "model_version": version} | ({"id": request.id} if request.id else {})
    head = f'{json.dumps(about)[:-1]}, "outputs": [{", ".join(tensors)}]}}'.encode()
    if not chunks:
        return head, {"content-type": "application/json"}
    return b"".join([head, *chunks]), {"content-type": "application/octet-stream", HEADER: str(len(head))}


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `Refused` (400), with NaN and Infinity refused like any other word."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(400, f"the body: expected a JSON object, found {_kind(found)}")
    return found


def _objects(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = request.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refused(400, f'"{key}": expected a list of objects')
    return found


def _spec(tensor: dict[str, Any], specs: tuple[Spec, ...], what: str, seen: Mapping[str, object]) -> Spec:
    name = tensor.get("name")
    for spec in specs:
        if spec.name == name:
            if name in seen:
                raise Refused(400, f"{what} `{name}` is there twice")
            return spec
    known = ", ".join(spec.name for spec in specs)
    raise Refused(400, f"no {what} is called {name!r:.60}; there are: {known}")


def _shape(tensor: dict[str, Any], spec: Spec) -> tuple[int, ...]:
    if tensor.get("datatype") != spec.datatype:
        raise Refused(
            400, f"input `{spec.name}` has datatype {tensor.get('datatype')!r:.40}, expected {spec.datatype}"
        )
    shape = tensor.get("shape")
    right = isinstance(shape, list) and len(shape) == len(spec.shape)
    if not isinstance(shape, list) or not right or not all(_is_int(n) and 0 <= n <= MOST for n in shape):
        raise Refused(400, f"input `{spec.name}` has shape {shape!r:.60}, expected {list(spec.shape)}")
    return tuple(shape)


def _parameters(holder: dict[str, Any], name: str) -> dict[str, Any]:
    found = holder.get("parameters")
    if not isinstance(found, dict | None):
        raise Refused(400, f'{name}: "parameters" should be an object, found {_kind(found)}')
    if found and any(key.startswith("shared_memory") for key in found):
        raise Refused(400, f"{name}: shared memory is not taken; send the tensor in the body")
    return found or {}


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    found = parameters.get(key, default)
    if not isinstance(found, bool):
        raise Refused(400, f"{key} is {found!r:.40}, expected true or false")
    return found


def _of_json(tensor: dict[str, Any], spec: Spec, shape: tuple[int, ...]) -> Array:
    """An array of data that is flat, or nested as its shape says."""
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refused(400, f'input `{spec.name}`: "data" should be a list, found {_kind(data)}')
    if len(shape) == 2 and data and isinstance(data[0], list):
        if len(data) != shape[0] or not all(isinstance(row, list) and len(row) == shape[1] for row in data):
            raise Refused(400, f'input `{spec.name}`: "data" is not nested as its shape {list(shape)} says')
        data = [value for row in data for value in row]
    if len(data) != math.prod(shape):
        raise _elements(spec, len(data), shape)
    if spec.datatype == "BYTES":
        for value in data:
            if not isinstance(value, str):
                raise Refused(400, f"input `{spec.name}`: expected strings, found {_kind(value)}")
        return _objects_array(data, shape)
    for value in data:
        if not _is_int(value) or not -MOST - 1 <= value <= MOST:
            raise Refused(400, f"input `{spec.name}`: {value!r:.40} is no {spec.datatype}")
    return np.array(data, dtype=np.int32).reshape(shape)


def _of_bytes(data: bytes, spec: Spec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        texts = list(_strings(data, spec))
        if len(texts) != math.prod(shape):
            raise _elements(spec, len(texts), shape)
        return _objects_array(texts, shape)
    if len(data) != 4 * math.prod(shape):
        raise Refused(
            400, f"input `{spec.name}`: {len(data)} bytes, expected {4 * math.prod(shape)} for {list(shape)}"
        )
    return np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False).reshape(shape)


def _strings(data: bytes, spec: Spec) -> Iterator[str]:
    place = 0
    while place < len(data):
        start = place + 4
        size = int.from_bytes(data[place:start], "little")
        place = start + size
        if place > len(data):
            raise Refused(
                400, f"input `{spec.name}`: its last string ends {place - len(data)} bytes after the data"
            )
        try:
            yield data[start:place].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(400, f"input `{spec.name}`: a string is not UTF-8 ({error.reason})") from error


def _to_bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = (text.encode("utf-8", "surrogatepass") for text in array.ravel().tolist())
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _json_values(values: Array) -> Iterator[str]:
    """In pieces: one call for all would hold up every other thread."""
    for start in range(0, values.size, AT_ONCE):
        yield json.dumps(values[start : start + AT_ONCE].tolist())[1:-1]


def _objects_array(values: list[Any], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _elements(spec: Spec, found: int, shape: tuple[int, ...]) -> Refused:
    expected = math.prod(shape)
    return Refused(
        400, f"input `{spec.name}` has {found} elements, expected {expected} for its shape {list(shape)}"
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")

"""One batch answered by a file of a bundle, whatever its inputs are: text whole, in chunks, or as strings."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.contract import Kind
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import Arrays, Case
from ohlol.serve.runtimes import Run

Answer = Callable[[Case], Arrays]

WRONG = -2  # no label
PRIVATE = 0xF8FF  # stands for what no string can hold


def answer(kind: Kind, run: Run, manifest: Manifest) -> Answer:
    """`run`, a file of `kind`, as a function from a batch to the outputs of `model.onnx`.

    `text` gives no logits.
    """
    return {"model": _whole, "stream": _in_chunks, "text": _as_strings}[kind](run, manifest)


def names(kind: Kind, manifest: Manifest) -> tuple[str, ...]:
    """The outputs that `answer` gives."""
    if kind == "text":
        return ("probabilities", "label_ids")
    return tuple(tensor.name for tensor in contract.outputs(manifest.task))


def _whole(run: Run, manifest: Manifest) -> Answer:
    return lambda case: run({"codepoints": case.codepoints, "lengths": case.lengths})


def _in_chunks(run: Run, manifest: Manifest) -> Answer:
    """Rows of one length together, cut at random places, the state carried from chunk to chunk."""

    def in_chunks(case: Case) -> Arrays:
        random = np.random.default_rng(zlib.crc32(case.name.encode()))
        B, T = case.codepoints.shape
        found = {}
        for tensor in contract.outputs(manifest.task):
            sizes = {contract.BATCH: B, contract.TIME: T}
            shape = [int(sizes.get(str(axis), axis)) for axis in manifest.shape(tensor)]
            found[tensor.name] = np.full(shape, -1 if tensor.name == "label_ids" else 0, dtype=tensor.dtype)
        for length in np.unique(case.lengths).tolist():
            rows = np.flatnonzero(case.lengths == length)
            S, _, H = manifest.shape(contract.inputs("stream")[1])
            state = np.zeros((int(S), len(rows), int(H)), dtype=np.float32)
            start = 0
            while start < length:
                stop = min(length, start + int(random.integers(1, 12)))
                chunk = run({"codepoints": case.codepoints[rows, start:stop], "state": state})
                state = _as_in_contract(chunk, manifest, len(rows), stop - start)["next_state"]
                for name, answers in found.items():
                    answers[rows if manifest.task == "classify" else (rows, slice(start, stop))] = chunk[name]
                start = stop
        return found

    return in_chunks


def _as_in_contract(chunk: Arrays, manifest: Manifest, B: int, T: int) -> Arrays:
    """Raises `ValueError` where an output has another shape or type: numpy would fit it in without a word."""
    for tensor in contract.outputs(manifest.task, "stream"):
        sizes = {contract.BATCH: B, contract.TIME: T}
        shape = tuple(int(sizes.get(str(axis), axis)) for axis in manifest.shape(tensor))
        found = chunk[tensor.name]
        if (found.shape, found.dtype) != (shape, np.dtype(tensor.dtype)):
            raise ValueError(
                f"`{tensor.name}` is {found.dtype} {found.shape}, expected {tensor.dtype} {shape}"
            )
    return chunk


def _as_strings(run: Run, manifest: Manifest) -> Answer:
    """Code points that no string can hold are exchanged for another one that is unknown."""
    known = {ord(character) for character in manifest.alphabet.characters}
    free = (p for p in (*range(PRIVATE, 0xDFFF, -1), *range(0xD7FF, 0, -1)) if p not in known)
    unknown = next(free)
    labels = manifest.labels or ("", "", *manifest.alphabet.characters)
    ids = {label: number for number, label in reversed(list(enumerate(labels)))}

    def as_strings(case: Case) -> Arrays:
        texts = [
            _text(row[:length], unknown) for row, length in zip(case.codepoints, case.lengths, strict=True)
        ]
        found = run({"text": np.array(texts, dtype=object)})
        numbers = np.vectorize(lambda label: ids.get(label, -1), otypes=[np.int32])(found["labels"])
        answers = {"probabilities": found["probabilities"], "label_ids": numbers}
        if manifest.task == "classify":
            return answers
        T = case.codepoints.shape[1]
        missing = T - numbers.shape[1]  # it is as wide as the longest text
        inside = np.arange(T) < case.lengths[:, None]
        answers["label_ids"] = np.pad(numbers, ((0, 0), (0, missing)), constant_values=-1)
        padding = found["labels"][~inside[:, : numbers.shape[1]]]
        answers["label_ids"][~inside] = -1 if (padding == "").all() else WRONG
        answers["probabilities"] = np.pad(found["probabilities"], ((0, 0), (0, missing), (0, 0)))
        return answers

    return as_strings


def _text(points: NDArray[np.int32], unknown: int) -> str:
    return "".join(
        chr(p) if 0 < p < 0xD800 or 0xE000 <= p <= 0x10FFFF else chr(unknown) for p in points.tolist()
    )

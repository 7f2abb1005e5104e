"""The two models of the protocol that a bundle is served as: code points in, as `model.onnx` has them, and strings in.

Both answer by `model.onnx`; the second has the inputs and outputs of text.onnx in docs/contract.md, but normalises
the texts itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import RESERVED, codepoints
from ohlol.artifacts.contract import Kind
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.http.batcher import Batcher
from ohlol.serve.http.limits import Limits, Refused
from ohlol.serve.http.models import TEXT, Models, Served
from ohlol.serve.http.protocol import DTYPES, Array, Request, Spec
from ohlol.serve.model import Model
from ohlol.serve.results import Classified, Result, Tagged
from ohlol.serve.runner import CHARACTERS

Written = TypeVar("Written")
VERSION = str(contract.VERSION)
PLATFORM = "onnxruntime_onnx"


def find(models: Models, name: str, version: str | None) -> tuple[Served, Kind]:
    """The bundle and kind of model that a name of the protocol stands for. Raises `Refused` (404)."""
    kind: Kind = "model" if name in models.paths or not name.endswith(TEXT) else "text"
    served = models.get(name if kind == "model" else name.removesuffix(TEXT))
    if version not in (None, VERSION):
        raise Refused(404, f"model {name!r} has version {VERSION} only, that of ohlol's contract")
    return served, kind


def specs(manifest: Manifest, kind: Kind) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
    """Its inputs and its outputs."""

    def of(tensor: contract.Tensor) -> Spec:
        shape = (axis if isinstance(axis, int) else -1 for axis in manifest.shape(tensor))
        return Spec(tensor.name, DTYPES[tensor.dtype], tuple(shape))

    inputs, outputs = contract.inputs(kind), contract.outputs(manifest.task, kind)
    return tuple(map(of, inputs)), tuple(map(of, outputs))


def metadata(name: str, served: Served, kind: Kind) -> dict[str, object]:
    inputs, outputs = specs(served.manifest, kind)
    return {
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [spec.to_dict() for spec in inputs],
        "outputs": [spec.to_dict() for spec in outputs],
    }


async def infer(
    served: Served,
    kind: Kind,
    request: Request,
    write: Callable[[dict[str, Array]], Written],
    batcher: Batcher,
    limits: Limits,
) -> Written:
    """What `write` makes of the outputs of a request, in a worker unless they are few.

    Raises `Refused` on arrays outside of the contract or the limits.
    """
    model, manifest = served.model, served.manifest
    width = 1 if manifest.task == "classify" else manifest.classes  # numbers in the answer, per character
    if kind == "model":
        points, lengths = request.inputs["codepoints"], request.inputs["lengths"]
        _check(points, lengths)
        limits.check_texts(len(points))
        limits.check_characters(points.size, f"codepoints {list(points.shape)}", width)
        return await batcher.run(lambda: write(model.outputs(points, lengths)), len(points), points.size)
    texts: list[str] = request.inputs["text"].tolist()
    if not texts:
        raise Refused(400, "input `text` has no elements, expected at least 1")
    limits.check_texts(len(texts))
    limits.check_characters(sum(map(len, texts)), "the texts together", width)
    texts = await served.normalised(texts)
    longest = max(map(len, texts))
    padded = sum(map(len, texts)) if manifest.task == "classify" else len(texts) * longest
    limits.check_characters(padded, f"{len(texts)} texts, the longest of {longest:,}", width)
    if manifest.task == "lm":
        return await batcher.run(lambda: write(_following(model, texts)), len(texts), padded)
    if padded * width > CHARACTERS:
        return await batcher.run(lambda: write(of_results(model(texts), manifest)), len(texts), padded)
    return write(of_results(await batcher.answer(served, texts), manifest))


def _check(points: Array, lengths: Array) -> None:
    B, T = points.shape
    if B < 1 or T < 1:
        raise Refused(400, f"input `codepoints` has shape {[B, T]}, expected at least 1 row and 1 character")
    if lengths.shape != (B,):
        raise Refused(
            400, f"input `lengths` has shape {list(lengths.shape)}, expected {[B]}, as `codepoints` has rows"
        )
    if lengths.min() < 1 or lengths.max() > T:
        raise Refused(
            400,
            f"input `lengths`: found {lengths.min()} to {lengths.max()}, expected 1 to {T}, the width of `codepoints`",
        )


def of_results(results: Sequence[Result], manifest: Manifest) -> dict[str, Array]:
    """`labels (B, T) object` and `probabilities (B, T, C) float32` of texts that are tagged; without T of classified ones."""
    B, C = len(results), len(manifest.labels)
    if manifest.task == "classify":
        labels, probabilities = np.full(B, "", dtype=object), np.zeros((B, C), dtype=np.float32)
        for row, result in enumerate(results):
            if isinstance(result, Classified) and result.label is not None:
                labels[row] = result.label
                probabilities[row] = [result.probabilities[label] for label in manifest.labels]
        return {"labels": labels, "probabilities": probabilities}
    T = max(len(result.text) for result in results)
    labels, probabilities = np.full((B, T), "", dtype=object), np.zeros((B, T, C), dtype=np.float32)
    for row, result in enumerate(results):
        if isinstance(result, Tagged):
            labels[row, : len(result.labels)] = list(result.labels)
            probabilities[row, : len(result.labels)] = result.probabilities
    return {"labels": labels, "probabilities": probabilities}


def _following(model: Model[Any], texts: list[str]) -> dict[str, Array]:
    """`labels (B, T) object`, the likeliest next characters, and `probabilities (B, T, V) float32`, of an `lm` model."""
    alphabet = model.manifest.alphabet
    names = np.array([""] * RESERVED + list(alphabet.characters), dtype=object)
    B, T, V = len(texts), max(map(len, texts)), len(alphabet)
    labels, probabilities = np.full((B, T), "", dtype=object), np.zeros((B, T, V), dtype=np.float32)
    rows = [row for row, text in enumerate(texts) if text]  # an empty one is never put to the model
    if rows:
        lengths = np.array([len(texts[row]) for row in rows], dtype=np.int32)
        points = np.zeros((len(rows), T), dtype=np.int32)
        inside = np.arange(T) < lengths[:, None]
        points[inside] = codepoints("".join(texts))
        found = model.outputs(points, lengths)["probabilities"]
        probabilities[rows] = found
        labels[rows] = np.where(inside, names[found.argmax(axis=-1)], "")
    return {"labels": labels, "probabilities": probabilities}

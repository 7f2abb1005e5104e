"""The whole graph of each ONNX file of a bundle: `model`, `stream` and `text`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import PADDING, PAGE, RESERVED, UNKNOWN, Alphabet
from ohlol.artifacts.contract import IR_VERSION, OPSET, Kind
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.manifest import Manifest
from ohlol.export.nodes import Precision, Scope, value
from ohlol.export.recurrent import Layers, reverse, times
from ohlol.train.network import Network

LARGEST = 2**31 - 2**20  # bytes of weights in one file: protobuf's limit, and room for the nodes
FILLER = "(none)"  # fills short rows of characters; it is no character, since it is longer than one


def build(
    network: Network, manifest: Manifest, kind: Kind, precision: Precision, batch: bool
) -> onnx.ModelProto:
    """`network` as an ONNX model without metadata; with `batch`, in the form that is fastest for many rows."""
    s = Scope(precision)
    layers = Layers(copy.deepcopy(network).as_layers(), precision, carried=kind == "stream", batch=batch)
    state: list[str] = []
    ends = ""
    if kind == "text":
        ids, ends = _ids_of_text(s, manifest.alphabet)
    else:
        ids = _ids_of_codepoints(s, manifest.alphabet)
    if kind == "model":
        ends = s.add("Cast", "lengths", out="ends", to=TensorProto.INT64)
    if kind == "stream":
        names = [f"state{k}" for k in range(layers.states * len(layers.layers))]
        state = s.parts("Split", "state", outs=names, axis=0, num_outputs=len(names))
    x, state = layers.write(s, ids, ends, state)
    scores = _head(s, network.head, _last(s, x, ends) if manifest.task == "classify" else x)
    if manifest.task != "classify":
        scores = s.add("Transpose", scores, out="scores", perm=[1, 0, 2])  # (B, T, C)
    _answers(s, manifest, kind, scores, ids, ends)
    if kind == "stream":
        s.add("Concat", *state, out="next_state", axis=0)
    return _model(s, manifest, kind)


def _ids_of_codepoints(s: Scope, alphabet: Alphabet) -> str:
    """`codepoints (B, T) int32` to ids `(T, B) int32`, by a table of pages of 256 code points."""
    pages, table = alphabet.page_table
    size = s.weight("page_size", np.array(PAGE, dtype=np.int32))
    points = s.add("Transpose", "codepoints", out="points", perm=[1, 0])
    low, high = (np.array(limit, dtype=np.int32) for limit in (0, len(pages) * PAGE - 1))
    points = s.add("Clip", points, s.weight("lowest", low), s.weight("highest", high), out="clipped")
    page = s.add("Div", points, size, out="page")
    start = s.add("Gather", s.weight("pages", pages), page, out="page_start")
    place = s.add("Add", start, s.add("Mod", points, size, out="place"), out="entry")
    return s.add("Gather", s.weight("page_table", table), place, out="ids")


def _ids_of_text(s: Scope, alphabet: Alphabet) -> tuple[str, str]:
    """`text (B,) string` to ids `(T + 1, B) int64` and lengths `(B,) int64`, by ONNX Runtime's own operators.

    The step more than the longest text has is padding, so that a batch of empty texts has a step too.
    """
    characters = s.add(
        "Tokenizer", "text", out="characters", domain="com.microsoft",
        mark=0, mincharnum=1, pad_value=FILLER, separators=[""],
    )  # fmt: skip
    ids = s.add(
        "LabelEncoder", characters, out="ids_of_rows", domain="ai.onnx.ml",
        keys_strings=[FILLER, *alphabet.characters],
        values_int64s=[PADDING, *range(RESERVED, len(alphabet))],
        default_int64=UNKNOWN,
    )  # fmt: skip
    s.add("Shape", characters, out="longest", start=1, end=2)
    known = s.add("Min", ids, s.numbers(1), out="is_character")
    ends = s.add("ReduceSum", known, s.numbers(1), out="ends", keepdims=0)
    padded = s.add("Pad", ids, s.numbers(0, 0, 0, 1), out="padded")
    return s.add("Transpose", padded, out="ids", perm=[1, 0]), ends


def _last(s: Scope, x: str, ends: str) -> str:
    """The answer after the whole row, of `x (T, B, W)`: its last step, the first one of the row reversed."""
    if not ends:
        return s.add("Gather", x, s.weight("last_step", np.array(-1)), out="last", axis=0)
    first = s.weight("first_step", np.array(0))
    return s.add("Gather", reverse(s, x, ends, "last_first"), first, out="last", axis=0)


def _head(s: Scope, head: Any, x: str) -> str:
    if isinstance(head, nn.Identity):
        return x
    return times(s, x, "head", *(weight.detach().numpy() for weight in (head.weight, head.bias)))


def _answers(s: Scope, manifest: Manifest, kind: Kind, scores: str, ids: str, ends: str) -> None:
    """The outputs of the contract, from `scores (B, C)` or `(B, T, C)`."""
    inside = _inside(s, manifest, kind, ids, ends)
    if inside:
        wide = s.add("Unsqueeze", inside, s.numbers(-1), out="inside.wide")
        keep = s.add("Cast", wide, out="keep", to=TensorProto.FLOAT)
        s.add("Mul", scores, keep, out="logits")
        s.add("Mul", s.add("Softmax", "logits", out="shares", axis=-1), keep, out="probabilities")
    else:
        s.rename(scores, "logits")
        s.add("Softmax", "logits", out="probabilities", axis=-1)
    if manifest.task == "lm" and kind != "text":
        return
    best = s.add("ArgMax", "logits", out="best", axis=-1, keepdims=0)
    labels = s.add("Cast", best, out="label_ids", to=TensorProto.INT32)
    if inside:
        s.rename(labels, "all_labels")
        none = s.weight("no_label", np.array(-1, dtype=np.int32))
        s.add("Where", inside, "all_labels", none, out="label_ids")
    if kind == "text":
        names = manifest.labels or ("", "", *manifest.alphabet.characters)
        table = s.weight("label_names", np.array([*names, ""], dtype=object))  # -1 is the last one
        s.add("Gather", table, "label_ids", out="labels", axis=0)
        if manifest.task != "classify":  # without the step of padding
            for name in ("labels", "probabilities"):
                s.rename(name, f"{name}.longer")
                s.add("Slice", f"{name}.longer", s.numbers(0), "longest", s.numbers(1), out=name)


def _inside(s: Scope, manifest: Manifest, kind: Kind, ids: str, ends: str) -> str:
    """Where the answers count: `(B, T) bool`, `(B,)` for whole rows, or "" for everywhere."""
    if kind == "text" and manifest.task == "classify":
        return s.add("Greater", ends, s.numbers(0), out="inside")
    if kind == "stream" or manifest.task == "classify":
        return ""
    steps = s.add("Squeeze", s.add("Shape", ids, out="steps", start=0, end=1), out="length")
    zero, one = (s.weight(name, np.array(number)) for name, number in (("zero", 0), ("one", 1)))
    time = s.add("Range", zero, steps, one, out="time")
    return s.add("Less", time, s.add("Unsqueeze", ends, s.numbers(1), out="row_ends"), out="inside")


def _model(s: Scope, manifest: Manifest, kind: Kind) -> onnx.ModelProto:
    size = sum(array.nbytes for array in s.weights.values())
    if size > LARGEST:
        raise ProofError(
            f"the weights are {size:,} bytes, and one ONNX file holds at most {LARGEST:,}: a second file for them breaks "
            "loading in browsers. Train with a smaller embedding_size, hidden_size or alphabet"
        )
    inputs, outputs = (
        [value(tensor.name, manifest.shape(tensor), tensor.dtype) for tensor in tensors]
        for tensors in (contract.inputs(kind), contract.outputs(manifest.task, kind))
    )
    versions = {"": OPSET} | ({"ai.onnx.ml": 3, "com.microsoft": 1} if kind == "text" else {})
    return helper.make_model(
        s.graph("ohlol", inputs, outputs),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        ir_version=IR_VERSION,
        producer_name="ohlol",
    )

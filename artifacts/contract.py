"""The ONNX contract, version 1: what goes into an exported model and what comes out.

Specified in docs/contract.md. A name, type or shape here changes only with `VERSION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

VERSION = 1
OPSET = 18
IR_VERSION = 10
METADATA_PREFIX = "ohlol."  # each fact of the manifest is a metadata property of the .onnx file

Task = Literal["tag", "classify", "lm"]
TASKS: tuple[Task, ...] = get_args(Task)
Kind = Literal["model", "stream", "text"]  # text whole, in chunks, as strings
KINDS: tuple[Kind, ...] = get_args(Kind)

BATCH, TIME, CLASSES, STATES, HIDDEN = "batch", "time", "classes", "states", "hidden"


def many_rows(network: Mapping[str, Any]) -> int:
    """Rows in a batch from which `model.batch.onnx` is the faster one on the CPUs it was measured on; 0: never.

    Measured by `ohlol bench` and in docs/results.md; an RNN has no such file.
    """
    cell, hidden = network.get("cell"), network.get("hidden_size", 0)
    if cell not in ("gru", "lstm") or not isinstance(hidden, int):
        return 0
    if hidden < 64:
        return 128
    return 32 if cell == "gru" and hidden >= 256 else 64


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` holds the names of its axes."""

    name: str
    dtype: Literal["int32", "float32", "string"]
    shape: tuple[str, ...]


CODEPOINTS = Tensor("codepoints", "int32", (BATCH, TIME))
INPUTS = (CODEPOINTS, Tensor("lengths", "int32", (BATCH,)))


def inputs(kind: Kind = "model") -> tuple[Tensor, ...]:
    """The inputs of a file, in order."""
    if kind == "stream":
        return CODEPOINTS, Tensor("state", "float32", (STATES, BATCH, HIDDEN))
    return (Tensor("text", "string", (BATCH,)),) if kind == "text" else INPUTS


def outputs(task: Task, kind: Kind = "model") -> tuple[Tensor, ...]:
    """The outputs of a task's file, in order."""
    rows = (BATCH,) if task == "classify" else (BATCH, TIME)
    logits, probabilities = (
        Tensor(name, "float32", (*rows, CLASSES)) for name in ("logits", "probabilities")
    )
    if kind == "text":
        return Tensor("labels", "string", rows), probabilities
    answers: tuple[Tensor, ...] = (logits, probabilities)
    if task != "lm":
        answers += (Tensor("label_ids", "int32", rows),)
    return (
        (*answers, Tensor("next_state", "float32", (STATES, BATCH, HIDDEN))) if kind == "stream" else answers
    )

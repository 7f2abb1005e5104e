"""The ONNX contract, version 1: what goes into an exported model and what comes out.

Specified in docs/contract.md. A name, type or shape here changes only with `VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

VERSION = 1
OPSET = 18
IR_VERSION = 10
METADATA_PREFIX = "ohlol."  # each fact of the manifest is a metadata property of the .onnx file

Task = Literal["tag", "classify", "lm"]
TASKS: tuple[Task, ...] = get_args(Task)

BATCH, TIME, CLASSES = "batch", "time", "classes"


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` holds the names of its axes."""

    name: str
    dtype: Literal["int32", "float32"]
    shape: tuple[str, ...]


INPUTS = (Tensor("codepoints", "int32", (BATCH, TIME)), Tensor("lengths", "int32", (BATCH,)))


def outputs(task: Task) -> tuple[Tensor, ...]:
    """The outputs of a task's model, in order."""
    rows = (BATCH,) if task == "classify" else (BATCH, TIME)
    numbers = tuple(Tensor(name, "float32", (*rows, CLASSES)) for name in ("logits", "probabilities"))
    return numbers if task == "lm" else (*numbers, Tensor("label_ids", "int32", rows))

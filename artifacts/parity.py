"""Parity: one batch answered twice, compared as a ladder of shape, dtype, values and labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task, outputs

# |found - expected| <= TOLERANCE * (1 + the largest |expected| of the same answer). The scale is that of the
# answer, not of the single number: a logit near 0 is the sum of terms as large as the others', and so is its
# rounding error. 1e-5 is some 80 roundings of float32; the largest error seen, of an LSTM of 256 after ten
# epochs on Shakespeare, was a tenth of what it allows.
TOLERANCE = 1e-5
RULE = f"{TOLERANCE:g} × (1 + the answer's largest |number|)"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One batch to answer: `codepoints (B, T) int32`, `lengths (B,) int32`."""

    name: str
    codepoints: NDArray[np.int32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """How one file answered one case. `labels_differing` counts answers, ties within tolerance aside."""

    file: str
    case: str
    shape: tuple[int, int]
    max_absolute_error: float
    labels_differing: int
    problem: str  # "" where it holds

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Proof:
    """The parity table, every file by every case."""

    rows: list[Row]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "oracle": "the PyTorch network as trained, float32, on the CPU",
            "tolerance": RULE,
            "versions": self.versions,
            "passed": self.passed,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
        }

    def table(self) -> str:
        """For a person: a line for each file and case, and the tolerance."""
        lines = [f"{'file':<22}{'case':<22}{'B×T':>7}  {'max error':>9}  {'labels':>6}  verdict"]
        for row in self.rows:
            size = f"{row.shape[0]}×{row.shape[1]}"
            verdict = "ok" if row.passed else f"FAILED: {row.problem}"
            labels = f"{row.labels_differing}" if row.labels_differing else "equal"
            error = f"{row.max_absolute_error:.1e}"
            lines.append(f"{row.file:<22}{row.case:<22}{size:>7}  {error:>9}  {labels:>6}  {verdict}")
        lines.append(f"tolerance: {RULE}, and every label equal, ties within it aside")
        return "\n".join(lines)


def compare(file: str, case: Case, found: Arrays, expected: Arrays, task: Task) -> Row:
    """One row of the table: shape, then dtype, then values, then labels; the first that fails is named."""
    problem, worst, differing = "", 0.0, 0
    for tensor in outputs(task):
        name = tensor.name
        if name not in found:
            problem = problem or f"no output `{name}`"
            continue
        if name not in expected:
            problem = problem or f"nothing expected of `{name}`"
            continue
        have, want = found[name], expected[name]
        if have.shape != want.shape:
            problem = problem or f"`{name}` has shape {have.shape}, expected {want.shape}"
        elif have.dtype != want.dtype:
            problem = problem or f"`{name}` is {have.dtype}, expected {want.dtype}"
        elif name == "label_ids":
            differing = (
                int(_differs(have, want, expected["logits"]).sum()) if "logits" in expected else want.size
            )
            if differing:
                problem = problem or f"{differing} of {want.size} labels differ"
        else:
            error = np.abs(have - want)
            worst = max(worst, float(error.max()))
            if not (error <= allowed(want)).all():  # a NaN fails too
                problem = problem or f"`{name}` differs by {error.max():.2g}"
    B, T = case.codepoints.shape
    return Row(file, case.name, (B, T), worst, differing, problem)


def allowed(expected: NDArray[Any]) -> NDArray[Any]:
    """The largest error allowed in each answer, `(..., 1)`."""
    scale: NDArray[Any] = np.abs(expected).max(axis=-1, keepdims=True)
    return TOLERANCE * (1 + scale)


def _differs(have: NDArray[Any], want: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Where labels differ, but for one whose logit is as near to the best as two errors can bring it."""
    other: NDArray[np.bool_] = have != want
    classes = logits.shape[-1]
    possible = (want >= 0) & (have >= 0) & (have < classes)
    index = np.clip(have, 0, classes - 1)[..., None].astype(np.int64)
    behind = logits.max(axis=-1) - np.take_along_axis(logits, index, axis=-1)[..., 0]
    tie = possible & (behind <= 2 * allowed(logits)[..., 0])
    other &= ~tie
    return other

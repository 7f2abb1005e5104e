"""Parity: one batch answered twice, compared as a ladder of shape, dtype, values and labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task, outputs

# |found - expected| <= ABSOLUTE + RELATIVE * |expected|. One float32 rounding at 1.0 is 6e-8; summing some
# hundred products in another order, over some hundred steps, was seen to move a logit by up to 1e-6.
ABSOLUTE = 1e-5
RELATIVE = 1e-5

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
            "tolerance": {"absolute": ABSOLUTE, "relative": RELATIVE},
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
        lines.append(f"tolerance: {ABSOLUTE:g} + {RELATIVE:g} × |expected|, and every label equal")
        return "\n".join(lines)


def compare(file: str, case: Case, found: Arrays, expected: Arrays, task: Task) -> Row:
    """One row of the table: shape, then dtype, then values, then labels; the first that fails is named."""
    problem, worst, differing = "", 0.0, 0
    for tensor in outputs(task):
        name = tensor.name
        if name not in found:
            problem = problem or f"no output `{name}`"
            continue
        have, want = found[name], expected[name]
        if have.shape != want.shape:
            problem = problem or f"`{name}` has shape {have.shape}, expected {want.shape}"
        elif have.dtype != want.dtype:
            problem = problem or f"`{name}` is {have.dtype}, expected {want.dtype}"
        elif name == "label_ids":
            differing = int(_differs(have, want, expected["logits"]).sum())
            if differing:
                problem = problem or f"{differing} of {want.size} labels differ"
        else:
            error = np.abs(have - want)
            worst = max(worst, float(error.max()))
            if not (error <= ABSOLUTE + RELATIVE * np.abs(want)).all():  # a NaN fails too
                problem = problem or f"`{name}` differs by {error.max():.2g}"
    B, T = case.codepoints.shape
    return Row(file, case.name, (B, T), worst, differing, problem)


def _differs(have: NDArray[Any], want: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Where labels differ although the two best logits are further apart than both tolerances."""
    other: NDArray[np.bool_] = have != want
    if logits.shape[-1] < 2:
        return other
    two_best = np.sort(logits, axis=-1)[..., -2:]
    near = two_best[..., 1] - two_best[..., 0] <= 2 * (ABSOLUTE + RELATIVE * np.abs(two_best[..., 1]))
    tie = near & (want >= 0) & (have >= 0)
    other &= ~tie
    return other

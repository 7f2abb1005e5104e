"""Parity: one batch answered twice, compared as a ladder of shape, dtype, values and labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# |found - expected| <= TOLERANCE * (1 + the largest |expected| of the same answer). The scale is that of the
# answer, not of the single number: a logit near 0 is the sum of terms as large as the others', and so is its
# rounding error. 1e-5 is some 80 roundings of float32; the largest error seen, of an LSTM of 256 after ten
# epochs on Shakespeare, was a tenth of what it allows.
TOLERANCE = 1e-5
# int8 rounds states to 1/127, and where float32 and float64 fall on two sides of a half, one number of the state
# is a step apart. The largest error seen, of an LSTM of 256 trained on Shakespeare, was a fifth of what it allows.
INT8_TOLERANCE = 0.05
RULE = "tolerance × (1 + the answer's largest |number|)"
DTYPES = {"logits": np.float32, "probabilities": np.float32, "label_ids": np.int32}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One batch to answer: `codepoints (B, T) int32`, `lengths (B,) int32`."""

    name: str
    codepoints: NDArray[np.int32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """How one file answered one case in one runtime. `labels_differing` counts answers, ties within tolerance
    aside; the relative error is that of the answer, beside its largest |number|."""

    file: str
    runtime: str
    case: str
    shape: tuple[int, int]
    max_absolute_error: float
    max_relative_error: float
    labels_differing: int
    tolerance: float
    problem: str  # "" where it holds

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Proof:
    """The parity table, every file in every runtime by every case."""

    oracle: str
    rows: list[Row]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "oracle": self.oracle,
            "rule": RULE,
            "versions": self.versions,
            "passed": self.passed,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON, a line for each row."""
        facts = self.to_dict()
        rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in facts.pop("rows"))
        return json.dumps(facts, ensure_ascii=False, indent=2)[:-2] + f',\n  "rows": [\n    {rows}\n  ]\n}}\n'

    def table(self) -> str:
        """For a person: a line for each file and runtime, with its worst case, and one for each failure."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.file, row.runtime), []).append(row)
        width = max([4, *(len(file) for file, _ in groups)]) + 2
        lines = [
            f"{'file':<{width}}{'runtime':<13}{'cases':>5}  {'max error':>9}  {'relative':>8}  "
            f"{'at':<20}{'labels':>6}  {'tolerance':>9}  verdict"
        ]
        for (file, runtime), rows in groups.items():
            worst = max(rows, key=lambda row: row.max_absolute_error)  # a NaN is in `problem`
            differing = sum(row.labels_differing for row in rows)
            failed = sum(not row.passed for row in rows)
            lines.append(
                f"{file:<{width}}{runtime:<13}{len(rows):>5}  {worst.max_absolute_error:>9.1e}  "
                f"{max(row.max_relative_error for row in rows):>8.1e}  {worst.case:<20}"
                f"{differing or 'equal':>6}  {worst.tolerance:>9g}  "
                + (f"FAILED in {failed}" if failed else "ok")
            )
        for row in self.rows:
            if not row.passed:
                B, T = row.shape
                lines.append(f"FAILED: {row.file} in {row.runtime}, {row.case} ({B}×{T}): {row.problem}")
        lines.append(f"oracle: {self.oracle}")
        lines.append(f"allowed: {RULE}, and every label equal, ties within it aside")
        return "\n".join(lines)


@np.errstate(
    over="ignore", invalid="ignore"
)  # an answer that is no number is a row that fails, not a warning
def compare(
    file: str,
    runtime: str,
    case: Case,
    found: Arrays,
    expected: Arrays,
    names: Sequence[str],
    tolerance: float = TOLERANCE,
) -> Row:
    """One row of the table: shape, then dtype, then values, then labels; the first that fails is named.

    `expected` holds numbers of any precision, `logits` among them, by which ties are told. Labels must be
    equal, ties within the tolerance aside.
    """
    problem, absolute, relative, differing = "", 0.0, 0.0, 0
    for name in names:
        if name not in found:
            problem = problem or f"no output `{name}`"
            continue
        if name not in expected or "logits" not in expected:
            problem = problem or f"nothing expected of `{name}`"
            continue
        have, want = found[name], expected[name]
        if have.shape != want.shape:
            problem = problem or f"`{name}` has shape {have.shape}, expected {want.shape}"
        elif have.dtype != DTYPES[name]:
            problem = problem or f"`{name}` is {have.dtype}, expected {np.dtype(DTYPES[name])}"
        elif name == "label_ids":
            differing = int(_differs(have, want, expected["logits"], tolerance).sum())
            if differing:
                problem = problem or f"{differing} of {want.size} labels differ"
        else:
            error = np.abs(have - want)
            absolute = max(absolute, float(error.max()))
            largest = np.abs(want).max(axis=-1, keepdims=True)
            relative = max(relative, float((error / np.where(largest > 0, largest, 1)).max()))
            if not (error <= allowed(want, tolerance)).all():  # a NaN fails too
                problem = problem or f"`{name}` differs by {error.max():.2g}"
    B, T = case.codepoints.shape
    return Row(file, runtime, case.name, (B, T), absolute, relative, differing, tolerance, problem)


def allowed(expected: NDArray[Any], tolerance: float = TOLERANCE) -> NDArray[Any]:
    """The largest error allowed in each answer, `(..., 1)`."""
    scale: NDArray[Any] = np.abs(expected).max(axis=-1, keepdims=True)
    return tolerance * (1 + scale)


def _differs(
    have: NDArray[Any], want: NDArray[Any], logits: NDArray[Any], tolerance: float
) -> NDArray[np.bool_]:
    """Where labels differ, but for one whose logit is as near to the best as two errors can bring it."""
    other: NDArray[np.bool_] = have != want
    classes = logits.shape[-1]
    possible = (want >= 0) & (have >= 0) & (have < classes)
    index = np.clip(have, 0, classes - 1)[..., None].astype(np.int64)
    behind = logits.max(axis=-1) - np.take_along_axis(logits, index, axis=-1)[..., 0]
    tie = possible & (behind <= 2 * allowed(logits, tolerance)[..., 0])
    other &= ~tie
    return other

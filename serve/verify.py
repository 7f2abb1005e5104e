"""The proof replayed where a bundle landed, from its own test data; neither torch nor onnx needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import PADDING, UNKNOWN
from ohlol.artifacts.bundle import ONNX, Bundle, Layout, open_named
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.onnx_file import read_tensor
from ohlol.artifacts.parity import INT8_TOLERANCE, TOLERANCE, Arrays, Case, Proof, compare
from ohlol.serve import replay, runtimes
from ohlol.serve.model import of_bundle
from ohlol.serve.opening import check_file

ORACLE = "the bundle's test data: the PyTorch network in float64, when the bundle was made"


def verify(path: str | Path, use: Sequence[str] = ("onnxruntime",)) -> Proof:
    """Run every ONNX file of the bundle on its test data here, in the runtimes `use`; the parity table.

    Raises `BundleError` where the bundle cannot be opened or holds no test data, `OhlolError` where a
    runtime is not installed.
    """
    bundle = open_named(path)
    manifest = bundle.manifest
    of_bundle(bundle)  # its contract and facts
    rows = []
    for name, kind in ONNX.items():
        if name not in bundle.contents:
            continue
        check_file(bundle.contents[name], kind, manifest, str(bundle.path / name))
        cases = _test_data(bundle, Layout.expected.get(name, Layout.expected[Layout.onnx]))
        if not cases:
            raise BundleError(f"{bundle.path}: holds no test data to verify {name} by; export it again")
        tolerance = INT8_TOLERANCE if name == Layout.int8 else TOLERANCE
        for runtime in use if kind != "text" else ("onnxruntime",):
            run = runtimes.run_in(runtime, bundle.contents[name], str(bundle.path / name))
            answer, names = replay.answer(kind, run, manifest), replay.names(kind, manifest)
            rows += [
                compare(
                    name,
                    runtime,
                    case,
                    _answered(answer, case, f"{bundle.path / name}"),
                    expected,
                    names,
                    tolerance,
                )
                for case, expected in cases
            ]
    used = dict.fromkeys([*(row.runtime for row in rows), "numpy"])
    return Proof(ORACLE, rows, {name: runtimes.runtime_version(name) for name in used})


def _answered(answer: replay.Answer, case: Case, where: str) -> Arrays:
    try:
        return answer(case)
    except (BundleError, LookupError, TypeError, ValueError) as error:  # what no file of the contract answers
        raise BundleError(f"{where}: cannot answer {case.name} ({error!s:.200}); export it again") from error


def _test_data(bundle: Bundle, prefix: str) -> list[tuple[Case, Arrays]]:
    """The cases, each with the outputs whose files begin with `prefix`."""
    task = bundle.manifest.task
    groups = {"input": [t.name for t in contract.INPUTS], prefix: [t.name for t in contract.outputs(task)]}
    cases: list[tuple[Case, Arrays]] = []
    while (folder := Layout.test_data.format(len(cases))) + f"/{prefix}_0.pb" in bundle.contents:
        given, expected = (
            dict(
                read_tensor(bundle.contents[name], str(bundle.path / name))
                for number, _ in enumerate(names)
                if (name := f"{folder}/{group}_{number}.pb") in bundle.contents
            )
            for group, names in groups.items()
        )
        for group, found in (("input", given), (prefix, expected)):
            if found.keys() != set(groups[group]):
                raise BundleError(
                    f"{bundle.path / folder}: its {group}s are {', '.join(found) or 'missing'}, expected "
                    f"{', '.join(groups[group])}; export it again"
                )
        case = Case(folder, given["codepoints"], given["lengths"])
        _check_data(case, expected, bundle, f"{bundle.path / folder}")
        if task == "lm":
            expected["label_ids"] = _next(expected["logits"], case)
        cases.append((case, expected))
    return cases


def _check_data(case: Case, expected: Arrays, bundle: Bundle, where: str) -> None:
    """Raise `BundleError` where test data is outside of the contract: a runtime may end the process by it."""
    points, lengths = case.codepoints, case.lengths
    B, T = points.shape if points.ndim == 2 else (0, 0)
    right = points.dtype == lengths.dtype == np.int32 and lengths.shape == (B,) and B > 0 < T
    right = right and bool((lengths >= 1).all() and (lengths <= T).all())
    for tensor in contract.outputs(bundle.manifest.task):
        sizes = {contract.BATCH: B, contract.TIME: T}
        shape = tuple(sizes.get(str(axis), axis) for axis in bundle.manifest.shape(tensor))
        found = expected[tensor.name]
        right = right and (found.shape, found.dtype) == (shape, np.dtype(tensor.dtype))
    if not right:
        raise BundleError(
            f"{where}: its shapes, types or lengths are not those of the contract; export it again"
        )
    if not all(np.isfinite(numbers).all() for numbers in expected.values()):
        raise BundleError(f"{where}: what it expects is not finite, so any answer would do; export it again")


def _next(logits: NDArray[np.float32], case: Case) -> NDArray[np.int32]:
    """What text.onnx of an `lm` model names as next: no text has a name for the unknown character."""
    best: NDArray[np.int32] = logits.argmax(axis=-1).astype(np.int32)
    best[best == UNKNOWN] = PADDING
    best[np.arange(best.shape[1]) >= case.lengths[:, None]] = -1
    return best

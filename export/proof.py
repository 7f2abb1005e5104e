"""The proof: every exported file, in every runtime at hand, against the PyTorch network in float64."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ohlol.artifacts.alphabet import PADDING, RESERVED, UNKNOWN, Alphabet
from ohlol.artifacts.contract import Kind, Task, outputs
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import INT8_TOLERANCE, TOLERANCE, Arrays, Case, Proof, compare
from ohlol.export.graph import RoundedSteps
from ohlol.export.nodes import Precision, stored
from ohlol.export.recurrent import STEP
from ohlol.serve import replay, runtimes
from ohlol.serve.replay import Answer
from ohlol.serve.runtimes import Run
from ohlol.train.network import Network

ORACLE = "the PyTorch network in float64; for fp16 and int8, rounded as the file is"
EAGER = "(PyTorch, float32)"
REFERENCE = "onnx"  # onnx's own ReferenceEvaluator


@dataclass(frozen=True)
class Claim:
    """That `answer`, of one file in one runtime, gives the outputs `names` as the network does."""

    file: str
    runtime: str
    answer: Answer
    names: Sequence[str]
    precision: Precision = "single"
    version: str = ""  # of the runtime, where that is no package


def prove(network: Network, alphabet: Alphabet, claims: Iterable[Claim], cases: Sequence[Case]) -> Proof:
    """Run every claim on every case against `network`, the network as it was trained."""
    expected: dict[Precision, list[Arrays]] = {}
    rows = []
    versions = {name: runtimes.runtime_version(name) for name in ("torch", "numpy")}
    for claim in claims:
        versions.setdefault(claim.runtime, claim.version or runtimes.runtime_version(claim.runtime))
        if claim.precision not in expected:
            oracle = rounded(network, claim.precision)
            expected[claim.precision] = [expected_outputs(oracle, alphabet, case) for case in cases]
        tolerance = INT8_TOLERANCE if claim.precision == "int8" else TOLERANCE
        own, typical = [], []
        for case, answer in zip(cases, expected[claim.precision], strict=True):
            try:
                found, raised = claim.answer(case), ""
            except Exception as error:  # whatever a runtime raises: a file that cannot be run is not proved
                found, raised = {}, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.100}"
            row = compare(claim.file, claim.runtime, case, found, answer, claim.names, tolerance)
            own.append(replace(row, problem=raised) if raised else row)
            typical.append(_typical(found, answer))
        # A state on the other side of a half moves single answers; a wrong number in the file moves them all.
        if claim.precision == "int8" and float(np.median(typical)) > TOLERANCE:
            problem = (
                f"typically off by {np.median(typical):.1e}, where only single steps of rounding may differ"
            )
            own = [replace(row, problem=row.problem or problem) for row in own]
        rows += own
    return Proof(ORACLE, rows, versions)


def _typical(found: Arrays, expected: Arrays) -> float:
    """The median error of the logits, beside 1 + the largest of each answer."""
    have, want = found.get("logits"), expected["logits"]
    if have is None or have.shape != want.shape:
        return 0.0  # which the row says already
    return float(np.median(np.abs(have - want) / (1 + np.abs(want).max(axis=-1, keepdims=True))))


def expected_outputs(
    network: Network, alphabet: Alphabet, case: Case, dtype: torch.dtype = torch.float64
) -> Arrays:
    """The contract's outputs by the network itself, in `dtype`; for `lm`, `label_ids` too.

    Characters are looked up in a dictionary, not in the page table that the exported files carry.
    """
    known = {ord(character): number for number, character in enumerate(alphabet.characters, start=RESERVED)}
    numbers = [[known.get(point, UNKNOWN) for point in row] for row in case.codepoints.tolist()]
    network = copy.deepcopy(network).to(dtype).eval()
    with torch.inference_mode():
        ids, lengths = torch.tensor(numbers), torch.from_numpy(case.lengths).long()
        logits = network(ids, lengths)
        probabilities = logits.softmax(-1)
        labels = logits.argmax(-1)
        if network.task != "classify":
            padding = torch.arange(ids.shape[1]) >= lengths[:, None]
            logits, probabilities = (x.masked_fill(padding[..., None], 0.0) for x in (logits, probabilities))
            if network.task == "lm":  # no text has a name for the unknown character, nor for padding
                labels = labels.masked_fill(labels == UNKNOWN, PADDING)
            labels = labels.masked_fill(padding, -1)
    arrays = {"logits": logits.numpy(), "probabilities": probabilities.numpy()}
    return arrays | {"label_ids": labels.numpy().astype(np.int32)}


def rounded(network: Network, precision: Precision) -> Network:
    """`network` rounded as a file of `precision` is: its matrices, and for int8 the states in products."""
    if precision == "single":
        return network
    network = copy.deepcopy(network).as_layers()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                near = torch.from_numpy(stored(weight.numpy(), precision))
                _check_rounding(weight, near, precision)
                weight.copy_(near)
    if precision == "int8":
        for directions in network.layers:
            assert isinstance(directions, nn.ModuleList)
            shown = directions is not network.layers[-1] or isinstance(network.head, nn.Linear)
            for number, layer in enumerate(directions):
                directions[number] = RoundedSteps(layer, network.cell, float(STEP), shown)
    return network


def _check_rounding(weight: Tensor, near: Tensor, precision: Precision) -> None:
    """The graph and its oracle round by the same function; what it may do to a weight is told apart from it."""
    if precision == "int8":
        allowed = weight.abs().amax(dim=1, keepdim=True) / 63 * 0.501  # half a step of 7 bits, row by row
    else:
        allowed = weight.abs() * 2.0**-11 + 2.0**-25  # half's 11 bits, and its subnormal numbers
    if not bool(((near - weight).abs() <= allowed).all()):
        raise ProofError(
            f"{precision}: a weight is rounded further than {precision} has to; please report this"
        )


def eager(network: Network, alphabet: Alphabet) -> Claim:
    """The network itself in float32: how near the truth PyTorch comes, beside the exported files."""
    names = [tensor.name for tensor in outputs(network.task)]

    def run(case: Case) -> Arrays:
        return expected_outputs(network, alphabet, case, torch.float32)

    return Claim(EAGER, "torch", run, names)


def onnx_claims(
    file: str,
    model: bytes,
    kind: Kind,
    manifest: Manifest,
    precision: Precision = "single",
    use: Sequence[str] | None = None,
) -> list[Claim]:
    """A claim for each runtime of `use`, else for each at hand; strings are for ONNX Runtime alone."""
    if kind == "text":
        use = ["onnxruntime"]
    elif use is None:
        use = [*runtimes.installed(), REFERENCE]
    runs: dict[str, Run] = {
        name: _reference(model) if name == REFERENCE else runtimes.run_in(name, model, file) for name in use
    }
    names = replay.names(kind, manifest)
    return [
        Claim(file, runtime, replay.answer(kind, run, manifest), names, precision)
        for runtime, run in runs.items()
    ]


def _reference(model: bytes) -> Run:
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
    names: list[str] = list(evaluator.output_names)

    def run(feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # numpy's products now and then warn of what their unused lanes held; an answer that is wrong, or not a
        # number, fails by its comparison.
        with np.errstate(all="ignore"):
            return dict(zip(names, evaluator.run(names, feed), strict=True))

    return run


def torch_claim(file: str, module: Any, task: Task) -> Claim:
    """A claim of a module with the contract's inputs and outputs."""
    names = [tensor.name for tensor in outputs(task)]

    def run(case: Case) -> Arrays:
        with torch.inference_mode():
            answers = module(torch.from_numpy(case.codepoints), torch.from_numpy(case.lengths))
        return {name: answer.numpy() for name, answer in zip(names, answers, strict=True)}

    return Claim(file, "torch", run, names)


def torchscript(archive: bytes) -> nn.Module:
    """`archive` must be one we wrote ourselves just now: TorchScript's loader has no safe mode."""
    return torch.jit.load(io.BytesIO(archive))  # type: ignore[no-untyped-call, no-any-return]


def program(archive: bytes) -> nn.Module:
    """A `.pt2` archive, again only one that we wrote ourselves just now."""
    return torch.export.load(io.BytesIO(archive)).module()


def draw_cases(alphabet: Alphabet, seed: int = 0) -> list[Case]:
    """The batches of a proof: none of the size that was traced, the places where recurrence breaks."""
    random = np.random.default_rng(seed)
    known = np.array([ord(c) for c in alphabet.characters or "a"], dtype=np.int32)

    def known_points(*shape: int) -> NDArray[np.int32]:
        return known[random.integers(len(known), size=shape)]

    def full(*shape: int) -> NDArray[np.int32]:
        return np.full(shape[0], shape[1], dtype=np.int32)

    # Every known code point, and the neighbours of each, where a page may end.
    own = np.unique((known[:, None] + np.array([-1, 0, 1], dtype=np.int32)).ravel())
    every = np.resize(own, (-(-len(own) // 256), 256))
    # NUL, a control, a lone surrogate, private use, an emoji, the last code point, and four that are none.
    strange = np.array(
        [0, 7, 0xD800, 0xE000, 0x1F469, 0x10FFFF, 0x110000, -1, -(2**31), 2**31 - 1], dtype=np.int32
    )
    mixed = known_points(2, 30)
    mixed[:, ::3] = strange
    ragged = known_points(9, 16)
    ragged_lengths = np.array([16, 1, 7, 2, 16, 11, 3, 15, 9], dtype=np.int32)
    garbage = known_points(3, 9)
    garbage[1, 4:], garbage[2, 1:] = strange[:5], strange[-8:]
    many = known_points(64, 11)  # graphs have another form for many rows
    return [
        Case("one character", known_points(1, 1), full(1, 1)),
        Case("one row", known_points(1, 7), full(1, 7)),
        Case("a batch", known_points(4, 12), full(4, 12)),
        Case("ragged rows", ragged, ragged_lengths),
        Case("a ragged row alone", ragged[2:3, :7], ragged_lengths[2:3]),
        Case("many ragged rows", many, random.integers(1, 12, size=64).astype(np.int32)),
        Case("every character", every, full(*every.shape)),
        Case("unknown characters", mixed, np.array([30, 17], dtype=np.int32)),
        Case("garbage in padding", garbage, np.array([9, 4, 1], dtype=np.int32)),
        Case("long rows", known_points(2, 300), np.array([300, 211], dtype=np.int32)),
    ]


def require(proof: Proof) -> None:
    """Raise `ProofError`, with the table, unless every row holds."""
    if not proof.passed:
        wrong = sum(not row.passed for row in proof.rows)
        chaotic = any(row.file == EAGER and not row.passed for row in proof.rows)
        why = (
            "PyTorch itself, in float32, is as far from float64: the network magnifies rounding (weights that are too "
            "large), and no export of it can be proved. "
        )
        raise ProofError(
            f"{why if chaotic else ''}the export does not answer as PyTorch does: {wrong} of {len(proof.rows)} rows fail, and no bundle "
            f"was written\n{proof.table()}"
        )

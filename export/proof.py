"""The proof: PyTorch against TorchScript against ONNX Runtime, on sizes that were not traced."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import RESERVED, UNKNOWN, Alphabet
from ohlol.artifacts.contract import Task, outputs
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.parity import Arrays, Case, Proof, compare
from ohlol.train.network import Network

Runner = Callable[[Case], Arrays]


def prove(network: Network, alphabet: Alphabet, files: dict[str, Runner], cases: Sequence[Case]) -> Proof:
    """Run every file on every case against `network`, the network as it was trained."""
    expected = [expected_outputs(network, alphabet, case) for case in cases]
    rows = [
        compare(name, case, run(case), answer, network.task)
        for name, run in files.items()
        for case, answer in zip(cases, expected, strict=True)
    ]
    versions = {
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
    return Proof(rows, versions)


def expected_outputs(network: Network, alphabet: Alphabet, case: Case) -> Arrays:
    """The contract's outputs by the network itself, eager.

    Characters are looked up in a dictionary, not in the page table that the exported files carry.
    """
    known = {ord(character): number for number, character in enumerate(alphabet.characters, start=RESERVED)}
    numbers = [[known.get(point, UNKNOWN) for point in row] for row in case.codepoints.tolist()]
    network.eval()
    with torch.inference_mode():
        ids, lengths = torch.tensor(numbers), torch.from_numpy(case.lengths).long()
        logits = network(ids, lengths)
        probabilities = logits.softmax(-1)
        labels = logits.argmax(-1)
        if network.task != "classify":
            padding = torch.arange(ids.shape[1]) >= lengths[:, None]
            logits, probabilities = (x.masked_fill(padding[..., None], 0.0) for x in (logits, probabilities))
            labels = labels.masked_fill(padding, -1)
    arrays = {"logits": logits.numpy(), "probabilities": probabilities.numpy()}
    if network.task != "lm":
        arrays["label_ids"] = labels.numpy().astype(np.int32)
    return arrays


def onnx_runner(model: bytes) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(case: Case) -> Arrays:
        feed = {"codepoints": case.codepoints, "lengths": case.lengths}
        return dict(zip(names, session.run(names, feed), strict=True))

    return run


def torchscript_runner(archive: bytes, task: Task) -> Runner:
    """`archive` must be one we wrote ourselves just now: TorchScript's loader has no safe mode."""
    module = torch.jit.load(io.BytesIO(archive))  # type: ignore[no-untyped-call]
    names = [tensor.name for tensor in outputs(task)]

    def run(case: Case) -> Arrays:
        with torch.inference_mode():
            answers = module(torch.from_numpy(case.codepoints), torch.from_numpy(case.lengths))
        return {name: answer.numpy() for name, answer in zip(names, answers, strict=True)}

    return run


def draw_cases(alphabet: Alphabet, seed: int = 0) -> list[Case]:
    """The batches of a proof: none of the size that was traced, the places where recurrence breaks."""
    random = np.random.default_rng(seed)
    known = alphabet.characters or "a"

    def known_points(*shape: int) -> NDArray[np.int32]:
        points = np.array([ord(c) for c in known], dtype=np.int32)
        return points[random.integers(len(points), size=shape)]

    def full(*shape: int) -> NDArray[np.int32]:
        return np.full(shape[0], shape[1], dtype=np.int32)

    # Every known code point, and the neighbours of each, where a page may end.
    own = np.unique(np.array([ord(c) + d for c in known for d in (-1, 0, 1)], dtype=np.int32))
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
    return [
        Case("one character", known_points(1, 1), full(1, 1)),
        Case("one row", known_points(1, 7), full(1, 7)),
        Case("a batch", known_points(4, 12), full(4, 12)),
        Case("ragged rows", ragged, ragged_lengths),
        Case("a ragged row alone", ragged[2:3, :7], ragged_lengths[2:3]),
        Case("every character", every, full(*every.shape)),
        Case("unknown characters", mixed, np.array([30, 17], dtype=np.int32)),
        Case("garbage in padding", garbage, np.array([9, 4, 1], dtype=np.int32)),
        Case("long rows", known_points(2, 300), np.array([300, 211], dtype=np.int32)),
    ]


def require(proof: Proof) -> None:
    """Raise `ProofError`, with the table, unless every row holds."""
    if not proof.passed:
        wrong = sum(not row.passed for row in proof.rows)
        raise ProofError(
            f"the export does not answer as PyTorch does: {wrong} of {len(proof.rows)} rows fail, and no bundle "
            f"was written\n{proof.table()}"
        )

"""The exported graphs beside PyTorch eager, TorchScript and OpenVINO, side by side in one run.

    python benchmarks/graphs.py [--embedding 64] [--rounds 9] > graphs.md

A tagger from code points to labels, alphabet of 100 characters, embedding of `--embedding`, one layer, one way and
both, of each cell, weights drawn at random; every peer in float32 on one thread. Each round times every form once,
so that whatever else the machine does falls on all of them; the table has the median of the rounds in
milliseconds, the ratio of our best form to the best peer, and the largest error of each form against float64.
Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import Arrays, Case
from ohlol.export.formats import to_onnx, to_torchscript
from ohlol.export.graph import Graph
from ohlol.export.proof import expected_outputs, torch_claim, torchscript
from ohlol.serve.runtimes import Run, run_in, runtime_version
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection

SIZES = ((1, 1), (1, 64), (32, 64), (256, 64))
HIDDEN = (8, 64, 256)
OURS = ("model.onnx", "model.batch.onnx")
ALPHABET = Alphabet("".join(map(chr, range(33, 133))))
LABELS = ("B", "I", "O", "S")


def forms(model: ModelSection) -> tuple[Network, dict[str, Callable[[Case], Arrays]]]:
    """A network and every way of running it, by name."""
    torch.manual_seed(0)
    network = Network(model, "tag", len(ALPHABET), len(LABELS)).eval()
    manifest = Manifest("tag", ALPHABET, LABELS, None, model.model_dump())
    files = {"model.onnx": to_onnx(network, manifest)}
    if model.cell != "rnn":
        files["model.batch.onnx"] = to_onnx(network, manifest, batch=True)
    found = {name: ready(run_in("onnxruntime", content, name)) for name, content in files.items()}
    found["PyTorch eager"] = torch_claim("", Graph(network, ALPHABET).eval(), "tag").answer
    found["TorchScript"] = torch_claim("", torchscript(to_torchscript(network, ALPHABET)), "tag").answer
    for name, content in files.items():
        found[f"OpenVINO, {name}"] = ready(run_in("openvino", content, name))
    return network, found


def ready(run: Run) -> Callable[[Case], Arrays]:
    return lambda case: run({"codepoints": case.codepoints, "lengths": case.lengths})


def seconds(answer: Callable[[Case], Arrays], case: Case, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        answer(case)
    return (time.perf_counter() - start) / repeats


def measure(network: Network, answers: dict[str, Callable[[Case], Arrays]], case: Case, rounds: int) -> tuple[
    dict[str, float], dict[str, float]
]:  # fmt: skip
    """Median seconds, and largest error of the logits, of each form."""
    expected = expected_outputs(network, ALPHABET, case)["logits"]
    errors = {
        name: float(np.abs(answer(case)["logits"] - expected).max()) for name, answer in answers.items()
    }
    repeats = {name: max(1, int(0.02 / seconds(answer, case, 1))) for name, answer in answers.items()}
    times: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(rounds):
        for name, answer in answers.items():
            times[name].append(seconds(answer, case, repeats[name]))
    return {name: median(taken) for name, taken in times.items()}, errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {runtime_version(name)}" for name in ("onnxruntime", "torch", "openvino"))
    print(f"{versions}; embedding {given.embedding}, {given.rounds} rounds, one thread; times in ms\n")
    names = [*OURS, "PyTorch eager", "TorchScript", *(f"OpenVINO, {name}" for name in OURS)]
    print("| cell | H | B×T |", " | ".join(names), "| ours / best peer | largest error: ours, peers |")
    print("|---|---|---|" + "---|" * (len(names) + 2))
    random = np.random.default_rng(0)
    for cell, both, H in itertools.product(("rnn", "gru", "lstm"), (False, True), HIDDEN):
        model = ModelSection(cell=cell, hidden_size=H, embedding_size=given.embedding, bidirectional=both)
        network, answers = forms(model)
        for B, T in SIZES:
            points = random.integers(33, 133, size=(B, T)).astype(np.int32)
            lengths = np.sort(random.integers(max(1, T // 2), T + 1, size=B)).astype(np.int32)
            lengths[-1] = T
            times, errors = measure(network, answers, Case("drawn", points, lengths), given.rounds)
            ours = min(times[name] for name in OURS if name in times)
            peers = min(taken for name, taken in times.items() if name not in OURS)
            cells = [f"{times[name] * 1e3:.3f}" if name in times else "–" for name in names]
            worst = [max(errors[n] for n in errors if (n in OURS) == own) for own in (True, False)]
            print(
                f"| {cell}{', both ways' if both else ''} | {H} | {B}×{T} |", " | ".join(cells),
                f"| {ours / peers:.2f} | {worst[0]:.1e}, {worst[1]:.1e} |", flush=True,
            )  # fmt: skip
            print(f"{cell} {both} {H} {B}x{T}", file=sys.stderr)


if __name__ == "__main__":
    main()

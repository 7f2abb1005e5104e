"""A run exported: every file written, proved and described, or none."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import numpy_helper

from ohlol.artifacts import contract, run
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.errors import BundleError, CheckpointError
from ohlol.artifacts.files import new_folder, sha256, sha256_of_file
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.artifacts.parity import Arrays, Case, Proof
from ohlol.export import proof
from ohlol.export.card import card
from ohlol.export.formats import to_onnx, to_torchscript
from ohlol.export.proof import Runner
from ohlol.train.checkpoint import load_network

FORMATS = ("onnx", "torchscript")


def export(
    folder: Path, out: Path, formats: tuple[str, ...] = FORMATS, which: str = run.Layout.best
) -> Proof:
    """Export the checkpoint `which` of the run `folder` to the bundle `out`, in the place of a bundle there.

    `formats` must hold "onnx"; "torchscript" may join it.
    Raises `CheckpointError`, `BundleError` (`out` holds what an export did not write) and `ProofError`
    (an exported file answers otherwise than PyTorch; nothing is written).
    """
    out = out.resolve() if out.name in ("", "..") else out  # "." has no name to exchange
    _may_replace(out)
    network, recipe, vocabulary, state = load_network(folder, which)
    if which == run.Layout.best and state.best_epoch == 0 < recipe.train.epochs:
        raise CheckpointError(
            f"{folder}: its training stopped before the first epoch was complete, so there is nothing to export; go on "
            "with it by `ohlol train ... --resume`"
        )
    manifest = Manifest(
        task=recipe.task.kind,
        alphabet=vocabulary.alphabet,
        labels=vocabulary.labels,
        label_scheme=vocabulary.label_scheme,
        network=recipe.model.model_dump(),
        metrics=_metrics(folder),
        provenance={
            "recipe": recipe.model_dump(mode="json", exclude_none=True),
            "data": state.digests,
            "checkpoint": {
                "which": which,
                "epoch": state.best_epoch if which == run.Layout.best else state.epoch,
                "sha256": sha256_of_file(run.checkpoint(folder, which) / run.Layout.model),
            },
            "versions": {"train": state.versions, "export": _versions()},
        },
    )
    cases = proof.draw_cases(manifest.alphabet)
    contents: dict[str, bytes] = {Layout.onnx: to_onnx(network, manifest)}
    runners: dict[str, Runner] = {Layout.onnx: proof.onnx_runner(contents[Layout.onnx])}
    if "torchscript" in formats:
        contents[Layout.torchscript] = to_torchscript(network, manifest.alphabet)
        runners[Layout.torchscript] = proof.torchscript_runner(contents[Layout.torchscript], manifest.task)
    proved = proof.prove(network, manifest.alphabet, runners, cases)
    proof.require(proved)

    contents[Layout.proof] = (json.dumps(proved.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()
    contents[Layout.card] = card(manifest, proved, sorted(contents)).encode()
    for number, case in enumerate(cases):
        expected = proof.expected_outputs(network, manifest.alphabet, case)
        contents |= _test_data(Layout.test_data.format(number), case, expected, manifest)
    with new_folder(out) as part:
        for name, data in contents.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(data)
        entries = {name: Entry(sha256(data), len(data)) for name, data in contents.items()}
        (part / Layout.manifest).write_text(manifest.with_files(entries).to_json(), encoding="utf-8")
    return proved


def _may_replace(out: Path) -> None:
    """Refuse to take the place of anything but a bundle, or of a bundle with a person's files in it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / Layout.manifest).is_file():
        raise BundleError(f"{out}: is there and is not a bundle; name another place with -o")
    listed = set(Manifest.from_json((out / Layout.manifest).read_bytes(), str(out)).files) | {Layout.manifest}
    for file in out.rglob("*"):
        name = file.relative_to(out).as_posix()
        if file.is_file() and name not in listed:
            raise BundleError(f"{out}: holds {name}, which no export wrote; move it away, or name another -o")


def _metrics(folder: Path) -> dict[str, Any]:
    """What training measured at its end, where it came to one."""
    path = folder / run.Layout.results
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ohlol", "torch", "onnx", "onnxscript", "onnxruntime")}


def _test_data(folder: str, case: Case, expected: Arrays, manifest: Manifest) -> dict[str, bytes]:
    """One case in the layout of ONNX's own test data: `input_0.pb`, …, `output_0.pb`, …"""
    groups = {
        "input": [(t.name, getattr(case, t.name)) for t in contract.INPUTS],
        "output": [(t.name, expected[t.name]) for t in contract.outputs(manifest.task)],
    }
    return {
        f"{folder}/{group}_{number}.pb": numpy_helper.from_array(array, name).SerializeToString()
        for group, tensors in groups.items()
        for number, (name, array) in enumerate(tensors)
    }

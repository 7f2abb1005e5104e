"""A run exported to C: source that needs no runtime, written only where it answers as PyTorch does."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ohlol.artifacts import run
from ohlol.artifacts.errors import DataError, OhlolError, ProofError, RecipeError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import Case, Proof
from ohlol.artifacts.written import check_free, write_folder
from ohlol.export import c_proof, c_tables, proof
from ohlol.export.bundle import load, split_to_measure
from ohlol.export.c_proof import Library
from ohlol.export.c_source import Source, described, identifier, write_source, write_test
from ohlol.export.c_tables import Tables, Weights
from ohlol.train.checkpoint import State
from ohlol.train.evaluate import evaluate_network
from ohlol.train.network import Network
from ohlol.train.recipe import Recipe

MOST_WEIGHTS = 2**20  # float32: 4 MiB of constants, some 12 MB of source


@dataclass(frozen=True)
class Exported:
    """C source by the names of its files, and its proof; without one, why, in `unproved`."""

    name: str
    files: dict[str, bytes]
    proof: Proof | None
    unproved: str = ""

    def write(self, folder: str | Path) -> None:
        """Into `folder`, whole or not at all, in the place of what an export wrote there and nobody changed since."""
        check_free(Path(folder))
        write_folder(Path(folder), self.files, "c")


def export(
    folder: str | Path,
    name: str,
    weights: Weights = "float32",
    which: str = run.Layout.best,
    data: Path | None = None,
) -> Exported:
    """The C source of the checkpoint `which` of the run `folder`; all names in it begin with `name`, made an identifier.

    For "int8", what rounding changes is measured on the recipe's data, which is looked for in `data`, if given. Where the
    machine has a C compiler, `cc`, the source is compiled and run on the cases of the proof.
    Raises `CheckpointError`, `ProofError` (it answers otherwise than PyTorch) and `OhlolError` (the network is too large,
    or a label is no string of C).
    """
    network, recipe, state, manifest = load(Path(folder), which)
    size = sum(weight.numel() for weight in network.parameters())
    if size > MOST_WEIGHTS:
        raise OhlolError(
            f"{folder}: {size:,} weights are too many for C source, which is for at most {MOST_WEIGHTS:,}; run the bundle's "
            "model.onnx by ONNX Runtime (docs/cpp.md), or train a smaller network"
        )
    cases = proof.draw_cases(manifest.alphabet)
    whole, oracle, found = prepared(network, weights)
    # That the products are those of the network: int8 is held against them, rounded.
    first = proof.prove(network, manifest.alphabet, [proof.eager(whole, manifest.alphabet)], cases)
    proof.require(first)
    measured = _measured(network, oracle, manifest, cases, recipe, state, data) if weights == "int8" else ""
    source = described(identifier(name), manifest, found)
    files = written(source, manifest, found, oracle, cases, measured)
    compiler = shutil.which(c_proof.COMPILER)
    if compiler is None:
        return Exported(source.name, files, None, f"no C compiler ({c_proof.COMPILER}) is on this machine")
    try:
        second = _proved(source, files, compiler, oracle, manifest, cases)
    except OSError as error:
        # A compiler for another machine, or a temporary folder from which nothing may run.
        return Exported(source.name, files, None, f"what {compiler} makes does not run here ({error})")
    proved = Proof(second.oracle, first.rows + second.rows, second.versions)
    proof.require(proved)
    return Exported(source.name, files, proved)


def prepared(network: Network, weights: Weights) -> tuple[Network, Network, Tables]:
    """`network` as its tables have it; the network that these must answer as; and the tables."""
    shown, folded = c_tables.folded(network)
    if weights == "float32":
        return shown, network, c_tables.tables(shown, folded, weights)
    rounded = c_tables.rounded(shown, folded)
    return shown, rounded, c_tables.tables(rounded, folded, weights)


def written(
    source: Source,
    manifest: Manifest,
    tables: Tables,
    oracle: Network,
    cases: Sequence[Case],
    measured: str = "",
) -> dict[str, bytes]:
    """The three files; the answers in `NAME_test.c` are those of `oracle`."""
    texts, logits = c_proof.test_data(oracle, manifest.alphabet, cases, source.classes)
    files = write_source(source, manifest, tables, measured)
    return files | {f"{source.name}_test.c": write_test(source, texts, logits)}


def _proved(
    source: Source,
    files: dict[str, bytes],
    compiler: str,
    oracle: Network,
    manifest: Manifest,
    cases: Sequence[Case],
) -> Proof:
    """The proof of files compiled for the moment, `NAME_test.c` among them."""
    name = source.name
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as kept:
        folder = Path(kept)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        c_proof.compile_c(compiler, folder, "-fPIC", "-c", f"{name}.c")
        c_proof.compile_c(compiler, folder, "-shared", f"{name}.o", "-lm", "-o", f"{name}.so")
        c_proof.compile_c(compiler, folder, f"{name}_test.c", f"{name}.o", "-lm", "-o", f"{name}_test")
        library = Library(source, ctypes.CDLL(str(folder / f"{name}.so")))
        claims = c_proof.claims(library, c_proof.version(compiler))
        proved = proof.prove(oracle, manifest.alphabet, claims, cases)
        done = c_proof.ran([str(folder / f"{name}_test")])
        if proved.passed and done.returncode:
            raise ProofError(
                f"{name}_test.c fails where the proof holds; please report this: {done.stdout.strip()}"
            )
        return proved


def _measured(
    network: Network,
    near: Network,
    manifest: Manifest,
    cases: Sequence[Case],
    recipe: Recipe,
    state: State,
    data: Path | None,
) -> str:
    """What rounding changed: probabilities in the cases, and the task's metrics on the best data there is."""
    before, after = (
        [proof.expected_outputs(one, manifest.alphabet, case)["probabilities"] for case in cases]
        for one in (network, near)
    )
    change = max(float(np.abs(x - y).max()) for x, y in zip(before, after, strict=True))
    told = f"changes a probability by up to {change:.2g} in the texts of the proof"
    vocabulary = run.Vocabulary(manifest.alphabet, manifest.labels, manifest.label_scheme)
    try:
        split_name, split = split_to_measure(recipe, vocabulary, data, Path(state.data_folder))
    except (DataError, RecipeError):
        return f"{told}; no data was there to measure more"
    whole, less = (evaluate_network(one, split, vocabulary) for one in (network, near))
    metrics = ", ".join(f"{key.replace('_', ' ')} {whole[key]:.4f} -> {less[key]:.4f}" for key in less)
    return f"{told}; on {split_name}: {metrics}"

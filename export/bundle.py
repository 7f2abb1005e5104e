"""A run exported: every file written, proved and described, or none."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from ohlol.artifacts import contract, run
from ohlol.artifacts.bundle import ONNX, Bundle, Layout
from ohlol.artifacts.errors import BundleError, CheckpointError, DataError, OhlolError, RecipeError
from ohlol.artifacts.files import new_folder, sha256, sha256_of_file
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.artifacts.parity import Case, Proof
from ohlol.artifacts.run import Vocabulary
from ohlol.export import proof
from ohlol.export.card import card
from ohlol.export.formats import to_onnx, to_program, to_torchscript
from ohlol.export.nodes import Precision
from ohlol.export.proof import Claim
from ohlol.serve.model import of_file
from ohlol.train.checkpoint import State, load_network
from ohlol.train.data import Split, data_folders, load_split
from ohlol.train.evaluate import evaluate_model
from ohlol.train.network import Network
from ohlol.train.recipe import Recipe

# What `--formats` may name, and the file each leaves.
FORMATS = {
    "onnx": Layout.onnx,
    "torchscript": Layout.torchscript,
    "stream": Layout.stream,
    "text": Layout.text,
    "batch": Layout.batch,
    "fp16": Layout.half,
    "int8": Layout.int8,
    "pt2": Layout.program,
}
USUAL = ("onnx", "torchscript", "stream", "text")
HALF_LARGEST = float(np.finfo(np.float16).max)
PRECISIONS: dict[str, Precision] = {Layout.half: "half", Layout.int8: "int8"}


@dataclass
class Exported:
    """What an export did: the proof, and which of the formats asked for were left out, with the reason."""

    proof: Proof
    left_out: dict[str, str] = field(default_factory=dict)


def export(
    folder: str | Path,
    out: str | Path,
    formats: Iterable[str] = USUAL,
    which: str = run.Layout.best,
    data: Path | None = None,
) -> Exported:
    """Export the checkpoint `which` of the run `folder` to the bundle `out`, in the place of a bundle there.

    `formats` are keys of `FORMATS`; "onnx" is always written, and those that this network cannot have are left
    out, which `left_out` of the result says. For "fp16" and "int8" the loss is measured on the recipe's data, which
    is looked for in `data`, if given.
    Raises `OhlolError` for an unknown format, `CheckpointError`, `BundleError` (`out` holds what an export did not write) and `ProofError`
    (an exported file answers otherwise than PyTorch; nothing is written).
    """
    folder, out, formats = Path(folder), Path(out), chosen(formats)
    out = out.resolve() if out.name in ("", "..") else out  # "." has no name to exchange
    _may_replace(out)
    network, recipe, state, manifest = load(folder, which)
    vocabulary = Vocabulary(manifest.alphabet, manifest.labels, manifest.label_scheme)
    cases = proof.draw_cases(manifest.alphabet)
    contents: dict[str, bytes] = {}
    claims: list[Claim] = [proof.eager(network, manifest.alphabet)]
    entries: dict[str, Entry] = {}
    left_out: dict[str, str] = {}
    for name, file in FORMATS.items():
        if name not in formats:
            continue
        if reason := _not_possible(name, network):
            left_out[name] = reason
            continue
        content = _content(file, network, manifest)
        if file == Layout.batch and content == contents[Layout.onnx]:
            left_out[name] = f"{Layout.onnx} of this network is in that form already"
            continue
        measured = {}
        if file in PRECISIONS:
            whole = contents[Layout.onnx]
            if len(content) >= len(whole):
                left_out[name] = (
                    f"{len(content):,} bytes are not fewer than the {len(whole):,} of {Layout.onnx}"
                )
                continue
            try:
                measured = _loss(
                    manifest,
                    whole,
                    content,
                    *split_to_measure(recipe, vocabulary, data, Path(state.data_folder)),
                )
            except (DataError, RecipeError) as error:
                left_out[name] = f"its loss cannot be measured: {error}"
                continue
        contents[file] = content
        entries[file] = Entry(sha256(content), len(content), measured)
        claims += _claims(file, content, manifest)
    proved = proof.prove(network, manifest.alphabet, claims, cases)
    proof.require(proved)

    contents[Layout.proof] = proved.to_json().encode()
    contents[Layout.card] = card(manifest, proved, entries).encode()
    contents |= _test_data(network, manifest, cases, [name for name in PRECISIONS if name in contents])
    with new_folder(out) as unfinished:
        for name, content in contents.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_bytes(content)
        plain = {name: Entry(sha256(content), len(content)) for name, content in contents.items()}
        (unfinished / Layout.manifest).write_text(
            manifest.with_files(plain | entries).to_json(), encoding="utf-8"
        )
    return Exported(proved, {name: reason for name, reason in left_out.items() if reason})


def load(folder: Path, which: str) -> tuple[Network, Recipe, State, Manifest]:
    """The checkpoint `which` of a run, to be exported. Raises `CheckpointError` where there is nothing in it to export."""
    network, recipe, vocabulary, state = load_network(folder, which)
    if which == run.Layout.best and state.best_epoch == 0 < recipe.train.epochs:
        raise CheckpointError(
            f"{folder}: its training stopped before the first epoch was complete, so there is nothing to export; go on "
            "with it by `ohlol train ... --resume`"
        )
    for key, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            raise CheckpointError(f"{folder}: the weight {key} holds what is no finite number; train again")
    return network, recipe, state, _manifest(folder, which, recipe, vocabulary, state)


def chosen(formats: Iterable[str]) -> tuple[str, ...]:
    """The names of formats as they are written, "onnx" among them. Raises `OhlolError` for one that is unknown."""
    names = tuple(FORMATS) if formats == "all" else (formats,) if isinstance(formats, str) else tuple(formats)
    for name in names:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected any of {', '.join(FORMATS)}"
            raise OhlolError(f"formats: found {name!r}; {hint}")
    return tuple(name for name in FORMATS if name in names or name == "onnx")


def prove_again(bundle: Bundle, folder: Path, use: Sequence[str]) -> Proof:
    """The proof of a bundle's ONNX files in the runtimes `use`, against the run it was made of, on other batches.

    Raises `CheckpointError` where the run's checkpoint is another one. Neither the TorchScript file nor the
    `.pt2` is loaded: that would run code of a bundle that we did not write just now.
    """
    source = bundle.manifest.provenance.get("checkpoint", {})
    which = source.get("which")
    if which not in (run.Layout.best, run.Layout.last):
        raise BundleError(f"{bundle.path}: its manifest names no checkpoint; export it again")
    found = sha256_of_file(run.checkpoint(folder, which) / run.Layout.model)
    if found != source.get("sha256"):
        raise CheckpointError(
            f"{folder}: the sha256 of its {which} checkpoint is {found[:12]}…, {bundle.path} was made of "
            f"{str(source.get('sha256'))[:12]}…; name the run it was made of, or export it again"
        )
    network, *_ = load_network(folder, which)
    alphabet = bundle.manifest.alphabet
    claims = [proof.eager(network, alphabet)]
    for name in ONNX:
        if name in bundle.contents:
            precision = PRECISIONS.get(name, "single")
            claims += proof.onnx_claims(
                name, bundle.contents[name], ONNX[name], bundle.manifest, precision, use
            )
    return proof.prove(network, alphabet, claims, proof.draw_cases(alphabet, seed=1))


def _manifest(folder: Path, which: str, recipe: Recipe, vocabulary: Vocabulary, state: State) -> Manifest:
    return Manifest(
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


def _not_possible(name: str, network: Network) -> str:
    """Why this network cannot have the format `name`; "" where it can."""
    directions: Any = network.layers[0]
    if name == "stream" and len(directions) == 2:
        return "a network that reads both ways has no state to go on from"
    if name == "batch" and network.cell == "rnn":
        return f"{Layout.onnx} of an RNN is the fastest for many rows already"
    largest = max(float(weight.detach().abs().max()) for weight in network.parameters())
    if name == "fp16" and largest > HALF_LARGEST:
        return f"a weight is {largest:,.0f}, and float16 ends at {HALF_LARGEST:,.0f}"
    return ""


def _content(file: str, network: Network, manifest: Manifest) -> bytes:
    if file == Layout.torchscript:
        return to_torchscript(network, manifest.alphabet)
    if file == Layout.program:
        return to_program(network, manifest.alphabet)
    return to_onnx(network, manifest, ONNX[file], PRECISIONS.get(file, "single"), file == Layout.batch)


def _claims(file: str, content: bytes, manifest: Manifest) -> list[Claim]:
    if file in ONNX:
        return proof.onnx_claims(file, content, ONNX[file], manifest, PRECISIONS.get(file, "single"))
    load = proof.torchscript if file == Layout.torchscript else proof.program
    return [proof.torch_claim(file, load(content), manifest.task)]


def split_to_measure(
    recipe: Recipe, vocabulary: Vocabulary, data: Path | None, trained_on: Path
) -> tuple[str, Split]:
    """The data to measure a loss on: the best there is of test, dev and train."""
    _, dev, test = recipe.data.split or (0, 0, 0)
    has = {"test": recipe.data.test or test, "dev": recipe.data.dev or dev}
    name = next((name for name, there in has.items() if there), "train")
    return name, load_split(recipe, vocabulary, name, *data_folders(data, trained_on))


def _loss(manifest: Manifest, whole: bytes, low: bytes, name: str, split: Split) -> dict[str, Any]:
    """The metrics of a file of lower precision, and each one's difference from `model.onnx`'s."""
    vocabulary = Vocabulary(manifest.alphabet, manifest.labels, manifest.label_scheme)
    before, after = (
        evaluate_model(of_file(manifest, content, "an exported file"), split, vocabulary, manifest.task)
        for content in (whole, low)
    )
    return {"split": name, "metrics": after, "change": {key: after[key] - before[key] for key in after}}


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
    return {name: version(name) for name in ("ohlol", "torch", "onnx", "onnxruntime")}


def _test_data(
    network: Network, manifest: Manifest, cases: Sequence[Case], low: Sequence[str]
) -> dict[str, bytes]:
    """The cases in the layout of ONNX's own test data: `input_0.pb`, …, `output_0.pb`, …

    Files of lower precision, `low`, have outputs of their own: the network's, rounded as they are.
    """
    data: dict[str, bytes] = {}
    oracles = {Layout.expected[name]: proof.rounded(network, PRECISIONS[name]) for name in low}
    oracles = {Layout.expected[Layout.onnx]: network} | oracles
    for number, case in enumerate(cases):
        folder = Layout.test_data.format(number)
        tensors = {f"input_{k}.pb": (t.name, getattr(case, t.name)) for k, t in enumerate(contract.INPUTS)}
        for prefix, oracle in oracles.items():
            answers = proof.expected_outputs(oracle, manifest.alphabet, case)
            for k, t in enumerate(contract.outputs(manifest.task)):
                tensors[f"{prefix}_{k}.pb"] = (t.name, answers[t.name].astype(np.dtype(t.dtype)))
        for name, (tensor, array) in tensors.items():
            data[f"{folder}/{name}"] = numpy_helper.from_array(array, tensor).SerializeToString()
    return data

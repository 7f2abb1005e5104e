"""What a run or a bundle is, in lines for a person. Reads the files themselves, so torch is not needed."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from ohlol.artifacts.contract import Kind
from ohlol.artifacts.errors import BundleError, CheckpointError, printable
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.artifacts.onnx_file import summary
from ohlol.artifacts.run import Layout, Vocabulary, checkpoint, require

Facts = list[tuple[str, str]]


def describe_manifest(manifest: Manifest, files: dict[str, bytes], kind: Kind = "model") -> Facts:
    """The facts of a bundle or of a single `.onnx` file, and what stands in its `.onnx` files.

    Raises `BundleError` where some are missing.
    """
    try:
        return _manifest_facts(manifest, files, kind)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BundleError(
            f"the manifest's facts are not as ohlol writes them ({error!r}); export it again"
        ) from error


def describe_file(manifest: Manifest, kind: Kind, name: str, content: bytes) -> Facts:
    """The facts of a single `.onnx` file, with the name and shape of every weight."""
    weights = summary(content, name).weights
    shapes = [(key, f"{dtype} ({', '.join(map(str, shape))})") for key, dtype, shape in weights]
    return describe_manifest(manifest, {name: content}, kind) + shapes


def _manifest_facts(manifest: Manifest, files: dict[str, bytes], kind: Kind) -> Facts:
    facts = manifest.facts(kind)
    source = manifest.provenance.get("checkpoint", {})
    versions = manifest.provenance.get("versions", {})
    return [
        ("task", manifest.task),
        ("network", _network(manifest.network)),
        *_vocabulary(manifest.alphabet.characters, manifest.alphabet.normalisation, manifest.labels),
        (
            "contract",
            f"version {facts['contract_version']}, opset {facts['opset']}, IR version {facts['ir_version']}",
        ),
        *((kind[:-1], _tensor(tensor)) for kind in ("inputs", "outputs") for tensor in facts[kind]),
        *_metrics(manifest.metrics),
        *_weights(manifest.provenance.get("data", {})),
        ("checkpoint", f"{source.get('which')}, epoch {source.get('epoch')}, sha256 {source.get('sha256')}"),
        *((f"{stage} with", _pairs(named)) for stage, named in versions.items()),
        *(
            (name, _file(name, manifest.files.get(name), content))
            for name, content in files.items()
            if "/" not in name
        ),
    ]


def _file(name: str, entry: Entry | None, content: bytes) -> str:
    """Size of a file; of an `.onnx` file also its nodes, weights and what its precision cost."""
    text = f"{len(content):,} bytes"
    if name.endswith(".onnx"):
        found = summary(content, name)
        nodes = ", ".join(
            f"{count} {op}" for op, count in sorted(found.nodes.items(), key=lambda n: (-n[1], n[0]))
        )
        text += f"; {found.numbers:,} numbers in {len(found.weights)} weights; {found.nodes.total()} nodes: {nodes}"
    if entry and entry.measured:
        change = ", ".join(
            f"{key.replace('_', ' ')} {value:+.4f}" for key, value in entry.measured["change"].items()
        )
        text += f"; beside model.onnx on {entry.measured['split']}: {change}"
    return text


def describe_run(folder: Path) -> Facts:
    """The facts of a run folder, with the shape of every weight. Raises `CheckpointError`."""
    try:
        return _run_facts(folder)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{folder}: damaged ({error!r}); train again") from error


def _run_facts(folder: Path) -> Facts:
    recipe = tomllib.loads(require(folder / Layout.recipe).read_text(encoding="utf-8"))
    state = json.loads(require(checkpoint(folder, Layout.last) / Layout.state).read_bytes())
    path = folder / Layout.results
    shapes = weight_shapes(checkpoint(folder, Layout.best) / Layout.model)
    vocabulary = Vocabulary.load(folder)
    return [
        ("task", recipe["task"]["kind"]),
        ("network", _network(recipe["model"])),
        *_vocabulary(vocabulary.alphabet.characters, vocabulary.alphabet.normalisation, vocabulary.labels),
        ("epochs", f"{state['epoch']} of {recipe['train']['epochs']}; best: {state['best_epoch']}"),
        *_metrics(json.loads(path.read_bytes()) if path.is_file() else {}),
        *_weights(state.get("digests", {})),
        ("parameters", f"{parameters(shapes, recipe['model']):,}"),
        *((name, "(" + ", ".join(map(str, shape)) + ")") for name, shape in shapes.items()),
    ]


def table(facts: Facts) -> str:
    shown = [(printable(name), printable(value)) for name, value in facts]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def _network(network: dict[str, Any]) -> str:
    size = f" {network['embedding_size']}" if network["input"] == "embedding" else ""
    ways = "both ways" if network["bidirectional"] else "one way"
    head = "linear" if network["head"] == "linear" else "hidden state is the answer"
    layers = f"{network['num_layers']} × {network['cell']} {network['hidden_size']}, {ways}"
    return f"{network['input']}{size} → {layers} → {head}"


def _vocabulary(characters: str, form: str, labels: tuple[str, ...]) -> Facts:
    facts = [
        (
            "alphabet",
            f"{len(characters)} characters, {form}: {characters[:60]}{'…' if len(characters) > 60 else ''}",
        )
    ]
    if labels:
        more = " …" if len(labels) > 20 else ""
        facts.append(("labels", f"{len(labels)}: {', '.join(labels[:20])}{more}"))
    return facts


def _tensor(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} ({', '.join(map(str, tensor['shape']))}) {tensor['dtype']}"


def _metrics(metrics: dict[str, Any]) -> Facts:
    return [
        (split, ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items()))
        for split, values in metrics.items()
    ]


def _pairs(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _weights(digests: dict[str, Any]) -> Facts:
    """Where the weights come from, if not from training by ohlol."""
    return [("weights from", _pairs(digests["weights"]))] if "weights" in digests else []


def parameters(shapes: dict[str, list[int]], model: dict[str, Any]) -> int:
    """As many numbers as were trained: a tied head's weights stand in the file twice and count once."""
    tied = {"head.weight"} if model.get("tied") else set()
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in tied)


def weight_shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes in a safetensors file, read without it: eight bytes of length, then a JSON header."""
    with require(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, path.stat().st_size)))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}

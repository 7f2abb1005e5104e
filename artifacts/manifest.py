"""The manifest: every fact about a bundle, in one JSON object. Specified in docs/format.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ohlol.artifacts import contract, strict_json, words
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.contract import TASKS, Task
from ohlol.artifacts.errors import BundleError, OhlolError

FORMAT = "ohlol-bundle"
FORMAT_VERSION = 1
CELLS = ("rnn", "gru", "lstm")
LARGEST = 2**20  # size or number of layers; what a network is made of decides how much memory a reader takes
SPLITS = ("train", "dev", "test")

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """Digest and size in bytes of one file of the bundle.

    `measured`: for a file of lower precision, the metrics on a split of the data and what was lost of each
    beside `model.onnx`; else empty.
    """

    sha256: str
    bytes: int
    measured: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"sha256": self.sha256, "bytes": self.bytes}
        return found | ({"measured": self.measured} if self.measured else {})


@dataclass(frozen=True)
class Manifest:
    """What a bundle is. `labels` is empty for `lm`, whose answers are characters of the alphabet.

    `network` says what the network is made of, `metrics` how well it did, `provenance` where it comes
    from; `files` is empty in the copy that a single `.onnx` file carries.
    """

    task: Task
    alphabet: Alphabet
    labels: tuple[str, ...]
    label_scheme: str | None
    network: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    opset: int = contract.OPSET
    ir_version: int = contract.IR_VERSION

    @property
    def classes(self) -> int:
        """The width of the answers: the number of labels; for `lm`, the alphabet's size."""
        return len(self.alphabet) if self.task == "lm" else len(self.labels)

    def shape(self, tensor: contract.Tensor) -> list[str | int]:
        """The shape of a tensor of the contract, with this model's numbers for the axes that are fixed.

        Raises `BundleError` where it is one of the state and `network` does not say how large that is.
        """
        fixed: dict[str, int] = {contract.CLASSES: self.classes}
        if contract.STATES in tensor.shape:
            missing = {"cell", "num_layers", "hidden_size"} - self.network.keys()
            if missing:
                raise BundleError(
                    f"`network` names no {' and no '.join(sorted(missing))}, which `{tensor.name}` depends on; "
                    "export it again"
                )
            states = 2 if self.network["cell"] == "lstm" else 1
            fixed |= {
                contract.STATES: states * self.network["num_layers"],
                contract.HIDDEN: self.network["hidden_size"],
            }
        return [fixed.get(axis, axis) for axis in tensor.shape]

    def facts(self, kind: contract.Kind = "model") -> dict[str, Any]:
        """The manifest without `files`, as JSON values; inputs and outputs are those of a file of `kind`."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "contract_version": contract.VERSION,
            "task": self.task,
            "alphabet": {
                "characters": self.alphabet.characters,
                "normalisation": self.alphabet.normalisation,
            },
            "labels": list(self.labels),
            "label_scheme": self.label_scheme,
            "inputs": [self._tensor(t) for t in contract.inputs(kind)],
            "outputs": [self._tensor(t) for t in contract.outputs(self.task, kind)],
            "opset": self.opset,
            "ir_version": self.ir_version,
            "network": self.network,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }

    def _tensor(self, tensor: contract.Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": tensor.dtype, "shape": self.shape(tensor)}

    def differs(self, other: Manifest, kind: contract.Kind = "model") -> str:
        """The first fact of a file of `kind` in which two manifests differ; "" where none does."""
        facts, others = self.facts(kind), other.facts(kind)
        return next((name for name in facts if not strict_json.same(facts[name], others[name])), "")

    def to_json(self) -> str:
        files = {name: entry.to_dict() for name, entry in sorted(self.files.items())}
        return json.dumps({**self.facts(), "files": files}, ensure_ascii=False, indent=2) + "\n"

    def to_metadata(self, kind: contract.Kind = "model") -> dict[str, str]:
        """The facts as metadata properties of an `.onnx` file of `kind`: JSON values under `ohlol.`-names."""
        return {
            contract.METADATA_PREFIX + name: json.dumps(value, ensure_ascii=False)
            for name, value in self.facts(kind).items()
        }

    def with_files(self, files: Mapping[str, Entry]) -> Manifest:
        return replace(self, files=dict(files))

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse a `manifest.json`; `where` names it in the errors. Raises `BundleError`."""
        try:
            raw = strict_json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"{where}: not JSON ({error}); the bundle is damaged, export it again"
            ) from error
        if not isinstance(raw, dict):
            raise BundleError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        manifest = cls._from_facts(raw, ("model",), where)
        files = _take(raw, "files", dict, where)
        return manifest.with_files({name: _entry(name, value, where) for name, value in files.items()})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Manifest:
        """Read the facts back from the metadata of an `.onnx` file. Raises `BundleError`."""
        prefix = contract.METADATA_PREFIX
        ours = {name.removeprefix(prefix): text for name, text in metadata.items() if name.startswith(prefix)}
        if not ours:
            raise BundleError(
                f"{where}: an ONNX file that ohlol did not export (its metadata names no alphabet); "
                "export the checkpoint with `ohlol export`"
            )
        try:
            raw = {name: strict_json.loads(text) for name, text in ours.items()}
        except ValueError as error:
            raise BundleError(f"{where}: its metadata is damaged ({error}); export it again") from error
        return cls._from_facts(raw, ("model", "text", "stream"), where)

    @classmethod
    def _from_facts(cls, raw: dict[str, Any], kinds: Sequence[contract.Kind], where: str) -> Manifest:
        """`inputs` and `outputs` must be those of a file of one of `kinds`."""
        if raw.get("format") != FORMAT:
            raise BundleError(
                f"{where}: format is {raw.get('format')!r:.60}, expected {FORMAT!r}: not a bundle"
            )
        for key, known in (("format_version", FORMAT_VERSION), ("contract_version", contract.VERSION)):
            found = _take(raw, key, int, where)
            if found != known:
                hint = "upgrade ohlol" if found > known else "export the checkpoint again"
                raise BundleError(
                    f"{where}: {key} is {found}, this version of ohlol knows {known} only; {hint}"
                )
        task = _take(raw, "task", str, where)
        if task not in TASKS:
            raise BundleError(f"{where}: task is {task!r:.60}, expected one of {', '.join(TASKS)}")
        alphabet = _take(raw, "alphabet", dict, where)
        labels = _take(raw, "labels", list, where)
        if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
            raise BundleError(f"{where}: labels must be strings, each there once")
        if (task == "lm") != (not labels):
            raise BundleError(f"{where}: a {task} model with {len(labels)} labels")
        scheme = raw.get("label_scheme", "nothing")
        if scheme not in (None, words.SCHEME):
            raise BundleError(f"{where}: label_scheme is {scheme!r:.60}, expected null or {words.SCHEME!r}")
        if scheme == words.SCHEME and (task != "tag" or set(labels) != set(words.LABELS)):
            raise BundleError(
                f"{where}: label_scheme {scheme!r} is for a tag model with the labels {', '.join(words.LABELS)}"
            )
        try:
            known_alphabet = Alphabet(
                _take(alphabet, "characters", str, where), _take(alphabet, "normalisation", str, where)
            )
        except BundleError:
            raise
        except OhlolError as error:
            raise BundleError(f"{where}: {error}") from error
        network = _take(raw, "network", dict, where)
        _check_network(network, where)
        manifest = cls(
            task=task,
            alphabet=known_alphabet,
            labels=tuple(labels),
            label_scheme=scheme,
            network=network,
            metrics=_take(raw, "metrics", dict, where),
            provenance=_take(raw, "provenance", dict, where),
            opset=_take(raw, "opset", int, where),
            ir_version=_take(raw, "ir_version", int, where),
        )
        found = [_take(raw, key, list, where) for key in ("inputs", "outputs")]
        for kind in kinds:
            facts = manifest.facts(kind)
            if strict_json.same(found, [facts["inputs"], facts["outputs"]]):
                return manifest
        raise BundleError(
            f"{where}: its inputs and outputs are not those of a {task} model with {manifest.classes} classes; "
            "copy or export it again"
        )


def _take(raw: dict[str, Any], key: str, kind: type[T], where: str) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "nothing" if key not in raw else f"{value!r:.60}"
        raise BundleError(
            f"{where}: `{key}` should be {_NAMES[kind]}, found {found}; the bundle is damaged, export it again"
        )
    return value


_NAMES: dict[type, str] = {int: "a whole number", str: "a string", list: "a list", dict: "an object"}


def _check_network(network: dict[str, Any], where: str) -> None:
    """What is said of the network must be possible; others than ours may say less."""
    cell = network.get("cell", "rnn")
    if cell not in CELLS:
        raise BundleError(f"{where}: network.cell is {cell!r:.60}, expected one of {', '.join(CELLS)}")
    for key in network.keys() & {"num_layers", "hidden_size", "embedding_size"}:
        size = _take(network, key, int, where)
        if not 1 <= size <= LARGEST:
            raise BundleError(f"{where}: network.{key} is {size}, expected 1 to {LARGEST:,}; export it again")


def _entry(name: str, value: object, where: str) -> Entry:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or {"..", "."} & set(name.split("/")):
        raise BundleError(f"{where}: the file name {name!r:.200} leaves the bundle; refused")
    if str(path) != name or re.search(r"[\\:]", name) or not name.isprintable():
        raise BundleError(f"{where}: {name!r:.200} is not the name of a file of a bundle; refused")
    if not isinstance(value, dict):
        raise BundleError(f"{where}: `files` has no digest for {name!r:.200}")
    digest, size = _take(value, "sha256", str, where), _take(value, "bytes", int, where)
    if not re.fullmatch("[0-9a-f]{64}", digest) or size < 0:
        raise BundleError(
            f"{where}: sha256 and bytes of {name} are {digest!r:.80} and {size}; the bundle is damaged, export it again"
        )
    return Entry(digest, size, _measured(value, name, where) if "measured" in value else {})


def _measured(value: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found: dict[str, Any] = _take(value, "measured", dict, where)
    metrics, change = (_take(found, key, dict, where) for key in ("metrics", "change"))
    numbers = all(type(number) in (int, float) for number in (*metrics.values(), *change.values()))
    if found.get("split") not in SPLITS or metrics.keys() != change.keys() or not numbers:
        raise BundleError(
            f"{where}: what is measured of {name} is not a split and its metrics; the bundle is damaged, export it again"
        )
    return found

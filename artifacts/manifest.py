"""The manifest: every fact about a bundle, in one JSON object. Specified in docs/format.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ohlol.artifacts import contract, words
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.contract import TASKS, Task
from ohlol.artifacts.errors import BundleError, OhlolError

FORMAT = "ohlol-bundle"
FORMAT_VERSION = 1

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

    @property
    def classes(self) -> int:
        """The width of the answers: the number of labels; for `lm`, the alphabet's size."""
        return len(self.alphabet) if self.task == "lm" else len(self.labels)

    def shape(self, tensor: contract.Tensor) -> list[str | int]:
        """The shape of a tensor of the contract, with this model's numbers for the axes that are fixed."""
        fixed: dict[str, int] = {contract.CLASSES: self.classes}
        if contract.STATES in tensor.shape:
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
            "opset": contract.OPSET,
            "ir_version": contract.IR_VERSION,
            "network": self.network,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }

    def _tensor(self, tensor: contract.Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": tensor.dtype, "shape": self.shape(tensor)}

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
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{where}: not JSON ({error}); the bundle is damaged, export it again"
            ) from error
        if not isinstance(raw, dict):
            raise BundleError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        manifest = cls._from_facts(raw, where)
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
            raw = {name: json.loads(text) for name, text in ours.items()}
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where}: its metadata is damaged ({error}); export it again") from error
        return cls._from_facts(raw, where)

    @classmethod
    def _from_facts(cls, raw: dict[str, Any], where: str) -> Manifest:
        if raw.get("format") != FORMAT:
            raise BundleError(f"{where}: format is {raw.get('format')!r}, expected {FORMAT!r}: not a bundle")
        for key, known in (("format_version", FORMAT_VERSION), ("contract_version", contract.VERSION)):
            found = _take(raw, key, int, where)
            if found != known:
                hint = "upgrade ohlol" if found > known else "export the checkpoint again"
                raise BundleError(
                    f"{where}: {key} is {found}, this version of ohlol knows {known} only; {hint}"
                )
        task = _take(raw, "task", str, where)
        if task not in TASKS:
            raise BundleError(f"{where}: task is {task!r}, expected one of {', '.join(TASKS)}")
        alphabet = _take(raw, "alphabet", dict, where)
        labels = _take(raw, "labels", list, where)
        if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
            raise BundleError(f"{where}: labels must be strings, each there once")
        if (task == "lm") != (not labels):
            raise BundleError(f"{where}: a {task} model with {len(labels)} labels")
        scheme = raw.get("label_scheme")
        if scheme not in (None, words.SCHEME):
            raise BundleError(f"{where}: label_scheme is {scheme!r}, expected null or {words.SCHEME!r}")
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
        return cls(
            task=task,
            alphabet=known_alphabet,
            labels=tuple(labels),
            label_scheme=scheme,
            network=_take(raw, "network", dict, where),
            metrics=_take(raw, "metrics", dict, where),
            provenance=_take(raw, "provenance", dict, where),
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


def _entry(name: str, value: object, where: str) -> Entry:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or "\\" in name or ":" in name or {"..", "."} & set(name.split("/")):
        raise BundleError(f"{where}: the file name {name!r} leaves the bundle; refused")
    if not isinstance(value, dict):
        raise BundleError(f"{where}: `files` has no digest for {name!r}")
    measured = _take(value, "measured", dict, where) if "measured" in value else {}
    return Entry(_take(value, "sha256", str, where), _take(value, "bytes", int, where), measured)

"""A model that is loaded and answers: texts in, results out, by ONNX Runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_named, read
from ohlol.artifacts.contract import Kind, Task
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.onnx_file import check_digest, metadata
from ohlol.serve.results import Classified, Scored, Tagged
from ohlol.serve.runtimes import run, session

R = TypeVar("R", Tagged, Classified, Scored)

WINDOW = 2_048  # texts that are looked at together, so that those of like length share a batch
CHARACTERS = 8_192  # in one batch, padding included (or one text)
DTYPES = {"tensor(int32)": "int32", "tensor(float)": "float32"}


class Model(ABC, Generic[R]):
    """Answers texts: a `Tagger`, a `Classifier` or a `LanguageModel`, by its task. `manifest` says what it is.

    A call may come from several threads at once.
    """

    asks: tuple[str, ...]  # the outputs that an answer is made of

    def __init__(
        self, manifest: Manifest, onnx: bytes, where: str, batch: bytes | None = None, *, threads: int = 1
    ) -> None:
        self.manifest = manifest
        self._labels = np.array(manifest.labels, dtype=object)
        self._session = _checked_session(onnx, manifest, where, threads)
        # The same model in the form for many rows; opened when a batch has as many.
        self._many_rows = contract.many_rows(manifest.network) if batch else 0
        self._open_batch = cache(
            lambda: _checked_session(batch or b"", manifest, f"{where} ({Layout.batch})", threads)
        )

    @overload
    def __call__(self, texts: str) -> R: ...
    @overload
    def __call__(self, texts: list[str] | tuple[str, ...]) -> list[R]: ...
    @overload
    def __call__(self, texts: Iterator[str]) -> Iterator[R]: ...
    def __call__(self, texts: str | Iterable[str]) -> R | list[R] | Iterator[R]:
        """One text gives one result, a list or tuple a list, any other iterable an iterator that reads ahead
        by at most 2,048 texts. Results come in the order of the texts.

        Raises `InputError` where a text is not a `str`.
        """
        if isinstance(texts, str):
            return self._window([texts])[0]
        if isinstance(texts, list | tuple):
            return list(self._stream(texts))
        if not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray):
            raise InputError(f"expected a str or several of them, found {type(texts).__name__}")
        return self._stream(texts)

    @abstractmethod
    def _result(self, text: str, points: NDArray[np.int32], answer: list[NDArray[Any]]) -> R:
        """The result for a text from its row of the outputs `asks`."""

    @abstractmethod
    def _empty(self) -> R:
        """The result for an empty text, which is never put to the model."""

    def outputs(self, codepoints: NDArray[np.int32], lengths: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """The contract's outputs, padding included, for `codepoints (B, T) int32` and `lengths (B,) int32`.

        Raises `InputError` on arrays outside the contract: with no rows the runtime would end the process.
        """
        B, T = codepoints.shape if codepoints.ndim == 2 else (0, 0)
        right = codepoints.dtype == lengths.dtype == np.int32 and lengths.shape == (B,) and B > 0 < T
        if not right or lengths.min() < 1 or lengths.max() > T:
            raise InputError(
                f"expected codepoints (B, T) int32 and lengths (B,) int32 from 1 to T, with B and T at least 1; found "
                f"{codepoints.shape} {codepoints.dtype} and {lengths.shape} {lengths.dtype}"
            )
        names = [tensor.name for tensor in contract.outputs(self.manifest.task)]
        found = run(self._session, names, {"codepoints": codepoints, "lengths": lengths})
        return dict(zip(names, found, strict=True))

    def _stream(self, texts: Iterable[str]) -> Iterator[R]:
        texts = iter(texts)
        while window := list(islice(texts, WINDOW)):
            yield from self._window(window)

    def _window(self, texts: list[str]) -> list[R]:
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected a str, found {type(text).__name__}: {text!r:.60}")
        normal = [self.manifest.alphabet.normalise(text) for text in texts]
        results = [self._empty()] * len(texts)
        points = [codepoints(text) for text in normal]
        for rows in batches([len(row) for row in points]):
            batch = [points[row] for row in rows]
            for place, (row, answer) in enumerate(zip(rows, self._run(batch), strict=True)):
                results[row] = self._result(normal[row], batch[place], answer)
        return results

    def _run(self, rows: list[NDArray[np.int32]]) -> Iterator[list[NDArray[Any]]]:
        """The outputs `asks` for one batch of rows, row by row, padding included."""
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        padded = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
        many = 0 < self._many_rows <= len(rows)
        opened = self._open_batch() if many else self._session
        outputs = run(opened, self.asks, {"codepoints": padded, "lengths": lengths})
        for number in range(len(rows)):
            yield [output[number] for output in outputs]


class Tagger(Model[Tagged]):
    """A label for every character."""

    asks = ("label_ids", "probabilities")

    def _result(self, text: str, points: NDArray[np.int32], answer: list[NDArray[Any]]) -> Tagged:
        ids, probabilities = (output[: len(points)] for output in answer)
        return self._tagged(text, tuple(self._labels[ids]), probabilities)

    def _empty(self) -> Tagged:
        none = np.zeros((0, len(self.manifest.labels)), dtype=np.float32)
        return self._tagged("", (), none)

    def _tagged(self, text: str, labels: tuple[str, ...], probabilities: NDArray[np.float32]) -> Tagged:
        separator = "" if all(len(label) == 1 for label in self.manifest.labels) else " "
        return Tagged(text, labels, probabilities, self.manifest.label_scheme, separator)


class Classifier(Model[Classified]):
    """A label for the text."""

    asks = ("label_ids", "probabilities")

    def _result(self, text: str, points: NDArray[np.int32], answer: list[NDArray[Any]]) -> Classified:
        ids, probabilities = answer
        best = int(ids)
        order = np.argsort(-probabilities, kind="stable").tolist()
        by_label = {str(self._labels[k]): float(probabilities[k]) for k in order}
        return Classified(text, str(self._labels[best]), float(probabilities[best]), by_label)

    def _empty(self) -> Classified:
        return Classified("", None, None, {})


class LanguageModel(Model[Scored]):
    """How likely the text is, and what comes next."""

    asks = ("logits",)

    def _result(self, text: str, points: NDArray[np.int32], answer: list[NDArray[Any]]) -> Scored:
        alphabet = self.manifest.alphabet
        logits = answer[0][: len(points)].astype(np.float64)  # (T, V)
        highest = logits.max(axis=1, keepdims=True)
        log_p = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
        following = alphabet.ids(points)[1:]
        seen = log_p[np.arange(len(following)), following]
        best = int(log_p[-1].argmax())
        nats = float(-seen.mean()) if len(seen) else None
        return Scored(text, alphabet.character(best), float(np.exp(log_p[-1, best])), nats)

    def _empty(self) -> Scored:
        return Scored("", None, None, None)


TASKS: dict[Task, type[Model[Any]]] = {"tag": Tagger, "classify": Classifier, "lm": LanguageModel}


def load(path: str | Path, *, threads: int = 1) -> Model[Any]:
    """See `ohlol.load`."""
    if isinstance(path, Path) or path != HELLO:
        path = Path(path)
        if is_onnx_file(path):
            onnx = read(path)
            manifest = Manifest.from_metadata(metadata(onnx, str(path)), str(path))
            return of_file(manifest, onnx, str(path), threads=threads)
    return of_bundle(open_named(path), threads=threads)


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is a single `.onnx` file; what cannot even be looked at is none."""
    try:
        return path.suffix == ".onnx" and path.is_file()
    except OSError:
        return False


def of_bundle(bundle: Bundle, *, threads: int = 1) -> Model[Any]:
    """The model of a bundle that is open."""
    where, batch = str(bundle.path / Layout.onnx), bundle.contents.get(Layout.batch)
    return of_file(bundle.manifest, bundle.contents[Layout.onnx], where, batch, threads=threads)


def of_file(
    manifest: Manifest, onnx: bytes, where: str, batch: bytes | None = None, *, threads: int = 1
) -> Model[Any]:
    """The model of the bytes of a file that takes whole texts."""
    return TASKS[manifest.task](manifest, onnx, where, batch, threads=threads)


def read_manifest(onnx: bytes, where: str) -> tuple[Manifest, Kind]:
    """The facts inside an `.onnx` file, checked against its digest, and its kind. Raises `BundleError`."""
    facts = metadata(onnx, where)
    manifest = Manifest.from_metadata(facts, where)
    check_digest(onnx, facts, where)
    opened = session(onnx, where)
    names = {tensor.name for tensor in opened.get_inputs()}
    kinds = (kind for kind in contract.KINDS if {t.name for t in contract.inputs(kind)} == names)
    return manifest, next(kinds, "model")


def batches(lengths: list[int]) -> Iterator[list[int]]:
    """Numbers of rows that share a batch: like lengths together, empty rows left out."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not lengths[row]:
            continue
        if batch and lengths[row] * (len(batch) + 1) > CHARACTERS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def check_file(onnx: bytes, kind: Kind, manifest: Manifest, where: str) -> None:
    """Raise `BundleError` where a file of a bundle is of another kind, damaged, or says other facts."""
    inside, found = read_manifest(onnx, where)
    if found != kind:
        raise BundleError(f"{where}: it is the {found} file of a bundle, expected {kind}; export it again")
    if name := manifest.differs(inside, kind):
        raise BundleError(f"{where}: `{name}` differs from the manifest's; copy or export the bundle again")


def _checked_session(onnx: bytes, manifest: Manifest, where: str, threads: int) -> InferenceSession:
    facts = metadata(onnx, where)
    check_digest(onnx, facts, where)
    opened = session(onnx, where, threads)
    _check_contract(opened, manifest, where)
    _check_facts(Manifest.from_metadata(facts, where), manifest, where)
    return opened


def _check_contract(session: InferenceSession, manifest: Manifest, where: str) -> None:
    inputs = {tensor.name for tensor in session.get_inputs()}
    for other in contract.KINDS:
        if other != "model" and inputs == {tensor.name for tensor in contract.inputs(other)}:
            raise BundleError(
                f"{where}: takes {' and '.join(sorted(inputs))}: it is the {other} file of a bundle; load the "
                f"bundle, or the {Layout.onnx} beside it"
            )
    for kind, expected, found in (
        ("input", contract.INPUTS, session.get_inputs()),
        ("output", contract.outputs(manifest.task), session.get_outputs()),
    ):
        have = {tensor.name: tensor for tensor in found}
        for tensor in expected:
            if tensor.name not in have:
                names = ", ".join(have) or "none"
                raise BundleError(f"{where}: no {kind} `{tensor.name}`, found {names}; export it again")
            dtype = DTYPES.get(have[tensor.name].type, have[tensor.name].type)
            shape = manifest.shape(tensor)
            if dtype != tensor.dtype or have[tensor.name].shape != shape:
                raise BundleError(
                    f"{where}: {kind} `{tensor.name}` is {dtype} {have[tensor.name].shape}, expected {tensor.dtype} "
                    f"{shape}; export it again with `ohlol export`"
                )


def _check_facts(inside: Manifest, manifest: Manifest, where: str) -> None:
    """The facts inside the file must be those of the manifest: no digest covers the manifest itself."""
    if name := manifest.differs(inside):
        raise BundleError(
            f"{where}: `{name}` differs between the manifest and the model's own metadata, so one of the two was "
            "changed; copy or export the bundle again"
        )

"""Batches in, the same batches with answers out: one picklable callable for Ray, Spark, Dask and process pools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.bundle import HELLO, Layout, open_named
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.model import Model, of_files
from ohlol.serve.opening import read_manifest
from ohlol.serve.results import AS, Result, fields

NUMBERS = ("probability", "bits_per_character")  # the answers that are one float64 a row
KEPT = 8  # models that a process keeps open


@dataclass(frozen=True)
class _Files:
    """What a model is opened from: its facts, and those files of a bundle that answer whole texts."""

    manifest: Manifest
    contents: dict[str, bytes]

    @property
    def digest(self) -> str:
        return sha256(b"".join(self.contents.values()))


@dataclass(frozen=True)
class _Source:
    """Where a model comes from; two with the same digest are the same model."""

    path: str
    digest: str
    files: _Files | None = field(compare=False, repr=False)


class BatchPredictor:
    """Answers the texts of a batch and gives the batch back with the answers beside them.

    | batch | texts | gives back |
    |---|---|---|
    | `dict[str, ndarray]` (Ray's numpy batches) | `batch[column]` | a dict with the answers' arrays too |
    | `pandas.DataFrame` (Dask, Spark's `mapInPandas`) | its `column` | a DataFrame with the answers' columns too |
    | `pandas.Series` (Spark's pandas UDF) | its values | a DataFrame of the answers, with the same index |
    | `pyarrow.Table` (Ray's pyarrow batches) | its `column` | a Table with the answers' columns too |
    | `list[str]` | its items | a list of dicts, the answers |

    Answers have the names and values of `ohlol predict --format jsonl`, with `prefix` before the names: `labels` or,
    by `as_`, `words` and `spans`, or `sentences` (tag); `label` (classify); `bits_per_character` and `next` (lm); with
    `probabilities` those too. Where the text is null (None, NaN), so are its answers. An empty batch has the columns
    of any other.

    It can be pickled, and a process opens the model once, however many copies it is sent. The model's bytes go with
    it: workers need not see the folder, and all of them answer by the same model, though the folder be exchanged
    meanwhile. With `carry=False` the path alone goes: every worker must see the folder, and one that finds
    another model there refuses. Several threads may call it at once.

    Raises `BundleError` where the bundle cannot be opened, `InputError` where an option does not fit the model, where
    a batch is of another kind, has no `column`, has values in it that are neither strings nor null, or has a column
    of an answer's name already.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        column: str = "text",
        as_: str = "labels",
        probabilities: bool = False,
        prefix: str = "",
        threads: int = 1,
        carry: bool = True,
    ) -> None:
        self.column, self.as_, self.probabilities, self.prefix = column, as_, probabilities, prefix
        self.threads, self.carry = threads, carry
        where = HELLO if path == HELLO else str(Path(path).absolute())
        files = _read(where)
        self._source = _Source(where, files.digest, files)
        if as_ not in AS:
            raise InputError(f"as_ is {as_!r}, expected one of {', '.join(AS)}")
        if as_ != "labels" and files.manifest.label_scheme is None:
            raise InputError(f"as_={as_!r}: the labels of {path} do not mark words")
        _ = self.model  # what cannot be opened is told here, not by a hundred workers

    def __getstate__(self) -> dict[str, Any]:
        source = self._source
        kept = source.files if self.carry else None
        return self.__dict__ | {"_source": _Source(source.path, source.digest, kept)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source.path!r}, column={self.column!r}, as_={self.as_!r})"

    @property
    def model(self) -> Model[Any]:
        """The model, opened where this process has not opened it yet."""
        return _opened(self._source, self.threads, os.getpid())

    @property
    def names(self) -> list[str]:
        """The names of the columns that are added."""
        return [self.prefix + name for name in self._fields(self.model(""))]

    def __call__(self, batch: Any) -> Any:
        """A batch of any kind in the table above; the same with its answers."""
        # A batch of pandas or pyarrow can only come where they are loaded: neither is ever imported here.
        pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
        if isinstance(batch, list):
            answers = self.answers(batch)
            return [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
        if pandas and isinstance(batch, pandas.Series):
            return pandas.DataFrame(self._columns(batch, batch.index))
        if isinstance(batch, dict):
            self._check_columns(batch)
            return batch | self._arrays(np.asarray(batch[self.column]))
        if pandas and isinstance(batch, pandas.DataFrame):
            self._check_columns(batch.columns)
            return batch.assign(**self._columns(batch[self.column], batch.index))
        if pyarrow and isinstance(batch, pyarrow.Table):
            self._check_columns(batch.column_names)
            types = self.arrow_types()  # guessed from the values, those of two batches might differ
            for name, values in self.answers(batch[self.column].to_pylist()).items():
                pairs = [list(value.items()) if isinstance(value, dict) else value for value in values]
                batch = batch.append_column(name, pyarrow.array(pairs, types[name]))
            return batch
        raise InputError(
            f"a batch is a dict of arrays, a pandas DataFrame or Series, a pyarrow Table or a list of str; found "
            f"{type(batch).__name__}"
        )

    def answers(self, texts: list[Any]) -> dict[str, list[Any]]:
        """The answers' values, as JSON has them, by the name of their column; None where a text is null.

        Raises `InputError` where one is neither a `str` nor null, naming its place.
        """
        known: list[str | None] = [None if _null(text) else text for text in texts]
        for row, text in enumerate(known):
            if text is not None and not isinstance(text, str):
                raise InputError(
                    f"column {self.column!r}, row {row} of the batch: expected a string or null, found "
                    f"{type(text).__name__}: {text!r:.60}"
                )
        results = iter(self.model([text for text in known if text is not None]))
        blank = dict.fromkeys(self._fields(self.model("")))
        rows = [blank if text is None else self._fields(next(results)) for text in known]
        return {self.prefix + name: [row[name] for row in rows] for name in blank}

    def _fields(self, result: Result) -> dict[str, Any]:
        return fields(result, probabilities=self.probabilities, as_=self.as_)

    def _check_columns(self, columns: Iterable[Any]) -> None:
        there = list(columns)
        if self.column not in there:
            found = ", ".join(map(str, there)) or "none"
            raise InputError(
                f"no column {self.column!r} in the batch, found {found}; name another as `column` (--field)"
            )
        if there.count(self.column) > 1:
            raise InputError(f"column {self.column!r} is there twice; rename one")
        for name in self.names:
            if name in there:
                raise InputError(
                    f"the batch has a column {name!r}, which the answer would replace; put a word before the "
                    "names of the answers: `prefix` (--prefix), such as predicted_"
                )

    def _arrays(self, texts: Any) -> dict[str, NDArray[Any]]:
        """Numbers as float64, with NaN for None; all else as objects, so that no batch has a type of its own."""
        return {
            name: np.fromiter(values, np.float64 if self._is_number(name) else object, len(values))
            for name, values in self.answers(texts.tolist()).items()
        }

    def _columns(self, texts: Any, index: Any) -> dict[str, Any]:
        """The same for pandas, which would make strings of objects where it finds any."""
        series = sys.modules["pandas"].Series
        arrays = self._arrays(texts)
        return {name: series(array, index, array.dtype) for name, array in arrays.items()}

    def _is_number(self, name: str) -> bool:
        return name.removeprefix(self.prefix) in NUMBERS

    def arrow_types(self) -> dict[str, Any]:
        """The `pyarrow.DataType` of each column that is added, for writers that cannot guess it (Dask's `to_parquet`)."""
        import pyarrow as pa

        strings = pa.list_(pa.string())
        types = {
            "labels": strings, "words": strings, "sentences": strings,
            "spans": pa.list_(pa.list_(pa.int64())), "label": pa.string(), "next": pa.string(),
            **dict.fromkeys(NUMBERS, pa.float64()),
        }  # fmt: skip
        one_a_character = self.model.manifest.task == "tag"
        types["probabilities"] = (
            pa.list_(pa.float64()) if one_a_character else pa.map_(pa.string(), pa.float64())
        )
        return {name: types[name.removeprefix(self.prefix)] for name in self.names}


def _read(path: str) -> _Files:
    """A bundle or a single `.onnx` file, as `ohlol.load` takes them."""
    if path.endswith(".onnx") and Path(path).is_file():
        onnx = Path(path).read_bytes()
        return _Files(read_manifest(onnx, path)[0], {Layout.onnx: onnx})
    bundle = open_named(path)
    used = (Layout.onnx, Layout.batch, Layout.stream)
    return _Files(bundle.manifest, {name: bundle.contents[name] for name in used if name in bundle.contents})


@lru_cache(maxsize=KEPT)
def _opened(source: _Source, threads: int, process: int) -> Model[Any]:
    """The model of a source. `process` is there because a session must not be used beyond a fork."""
    files = source.files or _read(source.path)
    if files.digest != source.digest:
        raise BundleError(
            f"{source.path}: holds another model here than where the BatchPredictor was made; copy the bundle to every "
            "worker again, or let the model travel (carry=True)"
        )
    if not isinstance(threads, int) or threads < 1:  # 0 workers would be as many as the machine has CPUs
        raise InputError(f"threads is {threads!r}, expected a whole number from 1")
    return of_files(files.manifest, files.contents, source.path, workers=threads)


def _null(value: Any) -> bool:
    missing = getattr(sys.modules.get("pandas"), "NA", None)
    return value is None or value is missing or (isinstance(value, float) and value != value)

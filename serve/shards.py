"""Shards of Parquet or JSON lines: cut into pieces, each answered by a worker into a part of its own.

A piece is a stretch of bytes (JSON lines) or a run of row groups (Parquet). A worker reads it where it lies and writes its part. A
part takes its name once it is whole, and its name is the piece's number: to answer a piece again writes the same part.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.artifacts.files import new_file
from ohlol.serve import ahead
from ohlol.serve.batch_predictor import BatchPredictor
from ohlol.serve.blocks import Blocks
from ohlol.serve.output import Sink
from ohlol.serve.packed import SUFFIXES
from ohlol.serve.readers import windows
from ohlol.serve.windows import Reading
from ohlol.serve.writers import JsonlWriter, Look

FORMS = {suffix: form for suffix, form in SUFFIXES.items() if form in ("jsonl", "parquet")}
SMALLEST, LARGEST = 1 << 20, 64 << 20  # bytes of a piece
PIECES = 8  # for each worker, so that none waits long for the last one
ROWS = 16_384  # of Parquet, answered together, and a row group of the answers
TRIES = 5  # of a piece that workers died of, before it is the piece's fault; Ray would try without end
TOLD = 20  # skipped lines of a piece that are named

OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Piece:
    """A part of the input: the bytes of a JSON lines file, or the row groups of a Parquet file, `start` to `stop`.

    Of a JSON lines file it has the lines that begin there.
    """

    number: int
    path: str
    start: int
    stop: int

    def part(self, form: str) -> str:
        return f"part-{self.number:06}.{form}"


def shards(source: str | Path) -> tuple[list[Path], str]:
    """The files that a path names, sorted, and their form. Raises `InputError`."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name[0] not in "._"]  # what Spark marks as no data
    else:
        named = glob(str(source), recursive=True)  # noqa: PTH207  (Path's takes no absolute pattern)
        found = [path] if path.exists() else [Path(name) for name in named]
    kinds = ", ".join(FORMS)
    if not found:
        raise InputError(
            f"{source}: nothing there; expected a file, a folder or a glob of files that end in {kinds}"
        )
    for file in found:
        if not file.is_file() or file.suffix.lower() not in FORMS:
            raise InputError(
                f"{file}: expected a file that ends in {kinds}; nothing is left out unasked, so name the shards by a glob "
                f"such as '{path}/*.jsonl', or move it away"
            )
    forms = {FORMS[file.suffix.lower()] for file in found}
    if len(forms) > 1:
        raise InputError(
            f"{source}: has JSON lines and Parquet; name those of one kind, as in 'DIR/*.parquet'"
        )
    return sorted(file.absolute() for file in found), forms.pop()


def cut(files: Sequence[Path], form: str, workers: int) -> list[Piece]:
    """The pieces of all files, in order; some for each worker, but neither tiny nor huge. Empty files have none,
    but all of them together one, so that an empty answer has its columns."""
    total = sum(file.stat().st_size for file in files)
    size = min(max(total // (workers * PIECES), SMALLEST), LARGEST)
    spans = [
        (file, start, stop)
        for file in files
        for start, stop in (_row_groups if form == "parquet" else _bytes)(file, size)
    ]
    spans = spans or [(files[0], 0, 0)]
    return [Piece(number, str(file), start, stop) for number, (file, start, stop) in enumerate(spans)]


def _bytes(file: Path, size: int) -> Iterator[tuple[int, int]]:
    end = file.stat().st_size
    for start in range(0, end, size):
        yield start, min(start + size, end)


def _row_groups(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """Runs of row groups of about `size` bytes; a row group is never cut."""
    facts = _parquet(file).metadata
    first = held = 0
    for number in range(facts.num_row_groups):
        held += facts.row_group(number).total_byte_size
        if held >= size or number + 1 == facts.num_row_groups:
            yield first, number + 1
            first, held = number + 1, 0


class Worker:
    """An actor's work: pieces in, their parts written to `folder`."""

    def __init__(self, predictor: BatchPredictor, folder: str, form: str, on_error: OnError) -> None:
        self.predictor, self.folder, self.form, self.on_error = predictor, Path(folder), form, on_error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ray's numpy batch of the fields of one `Piece`; back come its rows, what was skipped, and what was wrong.

        An error of ours goes back as its message: raised here, Ray would wrap it in its own and log it.
        """
        piece = Piece(*(batch[name].tolist()[0] for name in ("number", "path", "start", "stop")))
        answer = self.parquet if self.form == "parquet" else self.jsonl
        rows, skipped, error = 0, list[str](), ""
        try:
            self.count(piece)
            rows, skipped = answer(piece, self.folder / piece.part(self.form))
        except (OhlolError, OSError) as raised:
            error = str(raised)
        told = json.dumps(skipped[:TOLD])
        found = {"rows": rows, "skipped": len(skipped), "told": told, "error": error}
        return {name: np.array([value]) for name, value in found.items()}

    def count(self, piece: Piece) -> None:
        """Leave a mark that the piece was begun. Raises `OhlolError` where there are too many of them."""
        for number in range(TRIES):
            with suppress(FileExistsError):
                (self.folder / f".{piece.part(self.form)}.try{number}").touch(exist_ok=False)
                return
        raise OhlolError(
            f"{piece.path}, {piece.start} to {piece.stop}: {TRIES} workers ended while they answered this piece, perhaps for "
            "want of memory; try fewer --workers"
        )

    def jsonl(self, piece: Piece, part: Path) -> tuple[int, list[str]]:
        """Lines as `ohlol predict` reads and writes them."""
        skipped: list[str] = []
        rows = 0

        def skip(error: InputError) -> None:
            if self.on_error == "stop":
                raise error
            skipped.append(str(error))

        model, predictor = self.predictor.model, self.predictor
        look = Look(predictor.probabilities, predictor.as_, predictor.prefix, predictor.column)
        with Path(piece.path).open("rb") as file, new_file(part) as out:
            begin, end = _line_at(file, piece.start), _line_at(file, piece.stop)
            where = piece.path if not begin else f"{piece.path}, lines counted from byte {begin + 1}"
            how = Reading(where, "jsonl", model.manifest.alphabet, skip, predictor.column, model.max_length)
            writer = JsonlWriter(Sink(out.buffer), look, {})
            read: Any = ((window, None) for window in windows(Blocks(_Stretch(file, begin, end)), how))
            for window, _, answers in ahead.answered(model, read, probabilities=predictor.probabilities):
                writer.window(window, answers)
                rows += len(window.rows)
            writer.close()
        return rows, skipped

    def parquet(self, piece: Piece, part: Path) -> tuple[int, list[str]]:
        """Rows with the answers' columns behind theirs."""
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        source = _parquet(Path(piece.path))
        schema = self.predictor(source.schema_arrow.empty_table()).schema
        groups = list(range(piece.start, piece.stop))
        handle, name = tempfile.mkstemp(dir=part.parent, prefix=f".{part.name}.", suffix=".part")
        os.close(handle)
        rows = 0
        with ParquetWriter(name, schema) as writer:
            for batch in _batches(source, groups, piece.path):
                writer.write_table(self.predictor(pyarrow.Table.from_batches([batch])))
                rows += batch.num_rows
        expected = sum(source.metadata.row_group(group).num_rows for group in groups)
        if rows != expected:
            raise InputError(f"{piece.path}: {rows} rows came of row groups that should have {expected}")
        Path(name).chmod(0o644)
        Path(name).replace(part)
        return rows, []


def _line_at(file: IO[bytes], place: int) -> int:
    """Where the first line begins that begins at `place` or behind."""
    if not place:
        return 0
    file.seek(place - 1)
    file.readline()
    return file.tell()


class _Stretch:
    """The bytes of a file from `begin` to `end`, as a file."""

    def __init__(self, file: IO[bytes], begin: int, end: int) -> None:
        self._file, self._begin, self._end = file, begin, end
        self.seek(0)

    def read(self, size: int, /) -> bytes:
        return self._file.read(max(0, min(size, self._end - self._file.tell())))

    def seek(self, offset: int, /) -> int:
        return self._file.seek(self._begin + offset) - self._begin


def _parquet(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowException as error:
        raise InputError(f"{path}: not Parquet ({error}); remove it, or write it again") from error


def _batches(source: Any, groups: list[int], path: str) -> Iterator[Any]:
    from pyarrow import ArrowException

    try:
        yield from source.iter_batches(batch_size=ROWS, row_groups=groups)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged Parquet ({error}); copy or write it again") from error


def check_schemas(predictor: BatchPredictor, files: Sequence[Path]) -> None:
    """What the first batch of a shard would raise, raised before a worker starts."""
    first = _parquet(files[0]).schema_arrow
    for file in files:
        schema = _parquet(file).schema_arrow
        if not schema.equals(first):
            raise InputError(
                f"{file}: its columns are not those of {files[0]}; predict shards of different columns apart"
            )
        try:
            predictor(schema.empty_table())
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        found = schema.field(predictor.column).type
        if not any(
            kind in str(found) for kind in ("string", "null")
        ):  # string, large_string, dictionary<values=string…
            raise InputError(f"{file}: column {predictor.column!r} is {found}, expected strings")

"""Shards of Parquet or JSON lines: cut into pieces, each answered by a worker into a part of its own.

A piece is a stretch of bytes (JSON lines) or a run of row groups (Parquet). A worker reads it where it lies and writes its part. A
part takes its name once it is whole, and its name is the piece's number: to answer a piece again writes the same part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.artifacts.files import new_file
from ohlol.serve import ahead
from ohlol.serve.answers import Answers
from ohlol.serve.batch_predictor import BatchPredictor
from ohlol.serve.blocks import Blocks, Place
from ohlol.serve.output import Sink
from ohlol.serve.packed import SUFFIXES
from ohlol.serve.readers import windows
from ohlol.serve.windows import Reading, Window
from ohlol.serve.writers import JsonlWriter, taken

FORMS = {suffix: form for suffix, form in SUFFIXES.items() if form in ("jsonl", "parquet")}
SMALLEST, LARGEST = 1 << 20, 64 << 20  # bytes of a piece
PIECES = 8  # for each worker, so that none waits long for the last one
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
    from ohlol.serve.parquet import facts  # late: it needs pyarrow

    about, _ = facts(file)
    first = held = 0
    for number in range(about.num_row_groups):
        held += about.row_group(number).total_byte_size
        if held >= size or number + 1 == about.num_row_groups:
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
        rows, skipped, error = 0, list[str](), ""
        try:
            self.count(piece)
            rows, skipped = self.answer(piece)
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

    def answer(self, piece: Piece) -> tuple[int, list[str]]:
        """Read, answer and write as `ohlol predict` does, by the same readers and writers."""
        skipped: list[str] = []
        rows = 0

        def skip(error: InputError) -> None:
            if self.on_error == "stop":
                raise error
            skipped.append(str(error))

        predictor, model = self.predictor, self.predictor.model
        how = Reading(
            piece.path,
            self.form,
            model.manifest.alphabet,
            skip,
            predictor.column,
            model.max_length,
            nulls=True,
        )
        read = _rows(piece, how) if self.form == "parquet" else _lines(piece, how)
        answered = ahead.answered(
            model, ((window, None) for window in read), probabilities=predictor.probabilities
        )

        def counted() -> Iterator[tuple[Window, Answers[Any]]]:
            nonlocal rows
            for window, _, answers in answered:
                rows += len(window.rows)
                yield window, answers

        with closing(answered), new_file(self.folder / piece.part(self.form)) as out:
            if self.form == "parquet":
                from ohlol.serve.parquet_writer import write_answers

                write_answers(out.buffer, counted(), model.manifest.task, predictor.look)
            else:
                writer = JsonlWriter(Sink(out.buffer), predictor.look, {})
                for window, answers in counted():
                    writer.window(window, answers)
                writer.close()
        return rows, skipped


def _rows(piece: Piece, how: Reading) -> Iterator[Window]:
    from ohlol.serve import parquet

    return parquet.windows(Path(piece.path), Place(), how, range(piece.start, piece.stop))


def _lines(piece: Piece, how: Reading) -> Iterator[Window]:
    with Path(piece.path).open("rb") as file:
        begin, end = _line_at(file, piece.start), _line_at(file, piece.stop)
        if begin:  # nobody has counted the lines before
            how = replace(how, name=f"{piece.path}, lines counted from byte {begin + 1}")
        yield from cast(Iterator[Window], windows(Blocks(_Stretch(file, begin, end)), how))


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


def check_schemas(predictor: BatchPredictor, files: Sequence[Path]) -> None:
    """What the first rows of a shard would raise, raised before a worker starts."""
    from ohlol.serve.parquet import check_column, facts

    _, first = facts(files[0])
    for file in files:
        _, schema = facts(file)
        if not schema.equals(first):
            raise InputError(
                f"{file}: its columns are not those of {files[0]}; predict shards of different columns apart"
            )
        check_column(schema, predictor.column, str(file))
        for name in predictor.names:
            if name in schema.names:
                raise InputError(f"{file}: {taken(name)}")

"""`ohlol predict --engine ray`: a folder of Parquet or JSON lines shards in, a folder of shards out, by many workers.

The input is cut into pieces: stretches of bytes (JSON lines), runs of row groups (Parquet). Ray Data hands their names to
a pool of actors, each of which holds a model, reads its piece where it lies and writes its part of the output. No text
goes through Ray: its own reader of text ends lines at U+2028 too, and that of JSON makes timestamps of strings.

A part takes its name once it is whole, and its name is the piece's number: where a worker is killed, Ray gives the piece
to another one, which writes the same part. The folder of parts takes its name once all of them are there.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.artifacts.files import new_file, new_folder
from ohlol.serve.batch_predictor import BatchPredictor
from ohlol.serve.files import Record, records, write

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SMALLEST, LARGEST = 1 << 20, 64 << 20  # bytes of a piece
PIECES = 8  # for each worker, so that none waits long for the last one
ROWS = 16_384  # of Parquet, answered together, and a row group of the answers
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


@dataclass(frozen=True)
class Done:
    """What became of the input: pieces, rows answered, and lines that were skipped."""

    pieces: int
    rows: int
    skipped: int


def predict_shards(
    predictor: BatchPredictor,
    source: str | Path,
    output: str | Path,
    *,
    workers: int | None = None,
    on_error: OnError = "stop",
    tell: Callable[[str], None] = lambda line: None,
) -> Done:
    """Answer the shards `source` (a file, a folder or a glob of `.parquet` or `.jsonl`) into the new folder `output`.

    The parts of `output` have the form of the shards and, in the order of their names, the rows in the order of the
    shards' names. `workers` are the actors that answer, each on `predictor.threads` CPUs; without it, as many as
    the CPUs allow. The cluster is that of `RAY_ADDRESS`, or where Ray is initialised already; else one is started here
    for the while. On several machines `source` and `output` must lie where all of them see them.

    `tell` gets a line on the way now and then, and for each line skipped (`on_error="skip"`; of Parquet, null texts
    have null answers and nothing is skipped).
    Raises `InputError` where the shards cannot be read or `output` is there, `OhlolError` where Ray fails; then there
    is no `output`.
    """
    files, form = shards(source)
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: is there already and stays as it is; name a new folder, or remove it")
    if form == "parquet":
        _check_schemas(predictor, files)
    import ray  # late: what is wrong with the input is told without it

    with _cluster(ray, None if workers is None else workers * predictor.threads) as cpus:
        workers = workers or max(1, cpus // predictor.threads)
        pieces = cut(files, form, workers)
        with new_folder(output) as folder:
            worker = (predictor, str(folder.absolute()), form, on_error)
            done = _run(ray, worker, pieces, min(workers, len(pieces)), tell)
            _check_parts(folder, [piece.part(form) for piece in pieces])
    return done


def shards(source: str | Path) -> tuple[list[Path], str]:
    """The files that a path names, sorted, and their form. Raises `InputError`."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name[0] not in "._"]  # what Spark marks as no data
    else:
        named = glob(str(source), recursive=True)  # noqa: PTH207  (Path's takes no absolute pattern)
        found = [path] if path.exists() else [Path(name) for name in named]
    kinds = ", ".join(SUFFIXES)
    if not found:
        raise InputError(
            f"{source}: nothing there; expected a file, a folder or a glob of files that end in {kinds}"
        )
    for file in found:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{file}: expected a file that ends in {kinds}; nothing is left out unasked, so name the shards by a glob "
                f"such as '{path}/*.jsonl', or move it away"
            )
    forms = {SUFFIXES[file.suffix.lower()] for file in found}
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
            rows, skipped = answer(piece, self.folder / piece.part(self.form))
        except OhlolError as raised:
            error = str(raised)
        told = json.dumps(skipped[:TOLD])
        found = {"rows": rows, "skipped": len(skipped), "told": told, "error": error}
        return {name: np.array([value]) for name, value in found.items()}

    def jsonl(self, piece: Piece, part: Path) -> tuple[int, list[str]]:
        """Lines as `ohlol predict` reads and writes them."""
        skipped: list[str] = []
        rows = 0

        def skip(error: InputError) -> None:
            if self.on_error == "stop":
                raise error
            skipped.append(str(error))

        def counted(inputs: Iterator[Record]) -> Iterator[Record]:
            nonlocal rows
            for record in inputs:
                rows += 1
                yield record

        predictor = self.predictor
        with Path(piece.path).open("rb") as file, new_file(part) as out:
            place = _seek(file, piece.start)
            where = piece.path if not place else f"{piece.path}, lines counted from byte {place + 1}"
            lines: Any = _lines(file, piece.stop)
            inputs = counted(records(lines, where, "jsonl", predictor.column, skip))
            options: Any = {
                "as_": predictor.as_,
                "probabilities": predictor.probabilities,
                "prefix": predictor.prefix,
            }
            write(predictor.model, inputs, out, "jsonl", field=predictor.column, **options)
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
            for batch in source.iter_batches(batch_size=ROWS, row_groups=groups):
                writer.write_table(self.predictor(pyarrow.Table.from_batches([batch])))
                rows += batch.num_rows
        expected = sum(source.metadata.row_group(group).num_rows for group in groups)
        if rows != expected:
            raise InputError(f"{piece.path}: {rows} rows came of row groups that should have {expected}")
        Path(name).chmod(0o644)
        Path(name).replace(part)
        return rows, []


def _seek(file: IO[bytes], start: int) -> int:
    """Go to the first line that begins at `start` or behind; where that is."""
    if start:
        file.seek(start - 1)
        file.readline()
    return file.tell()


def _lines(file: IO[bytes], stop: int) -> Iterator[bytes]:
    """The lines that begin before `stop`."""
    place = file.tell()
    while place < stop and (line := file.readline()):
        place += len(line)
        yield line


def _parquet(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowException as error:
        raise InputError(f"{path}: not Parquet ({error}); remove it, or write it again") from error


def _check_schemas(predictor: BatchPredictor, files: Sequence[Path]) -> None:
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


@contextmanager
def _cluster(ray: Any, cpus: int | None) -> Iterator[int]:
    """Ray, quiet: as it is initialised, else on the cluster of `RAY_ADDRESS`, else here, with `cpus` to give away.

    What it has to give is what comes.
    """
    if ray.is_initialized():
        yield int(ray.cluster_resources().get("CPU", 1))
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # stderr is ours; what fails is told by our errors
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:  # only names go through its memory; Ray takes 30 % of the machine's without a word
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 << 20, **quiet)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _run(
    ray: Any, worker: tuple[Any, ...], pieces: Sequence[Piece], workers: int, tell: Callable[[str], None]
) -> Done:
    """Every piece through the pool of actors. Ray starts a killed actor anew, and gives its piece away again."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # after the import, which sets it
    names = ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces))
    answered = names.map_batches(
        Worker,
        fn_constructor_args=worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=worker[0].threads,
    )
    rows = skipped = done = 0
    said = time.monotonic()
    try:
        for row in answered.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            done, rows, skipped = done + 1, rows + row["rows"], skipped + row["skipped"]
            for line in json.loads(row["told"]):
                tell(f"skipped: {line}")
            if time.monotonic() - said > 5 or done == len(pieces):
                said = time.monotonic()
                tell(f"{done} of {len(pieces)} pieces, {rows:,} rows, by {workers} worker(s)")
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [""])[-1]
        raise OhlolError(f"Ray cannot go on: {type(error).__name__}: {reason}") from error
    return Done(done, rows, skipped)


def _check_parts(folder: Path, expected: Sequence[str]) -> None:
    """Every part is there; what killed workers left half written goes."""
    there = {file.name for file in folder.iterdir()}
    missing = sorted(set(expected) - there)
    if missing:
        raise OhlolError(
            f"{len(missing)} of {len(expected)} parts are missing, the first {missing[0]}: the workers wrote elsewhere; "
            "the output must lie in a folder that all machines share"
        )
    for name in there - set(expected):
        (folder / name).unlink()

"""`ohlol predict --engine ray`: a folder of Parquet or JSON lines shards in, a folder of parts out, by many workers.

Ray Data hands the names of the input's pieces to a pool of actors, each of which holds a model, reads its piece where it lies and
writes its part of the output. No text goes through Ray: its own reader of text ends lines at U+2028 too, and that of JSON
by default makes timestamps of strings.

Where a worker is killed, Ray gives its piece to another one, which writes the same part. The folder of parts takes its
name once all of them are there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.artifacts.files import new_folder
from ohlol.serve.batch_predictor import BatchPredictor
from ohlol.serve.shards import OnError, Piece, Worker, check_schemas, cut, shards


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

    `tell` gets a line on the way now and then, and for each line skipped (`on_error="skip"`); null texts of
    Parquet have null answers.
    Raises `InputError` where the shards cannot be read or `output` is there, `OhlolError` where Ray fails; then there
    is no `output`.
    """
    files, form = shards(source)
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: is there already and stays as it is; name a new folder, or remove it")
    if form == "parquet":
        check_schemas(predictor, files)
    import ray  # late: what is wrong with the input is told without it

    wanted = None if workers is None else workers * predictor.threads
    with redirect_stdout(sys.stderr), _cluster(ray, wanted) as cpus:  # Ray prints which worker died
        workers = workers or max(1, cpus // predictor.threads)
        pieces = cut(files, form, workers)
        with new_folder(output) as folder:
            worker = (predictor, str(folder.absolute()), form, on_error)
            done = _run(ray, worker, pieces, min(workers, len(pieces)), tell)
            _check_parts(folder, [piece.part(form) for piece in pieces])
    return done


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
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
        ray.init(**quiet)
    else:  # only names go through its memory; Ray takes 30 % of the machine's without a word
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 << 20, **quiet)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `OhlolError` where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise OhlolError(
                f"RAY_ADDRESS is {address}: no cluster answers there ({error}); start it, or unset the variable"
            ) from error


def _run(
    ray: Any, worker: tuple[Any, ...], pieces: Sequence[Piece], workers: int, tell: Callable[[str], None]
) -> Done:
    """Every piece through the pool of actors. Ray starts a killed actor anew, and gives its piece away again."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # after the import, which sets it
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
                raise OhlolError(row["error"])
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

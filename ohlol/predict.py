"""The command `predict`: texts in, answers out."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ohlol
from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.serve.results import AS

if TYPE_CHECKING:
    from ohlol.serve.model import Model
    from ohlol.serve.progress import Progress


class File(click.Path):
    """A file's name, which is not empty; `-` is stdin or stdout."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; expected the name of a file, or -", param, ctx)
        return super().convert(value, param, ctx)


FILE = File(path_type=Path, allow_dash=True)
M_MMAP_THRESHOLD = -3  # malloc.h
FEW = 4_096  # characters of texts that need nothing of what files need
FORMATS = click.Choice(["text", "jsonl", "csv", "tsv", "parquet"])


@click.command()
@click.argument("model", metavar="BUNDLE|MODEL.onnx")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i",
    "--input",
    "sources",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Read texts from FILE. [default: stdin]",
)
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="Write to FILE, whole or not at all. [default: stdout]"
)
@click.option("--format", "form", type=FORMATS, help="Of the output. [default: by -o]")
@click.option("--input-format", type=FORMATS, help="Of the input. [default: by -i]")
@click.option("--field", default="text", show_default=True, help="The text's field (jsonl) or column.")
@click.option("--as", "as_", type=click.Choice(AS), default=AS[0], show_default=True)
@click.option("--probabilities", is_flag=True, help="Add how sure the model is.")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Before the names of the fields added (not in text)."
)
@click.option(
    "--max-length", type=click.IntRange(1), metavar="N", help="Refuse texts of more characters than N."
)
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
@click.option("--resume", is_flag=True, help="Go on with a run from FILE to FILE that was interrupted.")
@click.option(
    "--follow", is_flag=True, help="Answer each line as soon as it is there: a pipe that never ends."
)
@click.option("--progress/--no-progress", default=None, help="On stderr. [default: where it is a terminal]")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Batches, or workers of ray, at once. [default: as the CPUs allow]",
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="ray: -i names shards (.jsonl, .parquet; a file, folder or glob), -o a new folder.",
)  # fmt: skip
def predict(
    model: str, texts: tuple[str, ...], sources: tuple[Path, ...], output: Path | None, form: str | None,
    input_format: str | None, field: str, as_: str, probabilities: bool, prefix: str, max_length: int | None,
    on_error: str, resume: bool, follow: bool, progress: bool | None, threads: int, workers: int | None, engine: str,
) -> None:  # fmt: skip
    """Answer texts, one line each, in order.

    Texts are the arguments, else what a file holds (text, jsonl, csv, tsv, parquet; .gz and .zst are unpacked),
    else the lines of stdin: docs/predict.md.

    Text output has columns divided by tabs: labels or words (tag), the label (classify), or the bits per
    character and the likeliest next character (lm).
    """
    if len(sources) > 1:
        raise click.UsageError(
            "give one -i FILE: of several, cat them, or see --engine ray for a folder of shards"
        )
    source = next((path for path in sources if path != Path("-")), None)
    output = None if output == Path("-") else output
    if texts and source:
        raise click.UsageError("give TEXT or -i FILE, not both")
    for text in texts[:1]:
        if len(text) < 60 and Path(text).is_file():  # longer names cannot be asked for everywhere
            click.echo(f"note: {text} is a file; its name is answered here, -i {text} reads it", err=True)
    if engine == "ray":
        if source is None or output is None:
            raise click.UsageError("--engine ray needs -i SHARDS and -o DIR")
        if form or input_format:
            raise click.UsageError("--engine ray writes the form it reads; leave the formats to the names")
        if resume or follow or max_length:
            raise click.UsageError("--resume, --follow and --max-length are not for --engine ray")
    if resume and not (source and source.is_file() and output and (output.is_file() or not output.exists())):
        raise click.UsageError("--resume goes from -i FILE to -o FILE: a pipe cannot be read again")
    if follow and (texts or (source and not source.is_fifo())):
        raise click.UsageError("--follow reads a pipe: of a file that grows, tail -f FILE | ohlol predict …")
    if follow and output and (output.is_file() or not output.exists()):
        raise click.UsageError(
            "--follow never ends, and -o FILE is there once the run has ended: write > FILE"
        )
    loaded = ohlol.load(model, threads=threads, workers=workers or 0)
    if as_ != "labels" and loaded.manifest.label_scheme is None:
        raise click.UsageError(f"--as {as_}: the labels of {model} do not mark words")
    if engine == "ray":
        assert source  # as said above
        assert output
        _predict_shards(
            model, source, output, workers, on_error,
            column=field, as_=as_, probabilities=probabilities, prefix=prefix, threads=threads,
        )  # fmt: skip
        return
    if texts and output is None and form in (None, "text") and sum(map(len, texts)) < FEW:
        _few(loaded, texts, as_, probabilities, max_length, skip=on_error == "skip")
        return
    from ohlol.serve import jobs
    from ohlol.serve.progress import Progress

    if not texts and source is None and sys.stdin is not None and sys.stdin.isatty():
        click.echo("one text a line, Ctrl-D ends:", err=True)
        follow = True
    options = jobs.Options(
        input_format, form, field, as_, probabilities, prefix, max_length, skip=on_error == "skip"
    )
    if progress is None:
        beside_answers = output is None and sys.stdout is not None and sys.stdout.isatty()
        progress = (
            not texts and not follow and sys.stderr is not None and sys.stderr.isatty() and not beside_answers
        )
    _give_back_large_blocks()
    watch = Progress(progress)
    with _ended_early(output, watch, follow):
        tally = jobs.predict(
            loaded, texts, source, output, options, follow=follow, resume=resume, watch=watch
        )
    watch.end(tally)
    if tally.skipped:
        click.echo(f"{tally.skipped} line(s) could not be read and were skipped", err=True)


def _give_back_large_blocks() -> None:
    """Have glibc return large arrays to the system at once, as it does with the first ones: as it is, it keeps ever larger
    ones in its heap, in pieces, and a process that reads for hours grows by a hundred megabytes."""
    import ctypes  # late: few texts need none

    with suppress(OSError, AttributeError, TypeError):  # another C library, another system
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _few(
    model: Model[Any],
    texts: tuple[str, ...],
    as_: str,
    probabilities: bool,
    max_length: int | None,
    skip: bool,
) -> None:
    """Answer a few texts as lines of text. What reads and writes files would take longer to import than they to answer."""
    from ohlol.serve.output import stdout
    from ohlol.serve.windows import Reading, arguments

    skipped = 0

    def tell(error: InputError) -> None:
        nonlocal skipped
        if not skip:
            raise error
        skipped += 1
        click.echo(f"skipped: {error}", err=True)

    limits = [limit for limit in (max_length, model.max_length) if limit is not None]
    how = Reading("", "text", model.manifest.alphabet, tell, max_length=min(limits, default=None))
    out = stdout()
    rows = (window.rows for window in arguments(texts, how))
    for answers in model.answers(rows, probabilities=probabilities):
        out.write(answers.lines(probabilities=probabilities, as_=as_).encode("utf-8", "replace"))
    out.flush()
    if skipped:
        click.echo(f"{skipped} line(s) could not be read and were skipped", err=True)


def _predict_shards(
    model: str, source: Path, output: Path, workers: int | None, on_error: Any, **options: Any
) -> None:
    from ohlol.serve.batch_predictor import BatchPredictor
    from ohlol.serve.ray_engine import predict_shards

    predictor = BatchPredictor(model, **options)
    done = predict_shards(
        predictor, source, output, workers=workers, on_error=on_error,
        tell=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    if done.skipped:
        click.echo(f"{done.skipped} line(s) could not be read and were skipped", err=True)
    click.echo(f"{output} holds {done.rows:,} rows in {done.pieces} part(s)", err=True)


@contextmanager
def _ended_early(output: Path | None, watch: Progress, follow: bool) -> Iterator[None]:
    """One line where a run ends early, which says how to go on; SIGTERM ends it as Ctrl-C does."""
    from ohlol.serve.jobs import kept
    from ohlol.serve.output import OutputError

    def terminated(*_: object) -> None:
        raise KeyboardInterrupt

    before = None
    if threading.current_thread() is threading.main_thread():  # no other may ask
        before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except KeyboardInterrupt:
        if follow:  # the way it ends
            sys.exit(0)
        if output is None:
            watch.note("stopped")
        elif kept(output):
            watch.note(f"stopped; what is done is kept: the same command with --resume goes on to {output}")
        else:
            watch.note(f"stopped; {output} is as it was")
        sys.exit(1)
    except (OhlolError, OSError) as error:
        if output is not None and kept(output) and not isinstance(error, OutputError | FileNotFoundError):
            skipping = " --on-error skip" if isinstance(error, InputError) else ""
            watch.note(f"what is done is kept: the same command with --resume{skipping} goes on to {output}")
        else:
            watch.clear()
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)

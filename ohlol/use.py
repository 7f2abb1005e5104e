"""The commands that use a bundle or look at one: verify, bench, predict, inspect, compare. None needs torch, but for `verify --against`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ohlol
from ohlol.artifacts.errors import InputError

if TYPE_CHECKING:
    from ohlol.artifacts.parity import Proof
    from ohlol.serve.files import Record

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle")
@click.option("--against", type=PATH, metavar="RUN", help="Against RUN's checkpoint too, on other batches.")
@click.option(
    "--runtime", "use", multiple=True, default=("onnxruntime",), show_default=True,
    type=click.Choice(["onnxruntime", "openvino"]), help="May be given twice.",
)  # fmt: skip
def verify(bundle: str, against: Path | None, use: tuple[str, ...]) -> None:
    """Replay the proof of BUNDLE on this machine.

    From the bundle's own test data; the exit code is 1 on any mismatch.
    """
    from ohlol.serve.verify import verify as replay

    proofs: list[Proof] = [replay(bundle, use)]
    click.echo(proofs[0].table())
    if against:
        from ohlol.artifacts.bundle import open_named
        from ohlol.export.bundle import prove_again

        proofs.append(prove_again(open_named(bundle), against, use))
        click.echo(f"\n{proofs[1].table()}")
    if not all(proof.passed for proof in proofs):
        raise click.ClickException(f"{bundle}: does not answer here as it did where it was exported")


@click.command()
@click.argument("bundle")
@click.option("--peers", is_flag=True, help="In every runtime that is installed, not ONNX Runtime alone.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
def bench(bundle: str, peers: bool, threads: int) -> None:
    """Time the files of BUNDLE on this machine, side by side.

    On batches of 1×1, 1×64, 32×64 and 256×64 characters. Do nothing else meanwhile. The ratio is the time beside
    that of model.onnx, the difference that of the probabilities.
    """
    from ohlol.artifacts.bundle import open_named
    from ohlol.serve import bench as timing
    from ohlol.serve.runtimes import installed

    use = installed() if peers else ["onnxruntime"]
    click.echo(timing.table(timing.bench(open_named(bundle), use, threads=threads)))


@click.command()
@click.argument("model", metavar="BUNDLE|MODEL.onnx")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i", "--input", "source", type=PATH, metavar="FILE", help="Read texts from FILE. [default: stdin]"
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write to FILE, whole or not at all.")
@click.option(
    "--format", "form", type=click.Choice(["text", "jsonl", "csv"]), help="Of the output. [default: by -o]"
)
@click.option(
    "--input-format", type=click.Choice(["text", "jsonl", "csv"]), help="Of the input. [default: by -i]"
)
@click.option("--field", default="text", show_default=True, help="The text's field (jsonl) or column (csv).")
@click.option(
    "--as", "as_", type=click.Choice(["labels", "words", "sentences"]), default="labels", show_default=True
)
@click.option("--probabilities", is_flag=True, help="Add how sure the model is.")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Before the names of the fields added (jsonl, csv)."
)
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="ray: -i names shards (.jsonl, .parquet; a file, folder or glob), -o a new folder.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Of ray. [default: as the CPUs allow]")
def predict(
    model: str, texts: tuple[str, ...], source: Path | None, output: Path | None, form: str | None,
    input_format: str | None, field: str, as_: str, probabilities: bool, prefix: str, on_error: str, threads: int,
    engine: str, workers: int | None,
) -> None:  # fmt: skip
    """Answer texts, one line each, in order.

    Texts are the arguments, else the lines of a file (text, jsonl, csv), else those of stdin.

    Text output has columns divided by tabs: labels or words (tag), the label (classify), or the bits per
    character and the likeliest next character (lm).
    """
    from ohlol.artifacts.files import new_file
    from ohlol.serve.files import arguments, format_of, opened, records, stdout, write

    if texts and source:
        raise click.UsageError("give TEXT or -i FILE, not both")
    if workers and engine != "ray":
        raise click.UsageError("--workers goes with --engine ray")
    loaded = ohlol.load(model, threads=threads)
    if as_ != "labels" and loaded.manifest.label_scheme is None:
        raise click.UsageError(f"--as {as_}: the labels of {model} do not mark words")
    if engine == "ray":
        if source is None or output is None:
            raise click.UsageError("--engine ray needs -i SHARDS and -o DIR")
        if form or input_format:
            raise click.UsageError("--engine ray writes the form it reads; leave the formats to the names")
        options: dict[str, Any] = {
            "column": field,
            "as_": as_,
            "probabilities": probabilities,
            "prefix": prefix,
        }
        _predict_shards(model, source, output, workers, on_error, threads=threads, **options)
        return
    skipped = 0

    def skip(error: InputError) -> None:
        nonlocal skipped
        if on_error == "stop":
            raise error
        skipped += 1
        click.echo(f"skipped: {error}", err=True)

    with opened(texts, source) as file:
        name = "stdin" if source is None else str(source)
        read_as = format_of(str(source) if source else None, input_format)
        inputs: Iterable[Record] = (
            arguments(texts, skip) if texts else records(file, name, read_as, field, skip)
        )
        at_once = not texts and source is None and sys.stdin.isatty()
        if at_once:
            click.echo("one text a line, Ctrl-D ends:", err=True)
        form = format_of(str(output) if output else None, form)
        options = {
            "field": field,
            "probabilities": probabilities,
            "as_": as_,
            "prefix": prefix,
        }
        with stdout() if output is None else new_file(output) as out:
            write(loaded, inputs, out, form, at_once=at_once, **options)
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


@click.command()
@click.argument("path")
def inspect(path: str) -> None:
    """What a run, a bundle or an .onnx file is."""
    from ohlol.artifacts import describe
    from ohlol.artifacts.run import is_run

    if is_run(Path(path)):
        facts = describe.describe_run(Path(path))
    elif Path(path).suffix == ".onnx" and Path(path).is_file():
        from ohlol.artifacts.bundle import read
        from ohlol.serve.opening import read_manifest

        content = read(Path(path))
        manifest, kind = read_manifest(content, path)
        facts = describe.describe_file(manifest, kind, Path(path).name, content)
    else:
        from ohlol.artifacts.bundle import open_named

        bundle = open_named(path)
        facts = describe.describe_manifest(bundle.manifest, bundle.contents)
    click.echo(describe.table(facts))


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN|BUNDLE...")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def compare(paths: tuple[str, ...], form: str) -> None:
    """Runs and bundles side by side, and where their recipes differ.

    The best value of each metric is marked; bits per character, which are nats in another unit, are in the JSON.
    """
    from ohlol.artifacts import compare as table

    rows = table.compare(paths)
    click.echo(table.as_json(rows) if form == "json" else table.as_text(rows))

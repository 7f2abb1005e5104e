"""The commands of a language model: generate, score. Both on stream.onnx, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ohlol.artifacts.errors import InputError

if TYPE_CHECKING:
    from ohlol.serve.score import Line
    from ohlol.serve.windows import Window
    from ohlol.serve.writers import LineWriter

FILE = click.Path(path_type=Path, allow_dash=True)
FORMATS = click.Choice(["text", "jsonl", "csv", "tsv"])
INPUTS = click.Choice(["text", "jsonl", "csv", "tsv", "parquet"])
TOGETHER = 32  # characters that go to a pipe together


def _utf8(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse what is no UTF-8."""
    from ohlol.serve.windows import escaped

    if escaped("".join(value)):
        raise click.BadParameter("not UTF-8", ctx, param)
    return value


@click.command()
@click.argument("bundle", metavar="BUNDLE|stream.onnx")
@click.option("--prompt", callback=_utf8, default="", metavar="TEXT", help="What the text begins with.")
@click.option(
    "--length", type=click.IntRange(0), default=200, show_default=True, help="Characters to make, at most."
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True,
    help="Below 1 likelier, above 1 more varied; 0: always the likeliest character.",
)  # fmt: skip
@click.option("--top-k", type=int, metavar="K", help="Draw among the K likeliest only.")
@click.option(
    "--top-p", type=float, metavar="P", help="Draw among the likeliest that together have at least P."
)
@click.option("--seed", type=click.IntRange(0), help="The same seed makes the same text. [default: another]")
@click.option(
    "--stop", callback=_utf8, multiple=True, metavar="TEXT", help="End before this text; may be given twice."
)
@click.option("--no-prompt", is_flag=True, help="Print only what follows the prompt.")
def generate(
    bundle: str, prompt: str, length: int, temperature: float, top_k: int | None, top_p: float | None,
    seed: int | None, stop: tuple[str, ...], no_prompt: bool,
) -> None:  # fmt: skip
    """Make text with a language model.

    The prompt and what follows it, on stdout as it is made. Without a prompt, the text begins as after a line end.
    """
    from ohlol.serve.generate import Sampling
    from ohlol.serve.generate import generate as characters
    from ohlol.serve.output import stdout
    from ohlol.serve.stream import load

    if "" in stop:
        raise click.BadParameter("it is empty", param_hint="--stop")
    try:
        sampling = Sampling(temperature, top_k, top_p)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    made = characters(load(bundle), prompt, length=length, sampling=sampling, seed=seed, stop=stop)
    together = 1 if sys.stdout and sys.stdout.isatty() else TOGETHER
    out = stdout()
    out.write(b"" if no_prompt else prompt.encode())
    try:
        for number, character in enumerate(made):
            out.write(character.encode())
            if number % together == 0:
                out.flush()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(1)
    finally:
        out.write(b"\n")
        out.flush()


@click.command()
@click.argument("bundle", metavar="BUNDLE|stream.onnx")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i", "--input", "source", type=FILE, metavar="FILE", help="Read lines from FILE. [default: stdin]"
)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write to FILE, whole or not at all.")
@click.option("--format", "form", type=FORMATS, help="Of the output. [default: by -o]")
@click.option("--input-format", type=INPUTS, help="Of the input. [default: by -i]")
@click.option("--field", default="text", show_default=True, help="The text's field (jsonl) or column (csv).")
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N oddest, the oddest first.")
@click.option("--carry", is_flag=True, help="Lines are one running text: each is scored given those before.")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Before the names of the fields added (jsonl, csv)."
)
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
def score(
    bundle: str, texts: tuple[str, ...], source: Path | None, output: Path | None, form: str | None,
    input_format: str | None, field: str, top: int | None, carry: bool, prefix: str, on_error: str, threads: int,
) -> None:  # fmt: skip
    """Bits per character of each line: the more, the odder.

    Lines are read as by `ohlol predict`, by a language model. Text output is the line's bits per character and
    the line, with --top its number before them, divided by tabs. A line's first character is scored with --carry only.
    """
    from ohlol.serve.blocks import Place
    from ohlol.serve.inputs import opened
    from ohlol.serve.packed import format_of
    from ohlol.serve.score import Scorer, oddest
    from ohlol.serve.score import score as score_lines
    from ohlol.serve.stream import load
    from ohlol.serve.windows import Reading

    source = None if source == Path("-") else source
    output = None if output == Path("-") else output
    if texts and source:
        raise click.UsageError("give TEXT or -i FILE, not both")
    if input_format == "parquet" and source is None:
        raise click.UsageError("Parquet needs a file: -i FILE")
    file = load(bundle, threads=threads)
    scorer = Scorer(file, carry=carry)
    skipped = 0

    def skip(error: InputError) -> None:
        nonlocal skipped
        if on_error == "stop":
            raise error
        skipped += 1
        click.echo(f"skipped: {error}", err=True)

    name = "stdin" if source is None else str(source)
    how = Reading(name, format_of(source, input_format), file.manifest.alphabet, skip, field)
    at_once = not texts and source is None and sys.stdin is not None and sys.stdin.isatty()
    if at_once:
        click.echo("one line at a time, Ctrl-D ends:", err=True)
    with opened(texts, source, how, follow=at_once) as given:
        windows = cast("Iterator[Window]", given.read(Place()))  # lines in parts were not asked for
        lines: Iterable[Line] = score_lines(scorer, windows)
        if top:
            lines = oddest(lines, top)
        with _writer(output, format_of(output, form)) as writer:
            for line in lines:
                _write(writer, line, prefix, top is not None)
                if at_once:
                    writer.settle()
    if skipped:
        click.echo(f"{skipped} line(s) could not be read and were skipped", err=True)


@contextmanager
def _writer(output: Path | None, form: str) -> Iterator[LineWriter]:
    from ohlol.artifacts.files import new_file
    from ohlol.serve.output import Sink, stdout
    from ohlol.serve.packed import compressor
    from ohlol.serve.writers import WRITERS, Look

    if form not in WRITERS:
        raise click.UsageError(f"score writes {', '.join(WRITERS)}, not {form}")
    if output is None:
        writer = WRITERS[form](Sink(stdout()), Look(), {})
        yield writer
        writer.close()
        return
    with new_file(output) as file:
        writer = WRITERS[form](Sink(file.buffer, compressor(output)), Look(), {})
        yield writer
        writer.close()


def _write(writer: LineWriter, line: Line, prefix: str, with_number: bool) -> None:
    from ohlol.serve.writers import RowWriter, TextWriter, taken

    added = {"number": line.number} if with_number else {}
    if isinstance(writer, TextWriter):
        bits = "" if line.bits is None else f"{line.bits:.4f}"
        text = line.text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")  # in one line
        columns = [*map(str, added.values()), bits, text]
        writer.text("\t".join(columns) + "\n")
        return
    assert isinstance(writer, RowWriter)
    row = dict(line.row)
    for key, value in {**added, "bits_per_character": line.bits}.items():
        if prefix + key in row:
            raise taken(prefix + key)
        row[prefix + key] = value
    writer.rows([row])

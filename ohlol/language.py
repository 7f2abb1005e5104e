"""The commands of a language model: generate, score. Both on stream.onnx, without torch."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ohlol.artifacts.errors import InputError

if TYPE_CHECKING:
    from ohlol.serve.files import Record
    from ohlol.serve.score import Line

PATH = click.Path(path_type=Path)
FORMATS = click.Choice(["text", "jsonl", "csv"])
TOGETHER = 32  # characters that go to a pipe together


def _utf8(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Bytes of the command line that are no UTF-8 come through as lone surrogates."""
    if any("\udc80" <= character <= "\udcff" for character in "".join(value)):
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
    from ohlol.serve.files import stdout
    from ohlol.serve.generate import Sampling
    from ohlol.serve.generate import generate as characters
    from ohlol.serve.stream import load

    if "" in stop:
        raise click.BadParameter("it is empty", param_hint="--stop")
    try:
        sampling = Sampling(temperature, top_k, top_p)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    made = characters(load(bundle), prompt, length=length, sampling=sampling, seed=seed, stop=stop)
    together = 1 if sys.stdout and sys.stdout.isatty() else TOGETHER
    with stdout() as out:
        out.write("" if no_prompt else prompt)
        try:
            for number, character in enumerate(made):
                out.write(character)
                if number % together == 0:
                    out.flush()
        except KeyboardInterrupt:
            out.write("\n")
            out.flush()
            click.echo("stopped", err=True)
            sys.exit(1)
        out.write("\n")


@click.command()
@click.argument("bundle", metavar="BUNDLE|stream.onnx")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i", "--input", "source", type=PATH, metavar="FILE", help="Read lines from FILE. [default: stdin]"
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write to FILE, whole or not at all.")
@click.option("--format", "form", type=FORMATS, help="Of the output. [default: by -o]")
@click.option("--input-format", type=FORMATS, help="Of the input. [default: by -i]")
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
    from ohlol.artifacts.files import new_file
    from ohlol.serve.files import arguments, format_of, opened, records, stdout
    from ohlol.serve.score import Scorer, oddest
    from ohlol.serve.score import score as score_lines
    from ohlol.serve.stream import load

    if texts and source:
        raise click.UsageError("give TEXT or -i FILE, not both")
    scorer = Scorer(load(bundle, threads=threads), carry=carry)
    skipped = 0

    def skip(error: InputError) -> None:
        nonlocal skipped
        if on_error == "stop":
            raise error
        skipped += 1
        click.echo(f"skipped: {error}", err=True)

    def numbered(inputs: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        for number, record in enumerate(inputs, start=1):
            yield number + skipped, record

    with opened(texts, source) as file:
        name = "stdin" if source is None else str(source)
        read_as = format_of(str(source) if source else None, input_format)
        inputs = arguments(texts, skip) if texts else records(file, name, read_as, field, skip)
        at_once = not texts and source is None and sys.stdin.isatty()
        if at_once:
            click.echo("one line at a time, Ctrl-D ends:", err=True)
        lines: Iterable[Line] = score_lines(scorer, numbered(inputs), at_once=at_once)
        if top:
            lines = oddest(lines, top)
        form = format_of(str(output) if output else None, form)
        with stdout() if output is None else new_file(output) as out:
            for text in _written(lines, form, field, prefix, top is not None):
                out.write(text)
                if at_once:
                    out.flush()
    if skipped:
        click.echo(f"{skipped} line(s) could not be read and were skipped", err=True)


def _written(lines: Iterable[Line], form: str, field: str, prefix: str, with_number: bool) -> Iterator[str]:
    """Each line of the answer, with its line end; before those of a CSV, its header."""
    columns: list[str] = []
    for line in lines:
        if form == "text":
            bits = "" if line.bits is None else f"{line.bits:.4f}"
            number = f"{line.number}\t" if with_number else ""
            yield f"{number}{bits}\t{_flat(line.record.text)}\n"
            continue
        row: dict[str, Any] = {**line.record.fields, field: line.record.text}
        added = {"number": line.number} if with_number else {}
        for key, value in {**added, "bits_per_character": line.bits}.items():
            if prefix + key in row:
                raise InputError(
                    f"the input has a field {prefix + key!r}, which the answer would replace; put a word before the "
                    "names of the answer's fields, such as --prefix odd_"
                )
            row[prefix + key] = value
        if form == "jsonl":
            yield _json(row) + "\n"
            continue
        if not columns:
            columns = list(row)
            yield _csv(columns)
        if row.keys() != set(columns):
            odd = ", ".join(sorted(row.keys() ^ set(columns)))
            raise InputError(
                f"a CSV has the same fields in every row, these are not: {odd}; use --format jsonl"
            )
        yield _csv([_json(v) if isinstance(v, list | dict) else v for v in (row[c] for c in columns)])


def _flat(text: str) -> str:
    """In one line, as fields of CSV and JSON may not be."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _json(value: Any) -> str:
    """JSON that can be written as UTF-8: a lone surrogate stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or text.encode("utf-8", "replace").decode() == text else json.dumps(value)


def _csv(cells: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)  # told to end rows otherwise, it would leave a lone `\r` unquoted
    return buffer.getvalue().removesuffix("\r\n") + "\n"

"""The command line. Each command joins the stages it needs; what they do is theirs."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import ohlol
from ohlol.artifacts.errors import InputError, OhlolError

if TYPE_CHECKING:
    from ohlol.artifacts.parity import Proof
    from ohlol.serve.files import Record
    from ohlol.train.metrics import Metrics

PATH = click.Path(path_type=Path)
DATA = click.option(
    "--data",
    type=PATH,
    metavar="DIR",
    help="Where the recipe's files lie. [default: beside it, then $OHLOL_DATA]",
)
EXTRAS = {"torch", "onnx", "safetensors", "pydantic", "rich", "tomli_w"}


class Commands(click.Group):
    """Turns the errors ohlol raises on purpose, and those of the machine, into one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OhlolError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in EXTRAS:
                raise
            message = f"`ohlol {ctx.invoked_subcommand}` needs {error.name}: pip install 'ohlol[train]'"
            raise click.ClickException(message) from error
        except BrokenPipeError:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (nothing left to flush at exit)
            click.echo("stdout was closed by its reader: stopped", err=True)
            ctx.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ohlol.__version__, prog_name="ohlol")
def main() -> None:
    """Train small character-level RNNs, export them, prove the export, run it anywhere.

    Where a bundle is asked for, `hello` names the one shipped with ohlol. Answers go to stdout, everything
    else to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
    """


@main.command()
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Keep the run and the bundle here.")
def demo(output: Path | None) -> None:
    """Train, export, prove and run `hello`, in one go."""
    from ohlol.artifacts.bundle import Layout, open_bundle, shipped
    from ohlol.export.bundle import export as export_run
    from ohlol.train.data import load
    from ohlol.train.evaluate import answers
    from ohlol.train.loop import finish
    from ohlol.train.loop import train as train_run
    from ohlol.train.recipe import Recipe

    manifest = open_bundle(shipped()).manifest
    recipe = Recipe.parse(manifest.provenance["recipe"], "the recipe of `hello`")
    data = load(recipe, Path())
    text = data.train.examples[0].text

    def show(network: Any, record: dict[str, Any]) -> None:
        (ids,) = answers(network, data.train)
        predicted = "".join(data.vocabulary.labels[k] for k in ids)
        epoch = f"{record['epoch']:>2}/{recipe.train.epochs}"
        click.echo(f"epoch {epoch}  {text} -> {predicted}  loss {record['loss']:.3f}", err=True)

    with nullcontext(output) if output else tempfile.TemporaryDirectory() as folder:
        run, bundle = Path(folder) / "run", Path(folder) / "bundle"
        click.echo(f"training a 2-layer RNN to read {text!r} and answer 'ohlol'", err=True)
        finish(train_run(recipe, data, run, after_epoch=show), data)
        click.echo("\nexporting to TorchScript and ONNX, each held against PyTorch", err=True)
        click.echo(export_run(run, bundle).proof.table(), err=True)
        click.echo(f"\nanswering with ONNX Runtime from {Layout.onnx}", err=True)
        click.echo(f"{text} → {ohlol.load(bundle)(text)}")


@main.command()
@click.argument("recipe", type=PATH)
@click.option(
    "-o", "--output", type=PATH, metavar="RUN", help="The run's folder. [default: runs/<recipe's name>]"
)
@DATA
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a key: model.hidden_size=64."
)
@click.option("--resume", is_flag=True, help="Go on with the run that stands in RUN.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
def train(
    recipe: Path,
    output: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str,
) -> None:
    """Train the network that RECIPE describes.

    Leaves a run: the best and the last checkpoint, the metrics, the recipe as resolved. Ctrl-C stops between
    two steps and says how to go on.
    """
    from ohlol.train.data import data_folders, load
    from ohlol.train.loop import finish
    from ohlol.train.loop import train as train_run
    from ohlol.train.progress import progress
    from ohlol.train.recipe import Recipe

    parsed = Recipe.load(recipe, overrides)
    folder = output or Path("runs") / recipe.stem
    dataset = load(parsed, *data_folders(data, recipe.parent))
    parts = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    sizes = ", ".join(f"{len(part.rows):,} {name}" for name, part in parts.items() if part)
    alphabet = len(dataset.vocabulary.alphabet.characters)
    click.echo(f"{sizes} rows; {alphabet:,} characters, {len(dataset.vocabulary.labels):,} labels", err=True)
    ended = train_run(parsed, dataset, folder, resume=resume, device=device, progress=progress())
    if ended.interrupted:
        state = ended.state
        again = ["ohlol", "train", str(recipe), "-o", str(folder), "--resume"]
        again += ["--data", str(data)] if data else []
        again += [word for override in overrides for word in ("--set", override)]
        message = f"stopped after epoch {state.epoch}, step {state.step}; all of it is kept in {folder}. Go on with:"
        click.echo(f"{message}\n  {shlex.join(again)}", err=True)
        sys.exit(1)
    if ended.state.epoch < parsed.train.epochs:
        patience = parsed.train.early_stopping
        click.echo(f"stopped early: {patience} epochs without a better dev {parsed.monitor}", err=True)
    click.echo(f"\nbest epoch: {ended.state.best_epoch} of {ended.state.epoch}", err=True)
    _print_metrics(finish(ended, dataset))
    click.echo(f"{folder} holds the run; next: ohlol export {folder}", err=True)


@main.command()
@click.argument("path", metavar="RUN|BUNDLE")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@DATA
def evaluate(path: str, split: str, data: Path | None) -> None:
    """The task's metrics, on a run or on a bundle alike."""
    from ohlol.artifacts.run import Vocabulary, is_run
    from ohlol.train.data import data_folders, load_split
    from ohlol.train.evaluate import evaluate_network, evaluate_results
    from ohlol.train.recipe import Recipe

    if is_run(Path(path)):
        from ohlol.train.checkpoint import load_network

        network, recipe, vocabulary, state = load_network(Path(path))
        part = load_split(recipe, vocabulary, split, *data_folders(data, Path(state.data_folder)))
        _print_metrics({split: evaluate_network(network, part, vocabulary)})
        return
    model = ohlol.load(path)
    facts = model.manifest
    vocabulary = Vocabulary(facts.alphabet, facts.labels, facts.label_scheme)
    recipe = Recipe.parse(facts.provenance.get("recipe", {}), f"the recipe in {path}")
    part = load_split(recipe, vocabulary, split, *data_folders(data, Path()))
    results = model(example.text for example in part.examples)
    _print_metrics({split: evaluate_results(results, part, vocabulary, facts.task)})


@main.command()
@click.argument("run", type=PATH, required=False)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="BUNDLE",
    help="The bundle's folder. [default: bundle, in RUN or beside FILE]",
)
@click.option(
    "--formats",
    default="onnx,torchscript,stream,text",
    show_default=True,
    help="Which files, with commas between; batch, fp16, int8, pt2 are there too, and all.",
)
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@DATA
@click.option(
    "--state-dict", "weights", type=PATH, metavar="FILE", help="Weights (safetensors) in place of RUN."
)
@click.option("--recipe", type=PATH, metavar="RECIPE", help="What the network of --state-dict is.")
@click.option(
    "--unknown", type=click.IntRange(0), metavar="ID", help="Of --state-dict: its id for the unknown."
)
def export(
    run: Path | None,
    output: Path | None,
    formats: str,
    checkpoint: str,
    data: Path | None,
    weights: Path | None,
    recipe: Path | None,
    unknown: int | None,
) -> None:
    """Export RUN to a bundle and prove each file against PyTorch.

    In place of RUN, --state-dict and --recipe export weights that were trained elsewhere: docs/adopt.md.

    Where a file does not answer as PyTorch does, nothing is written and the exit code is 1.
    """
    if (run is None) == (weights is None):
        raise click.UsageError("give RUN, or --state-dict FILE with --recipe RECIPE, not both")
    if weights is None and (recipe or unknown is not None):
        raise click.UsageError("--recipe and --unknown go with --state-dict; RUN has its own")
    if weights is not None and recipe is None:
        raise click.UsageError(
            "--state-dict needs --recipe RECIPE, which says what network the weights are of"
        )
    from ohlol.export.bundle import FORMATS
    from ohlol.export.bundle import export as export_run

    chosen = tuple(FORMATS) if formats == "all" else tuple(formats.split(","))
    if "onnx" not in chosen or not set(chosen) <= set(FORMATS):
        known = ", ".join(FORMATS)
        raise click.BadParameter(
            f"found {formats!r}, expected onnx and any of {known}, with commas between, or all",
            param_hint="--formats",
        )
    with _run_of(run, weights, recipe, unknown) as folder:
        bundle = output or (run or cast(Path, weights).parent) / "bundle"
        exported = export_run(folder, bundle, chosen, checkpoint, data)
    click.echo(exported.proof.table(), err=True)
    for name, reason in exported.left_out.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    click.echo(f"proved; {bundle} holds the bundle. Next: ohlol predict {bundle} TEXT", err=True)


@main.command()
@click.argument("bundle")
@click.option("--against", type=PATH, metavar="RUN", help="Against RUN's checkpoint too, on other batches.")
@click.option(
    "--runtime", "use", multiple=True, default=("onnxruntime",), show_default=True, metavar="NAME",
    help="onnxruntime or openvino; may be given twice.",
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


@main.command()
@click.argument("bundle")
@click.option("--peers", is_flag=True, help="In every runtime that is installed, not ONNX Runtime alone.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
def bench(bundle: str, peers: bool, threads: int) -> None:
    """Time the files of BUNDLE on this machine, side by side.

    On batches of 1×1, 1×64, 32×64 and 256×64 characters. Do nothing else meanwhile.
    """
    from ohlol.artifacts.bundle import open_named
    from ohlol.serve import bench as timing
    from ohlol.serve.runtimes import installed

    use = installed() if peers else ["onnxruntime"]
    click.echo(timing.table(timing.bench(open_named(bundle), use, threads=threads)))


@main.command()
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
def predict(
    model: str, texts: tuple[str, ...], source: Path | None, output: Path | None, form: str | None,
    input_format: str | None, field: str, as_: str, probabilities: bool, prefix: str, on_error: str, threads: int,
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
    loaded = ohlol.load(model, threads=threads)
    if as_ != "labels" and loaded.manifest.label_scheme is None:
        raise click.UsageError(f"--as {as_}: the labels of {model} do not mark words")
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
        options: dict[str, Any] = {
            "field": field,
            "probabilities": probabilities,
            "as_": as_,
            "prefix": prefix,
        }
        with stdout() if output is None else new_file(output) as out:
            write(loaded, inputs, out, form, at_once=at_once, **options)
    if skipped:
        click.echo(f"{skipped} line(s) could not be read and were skipped", err=True)


@main.command()
@click.argument("path")
def inspect(path: str) -> None:
    """What a run, a bundle or an .onnx file is."""
    from ohlol.artifacts import describe
    from ohlol.artifacts.run import is_run

    if is_run(Path(path)):
        facts = describe.describe_run(Path(path))
    elif Path(path).suffix == ".onnx" and Path(path).is_file():
        from ohlol.serve.model import read_manifest

        content = Path(path).read_bytes()
        manifest, kind = read_manifest(content, path)
        facts = describe.describe_file(manifest, kind, Path(path).name, content)
    else:
        from ohlol.artifacts.bundle import open_named

        bundle = open_named(path)
        facts = describe.describe_manifest(bundle.manifest, bundle.contents)
    click.echo(describe.table(facts))


@contextmanager
def _run_of(
    run: Path | None, weights: Path | None, recipe: Path | None, unknown: int | None
) -> Iterator[Path]:
    """RUN, or a run made for the moment of weights that were trained elsewhere."""
    if weights is None or recipe is None:
        yield cast(Path, run)
        return
    from ohlol.export.state_dict import adopt_state_dict

    with tempfile.TemporaryDirectory() as folder:
        yield adopt_state_dict(weights, recipe, Path(folder) / "run", unknown)


def _print_metrics(splits: dict[str, Metrics]) -> None:
    for split, metrics in splits.items():
        for name, value in metrics.items():
            click.echo(f"{split:<5}  {name.replace('_', ' '):<20}  {value:.4f}")


if __name__ == "__main__":
    main()

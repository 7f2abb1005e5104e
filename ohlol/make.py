"""The commands that make a bundle: demo, init, train, evaluate, report, export. Each joins the stages it needs."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import ohlol
from ohlol.artifacts.errors import OhlolError

if TYPE_CHECKING:
    from ohlol.artifacts.contract import Task
    from ohlol.train.data import Split
    from ohlol.train.metrics import Metrics

PATH = click.Path(path_type=Path)
DATA = click.option(
    "--data",
    type=PATH,
    metavar="DIR",
    help="Where the recipe's files lie. [default: beside it, then $OHLOL_DATA]",
)


@click.command()
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


@click.command()
@click.argument("data", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default="recipe.toml",
    show_default=True,
    metavar="RECIPE",
    help="Where to write it; - is stdout.",
)
@click.option("--task", type=click.Choice(["tag", "classify", "lm"]), help="In place of the guess.")
def init(data: Path, output: Path, task: Task | None) -> None:
    """Write a recipe for DATA, a file or a folder, from a look at it.

    Task, columns and sizes are guesses; each is said, with its reason, here and in the recipe.
    """
    from ohlol.train.guess import guess

    stdout = str(output) == "-"
    if not stdout and output.exists():
        raise OhlolError(f"{output}: is there already and stays as it is; name another with -o, or delete it")
    guessed = guess(data, output.parent, task)
    text = guessed.recipe(data)
    for line in guessed.said():
        click.echo(line, err=True)
    if stdout:
        click.echo(text, nl=False)
        return
    output.write_text(text, encoding="utf-8")
    click.echo(f"{output} holds the recipe; next: {shlex.join(['ohlol', 'train', str(output)])}", err=True)


@click.command()
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
@click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard too, while training goes on.")
def train(
    recipe: Path,
    output: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str,
    tensorboard: bool,
) -> None:
    """Train the network that RECIPE describes.

    Leaves a run: the best and the last checkpoint, the metrics, the recipe as resolved, a report. Ctrl-C stops between
    two steps and says how to go on.
    """
    from ohlol.train.data import data_folders, load
    from ohlol.train.loop import finish
    from ohlol.train.loop import train as train_run
    from ohlol.train.progress import progress
    from ohlol.train.recipe import Recipe
    from ohlol.train.report import write_report

    parsed = Recipe.load(recipe, overrides)
    folder = output or Path("runs") / recipe.stem
    dataset = load(parsed, *data_folders(data, recipe.parent))
    parts = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    sizes = ", ".join(f"{len(part.rows):,} {name}" for name, part in parts.items() if part)
    alphabet = len(dataset.vocabulary.alphabet.characters)
    shown = progress(parsed.monitor)
    if tensorboard:
        from ohlol.train.board import Board

        shown = Board(folder, beside=shown)
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, one speaks
        click.echo(
            f"{sizes} rows; {alphabet:,} characters, {len(dataset.vocabulary.labels):,} labels", err=True
        )
    ended = train_run(parsed, dataset, folder, resume=resume, device=device, progress=shown)
    if not ended.first:
        sys.exit(1 if ended.interrupted else 0)
    if ended.interrupted:
        state = ended.state
        again = ["ohlol", "train", str(recipe), "-o", str(folder), "--resume"]
        again += ["--data", str(data)] if data else []
        again += ["--tensorboard"] if tensorboard else []
        again += [word for override in overrides for word in ("--set", override)]
        message = f"stopped after epoch {state.epoch}, step {state.step}; all of it is kept in {folder}. Go on with:"
        click.echo(f"{message}\n  {shlex.join(again)}", err=True)
        sys.exit(1)
    if ended.state.epoch < parsed.train.epochs:
        patience = parsed.train.early_stopping
        click.echo(f"stopped early: {patience} epochs without a better dev {parsed.monitor}", err=True)
    click.echo(f"\nbest epoch: {ended.state.best_epoch} of {ended.state.epoch}", err=True)
    results = finish(ended, dataset)
    _print_metrics(results)
    name = next(iter(results))  # dev if there is one, else test, else train
    page = write_report(folder, ended.network, name, cast("Split", parts[name]))
    click.echo(f"{page} shows it in a browser", err=True)
    click.echo(f"{folder} holds the run; next: ohlol export {folder}", err=True)


@click.command()
@click.argument("path", metavar="RUN|BUNDLE")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@DATA
def evaluate(path: str, split: str, data: Path | None) -> None:
    """The task's metrics, on a run or on a bundle alike."""
    from ohlol.artifacts.run import Vocabulary, is_run
    from ohlol.train.data import data_folders, load_split
    from ohlol.train.evaluate import evaluate_model, evaluate_network
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
    _print_metrics({split: evaluate_model(model, part, vocabulary, facts.task)})


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--split",
    type=click.Choice(["train", "dev", "test"]),
    help="[default: dev if there is one, else test, else train]",
)
@DATA
def report(run: Path, split: str | None, data: Path | None) -> None:
    """Write RUN/report.html anew: curves, confusions, the worst examples.

    Of the best checkpoint. The page is one file that needs no network.
    """
    from ohlol.train.checkpoint import load_network
    from ohlol.train.data import data_folders, load_split
    from ohlol.train.report import measured, write_report

    network, recipe, vocabulary, state = load_network(run)
    name = split or measured(recipe)
    part = load_split(recipe, vocabulary, name, *data_folders(data, Path(state.data_folder)))
    click.echo(f"{write_report(run, network, name, part)} shows it in a browser", err=True)


@click.command()
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
    from ohlol.export.bundle import chosen
    from ohlol.export.bundle import export as export_run

    names = formats if formats == "all" else [name.strip() for name in formats.split(",")]
    try:
        files = chosen(names)
    except OhlolError as error:
        raise click.BadParameter(str(error), param_hint="--formats") from error
    with _run_of(run, weights, recipe, unknown) as folder:
        bundle = output or (run or cast(Path, weights).parent) / "bundle"
        exported = export_run(folder, bundle, files, checkpoint, data)
    click.echo(exported.proof.table(), err=True)
    for name, reason in exported.left_out.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    click.echo(f"proved; {bundle} holds the bundle. Next: ohlol predict {bundle} TEXT", err=True)


@contextmanager
def _run_of(
    run: Path | None, weights: Path | None, recipe: Path | None, unknown: int | None
) -> Iterator[Path]:
    """RUN, or a run made for the moment of weights that were trained elsewhere."""
    if weights is None or recipe is None:
        yield cast(Path, run)
        return
    from ohlol.export.state_dict import adopt_state_dict
    from ohlol.train.checkpoint import load_state

    with tempfile.TemporaryDirectory() as folder:
        adopted = adopt_state_dict(weights, recipe, Path(folder) / "run", unknown)
        click.echo(f"ids: {load_state(adopted)[0].digests['weights']['ids']}", err=True)
        yield adopted


def _print_metrics(splits: dict[str, Metrics]) -> None:
    for split, metrics in splits.items():
        for name, value in metrics.items():
            click.echo(f"{split:<5}  {name.replace('_', ' '):<20}  {value:.4f}")

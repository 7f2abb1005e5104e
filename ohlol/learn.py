"""The commands that make a run and look at it: init, train, evaluate, report."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import ohlol
from ohlol.artifacts.errors import OhlolError
from ohlol.make import DATA, PATH

if TYPE_CHECKING:
    from ohlol.artifacts.contract import Task
    from ohlol.train.data import Dataset, Split
    from ohlol.train.loop import Run
    from ohlol.train.metrics import Metrics
    from ohlol.train.recipe import Recipe


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
@click.option("--dry-run", is_flag=True, help="Check recipe and data, print sizes and the estimated time.")
def train(
    recipe: Path,
    output: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str,
    tensorboard: bool,
    dry_run: bool,
) -> None:
    """Train the network that RECIPE describes.

    Leaves a run: the best and the last checkpoint, the metrics, the recipe as resolved, a report. Ctrl-C stops between
    two steps and says how to go on.
    """
    from ohlol.train.data import data_folders, load
    from ohlol.train.dry import look, summary
    from ohlol.train.loop import train as train_run
    from ohlol.train.progress import progress
    from ohlol.train.recipe import Recipe

    if dry_run and os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("--dry-run looks with one process; start it without torchrun")
    parsed = Recipe.load(recipe, overrides)
    folder = output or Path("runs") / recipe.stem
    dataset = load(parsed, *data_folders(data, recipe.parent))
    shown = progress(parsed.monitor)
    if tensorboard:
        from ohlol.train.board import Board

        shown = Board(folder, beside=shown)
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, one speaks
        for line in summary(dataset):
            click.echo(line, err=True)
    if dry_run:
        for line in look(parsed, dataset, device):
            click.echo(line, err=True)
        return
    ended = train_run(parsed, dataset, folder, resume=resume, device=device, progress=shown)
    if not ended.first:
        # Nothing is left to do, and the interpreter's own end aborts now and then while gloo's threads end.
        os._exit(1 if ended.interrupted else 0)
    if ended.interrupted:
        state = ended.state
        again = ["ohlol", "train", str(recipe), "-o", str(folder), "--resume"]
        again += ["--data", str(data)] if data else []
        again += ["--tensorboard"] if tensorboard else []
        again += ["--device", device] if device != "auto" else []
        again += [word for override in overrides for word in ("--set", override)]
        message = f"stopped after epoch {state.epoch}, step {state.step}; all of it is kept in {folder}. Go on with:"
        click.echo(f"{message}\n  {shlex.join(again)}", err=True)
        sys.exit(1)
    _tell_the_end(ended, dataset, parsed)


def _tell_the_end(ended: Run, dataset: Dataset, recipe: Recipe) -> None:
    from ohlol.train.loop import finish
    from ohlol.train.report import write_report

    state = ended.state
    if state.epoch < recipe.train.epochs:
        patience = recipe.train.early_stopping
        click.echo(f"stopped early: {patience} epochs without a better dev {recipe.monitor}", err=True)
    click.echo(f"\nbest epoch: {state.best_epoch} of {state.epoch}", err=True)
    results = finish(ended, dataset)
    _print_metrics(results)
    splits = {"dev": dataset.dev, "test": dataset.test, "train": dataset.train.whole()}
    name = next(iter(results))  # dev if there is one, else test, else train
    page = write_report(ended.folder, ended.network, name, cast("Split", splits[name]))
    click.echo(f"{page} shows it in a browser", err=True)
    click.echo(f"{ended.folder} holds the run; next: ohlol export {ended.folder}", err=True)


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
        _tell_other_data(state.digests, part)
        _print_metrics({split: evaluate_network(network, part, vocabulary)})
        return
    model = ohlol.load(path)
    facts = model.manifest
    vocabulary = Vocabulary(facts.alphabet, facts.labels, facts.label_scheme)
    recipe = Recipe.parse(facts.provenance.get("recipe", {}), f"the recipe in {path}")
    part = load_split(recipe, vocabulary, split, *data_folders(data, Path()))
    _tell_other_data(facts.provenance.get("data", {}), part)
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
    _tell_other_data(state.digests, part)
    click.echo(f"{write_report(run, network, name, part)} shows it in a browser", err=True)


def _tell_other_data(before: dict[str, Any], split: Split) -> None:
    """Figures on a file that has changed since training say little: what is measured may have been trained on."""
    from ohlol.train.guards import other_data

    for line in other_data(before, split.digests):
        click.echo(f"note: {line}", err=True)


def _print_metrics(splits: dict[str, Metrics]) -> None:
    for split, metrics in splits.items():
        for name, value in metrics.items():
            click.echo(f"{split:<5}  {name.replace('_', ' '):<20}  {value:.4f}")

"""The commands that make a bundle: demo, export. Each joins the stages it needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import click

import ohlol
from ohlol.artifacts.errors import OhlolError

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
@click.argument("run", type=PATH, required=False, metavar="[RUN|BUNDLE]")
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
@click.option(
    "--triton", type=PATH, metavar="DIR", help="Into a model repository of Triton Inference Server too."
)
@click.option("--hf", type=PATH, metavar="DIR", help="As a folder for the Hugging Face Hub too.")
@click.option("--mlflow", type=PATH, metavar="DIR", help="As a model of MLflow too.")
@click.option(
    "--c", "c_folder", type=PATH, metavar="DIR", help="As C source too, for the smallest networks: docs/c.md."
)
@click.option(
    "--c-weights",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="How --c stores them.",
)
@click.option("--name", help="The model's name there. [default: that of RUN]")
def export(
    run: Path | None,
    output: Path | None,
    formats: str,
    checkpoint: str,
    data: Path | None,
    weights: Path | None,
    recipe: Path | None,
    unknown: int | None,
    c_folder: Path | None,
    c_weights: Literal["float32", "int8"],
    name: str | None,
    **places: Path | None,
) -> None:
    """Export RUN to a bundle and prove each file against PyTorch.

    In place of RUN, --state-dict and --recipe export weights that were trained elsewhere: docs/adopt.md.

    Where a file does not answer as PyTorch does, nothing is written and the exit code is 1.

    --triton, --hf and --mlflow write what those expect, from the bundle: docs/places.md. Of a BUNDLE that
    is there already, they alone are written. --c needs RUN, since it writes the checkpoint's weights.
    """
    wanted = {place: folder for place, folder in places.items() if folder}
    if name and not (wanted or c_folder):
        raise click.UsageError("--name goes with --triton, --hf, --mlflow or --c")
    if _given("c_weights") and c_folder is None:
        raise click.UsageError("--c-weights goes with --c DIR")
    if run is not None and weights is None and _is_bundle(run):
        if c_folder is not None:
            raise click.UsageError(
                f"--c needs the RUN that {run} was made of; a bundle has its weights in ONNX files only"
            )
        _check_alone(run, wanted)
        _write_places(run, wanted, name)
        return
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
    from ohlol.artifacts.written import check_free
    from ohlol.serve import places as elsewhere

    bundle = output or (run or cast(Path, weights).parent) / "bundle"
    for place, folder in wanted.items():  # before the work, which takes minutes
        elsewhere.check(place, folder, name or elsewhere.name_of(bundle))
    if c_folder is not None:
        _check_apart(c_folder, {"the bundle": bundle, "RUN": run, **{f"--{p}": f for p, f in wanted.items()}})
        check_free(c_folder)
    source = None
    with _run_of(run, weights, recipe, unknown) as folder:
        if c_folder is not None:  # first: where it fails, no bundle is written either
            from ohlol.export import c

            source = c.export(folder, name or elsewhere.name_of(bundle), c_weights, checkpoint, data)
        exported = export_run(folder, bundle, files, checkpoint, data)
    click.echo(exported.proof.table(), err=True)
    for left, reason in exported.left_out.items():
        click.echo(f"left out: {left}: {reason}", err=True)
    click.echo(f"proved; {bundle} holds the bundle. Next: ohlol predict {bundle} TEXT", err=True)
    if source is not None and c_folder is not None:
        source.write(c_folder)
        if source.proof is not None:
            click.echo(f"\n{source.proof.table()}\nproved; ", err=True, nl=False)
        else:
            click.echo(
                f"not proved: {source.unproved}; {source.name}_test.c proves it where there is one; ",
                err=True,
                nl=False,
            )
        click.echo(f"{c_folder} holds {', '.join(source.files)}", err=True)
    _write_places(bundle, wanted, name)


def _given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not None and source != click.core.ParameterSource.DEFAULT


def _is_bundle(path: Path) -> bool:
    from ohlol.artifacts.bundle import HELLO, Layout

    return str(path) == HELLO or (path / Layout.manifest).is_file()


def _check_alone(bundle: Path, wanted: dict[str, Path]) -> None:
    """Of a bundle nothing is exported again, so what says how has no place."""
    if not wanted:
        raise click.UsageError(f"{bundle} is a bundle already; say where it goes: --triton, --hf or --mlflow")
    for option in ("output", "formats", "checkpoint", "data", "recipe", "unknown"):
        if _given(option):
            raise click.UsageError(f"--{option} goes with RUN; {bundle} is a bundle already")


def _check_apart(folder: Path, others: dict[str, Path | None]) -> None:
    """A folder of C is written whole, and so are others: where one lies in another, the later one would not be written."""
    for what, other in others.items():
        if other is None:
            continue
        ours, its = folder.resolve(), other.resolve()
        if ours.is_relative_to(its):
            raise click.UsageError(f"--c {folder} lies in {what}, {other}; name a folder outside of it")
        if what != "RUN" and its.is_relative_to(ours):
            raise click.UsageError(
                f"{what}, {other}, lies in --c {folder}; name another folder for one of them"
            )


def _write_places(bundle: Path, wanted: dict[str, Path], name: str | None) -> None:
    from ohlol.serve.places import write

    for place, folder in wanted.items():
        for written in write(str(bundle), place, folder, name):
            click.echo(f"{written} holds the model as --{place} has it", err=True)


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

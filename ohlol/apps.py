"""The commands for other people's apps: embed, and the page to play with."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("language", type=click.Choice(["js", "cpp"]))
@click.option("-o", "--output", type=PATH, default=Path(), metavar="DIR", help="Where to. [default: here]")
def embed(language: str, output: Path) -> None:
    """Copy what an app embeds to run a bundle: the JavaScript module or the C++ header.

    docs/javascript.md and docs/cpp.md say how to use them.
    """
    import ohlol.embed

    output.mkdir(parents=True, exist_ok=True)
    for file in sorted((Path(ohlol.embed.__file__).parent / language).iterdir()):
        shutil.copyfile(file, output / file.name)
        click.echo(output / file.name)


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.option("-o", "--output", type=PATH, required=True, metavar="SITE", help="The page's folder.")
@click.option("--title", help="What the page calls the model. [default: the bundle's name]")
@click.option(
    "--example", "examples", multiple=True, metavar="TEXT", help="A text to begin with; may be given often."
)
@click.option(
    "--runtime",
    type=PATH,
    metavar="DIR",
    help="The folder of the npm package onnxruntime-web. [default: that in node_modules, else npm fetches it once]",
)
def web(
    bundle: str, output: Path, title: str | None, examples: tuple[str, ...], runtime: Path | None
) -> None:
    """Write a page that runs BUNDLE in the browser, to play with: docs/playground.md.

    A folder of static files with all that they need: open its index.html by double click, or put it on any host.
    """
    from ohlol.artifacts.bundle import Layout, open_named
    from ohlol.embed import site
    from ohlol.embed.runtime import find
    from ohlol.serve.places import name_of

    opened = open_named(bundle)
    site.check_free(output)  # before anything is fetched
    found = find(runtime, lambda line: click.echo(line, err=True))
    index = site.write(opened, output, found, title or name_of(bundle), examples)
    if opened.manifest.task == "lm" and Layout.stream not in opened.contents:
        click.echo(f"the bundle has no {Layout.stream}: the page cannot generate; export it again", err=True)
    click.echo(index)

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

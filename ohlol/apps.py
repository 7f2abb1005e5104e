"""The commands for other people's apps: embed, and the page to play with."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


ELSEWHERE = (
    "For Java, C#, Go, Rust, Swift and Python the README.md of every bundle has a whole program (docs/languages.md); for C without "
    "a runtime: `ohlol export RUN --c DIR` (docs/c.md)."
)
THEN = {
    "js": "now: npm install {folder} onnxruntime-node --onnxruntime-node-install=skip, or onnxruntime-web; docs/javascript.md",
    "cpp": '#include "{folder}/ohlol.hpp"; docs/cpp.md says what to link',
}


class Language(click.Choice[str]):
    """What can be copied; of the others, where they are."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(f"{error.message} {ELSEWHERE}", ctx, param) from error


@click.command()
@click.argument("language", type=Language(["js", "cpp"]))
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("ohlol"),
    show_default=True,
    metavar="DIR",
    help="A folder of its own, which a later version may replace.",
)
def embed(language: str, output: Path) -> None:
    """Copy what an app embeds: a JavaScript module, or a C++ header.

    docs/javascript.md and docs/cpp.md say how to use them.
    """
    import ohlol.embed
    from ohlol.artifacts.written import check_free, write_folder

    check_free(output)
    source = Path(ohlol.embed.__file__).parent / language
    files = {file.name: file.read_bytes() for file in sorted(source.iterdir())}
    write_folder(output, files, language)
    for name in files:
        click.echo(output / name)
    shown = output.as_posix() if output.is_absolute() or language == "cpp" else f"./{output.as_posix()}"
    click.echo(THEN[language].format(folder=shown), err=True)


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
    from ohlol.artifacts.written import check_free
    from ohlol.embed import site
    from ohlol.embed.runtime import find
    from ohlol.serve.places import name_of

    opened = open_named(bundle)
    check_free(output)  # before anything is fetched
    found = find(runtime, lambda line: click.echo(line, err=True))
    index = site.write(opened, output, found, title or name_of(bundle), examples)
    if opened.manifest.task == "lm" and Layout.stream not in opened.contents:
        click.echo(f"the bundle has no {Layout.stream}: the page cannot generate; export it again", err=True)
    click.echo(index)

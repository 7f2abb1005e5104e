"""The command that answers over the network: serve."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ohlol.artifacts.errors import OhlolError
from ohlol.serve.http.limits import Limits

PATH = click.Path(path_type=Path)
TOKEN = "OHLOL_TOKEN"


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one."
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8_000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--token-file",
    type=PATH,
    metavar="FILE",
    help=f"Requests must bear the token in it. [default: that of ${TOKEN}]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Models that run at once. [default: the CPUs]")
@click.option(
    "--batch-wait", type=click.FloatRange(0, 1_000), default=round(1_000 * Limits.batch_wait), show_default=True,
    metavar="MS", help="How long a request waits for others while a model runs.",
)  # fmt: skip
@click.option("--max-body", type=click.IntRange(1), default=Limits.body, show_default=True, metavar="BYTES")
@click.option(
    "--max-texts", type=click.IntRange(1), default=Limits.texts, show_default=True, help="In a request."
)
@click.option(
    "--max-characters",
    type=click.IntRange(1),
    default=Limits.characters,
    show_default=True,
    help="In a request.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=Limits.queue, show_default=True, help="Requests that may wait."
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=Limits.connections,
    show_default=True,
    help="That may be open.",
)
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=Limits.timeout, show_default=True,
    metavar="SECONDS", help="From a request to its answer.",
)  # fmt: skip
@click.option(
    "--read-timeout", type=click.FloatRange(0, min_open=True), default=Limits.read_timeout, show_default=True,
    metavar="SECONDS", help="For a client to send a header, or a body, and to take an answer.",
)  # fmt: skip
@click.option(
    "--grace", type=click.IntRange(1), default=Limits.grace, show_default=True, metavar="SECONDS",
    help="For what was begun when the server is stopped.",
)  # fmt: skip
def serve(
    bundles: tuple[str, ...], host: str, port: int, token_file: Path | None, workers: int | None, batch_wait: float,
    max_body: int, max_texts: int, max_characters: int, queue: int, connections: int, timeout: float,
    read_timeout: float, grace: int,
) -> None:  # fmt: skip
    """Answer over HTTP with each BUNDLE.

    POST /predict {"texts": [...]}, the Open Inference Protocol under /v2, and a page at / to try it by hand.

    SIGTERM and Ctrl-C stop it when what was begun is finished; SIGHUP loads the bundles anew from where they lie.
    """
    from ohlol.serve.http import server
    from ohlol.serve.http.models import named
    from ohlol.serve.runtimes import cpus

    token = _token(token_file)
    limits = Limits(
        body=max_body, texts=max_texts, characters=max_characters, queue=queue, connections=connections,
        timeout=timeout, read_timeout=read_timeout, grace=grace, batch_wait=batch_wait / 1_000,
        workers=workers or cpus(),
    )  # fmt: skip
    paths = named(bundles)
    with server.listen(host, port) as bound:
        if token is None and not server.is_loopback(bound):
            click.echo(
                f"warning: whoever reaches {host} can use the models, load and unload them: no token is set (--token-file "
                f"or ${TOKEN}); the way there is not encrypted either, unless a proxy does it",
                err=True,
            )
        whole = server.run(paths, bound, host, limits, token, lambda line: click.echo(line, err=True))
    if not whole:
        click.echo(
            f"Error: some requests were cut off: they were not finished (--grace is {grace} s)", err=True
        )
        os._exit(1)  # the interpreter would wait for the threads that still run them


def _token(file: Path | None) -> str | None:
    """The bearer token, from a file or the environment: an argument would stand in every list of processes."""
    token = file.read_text(encoding="utf-8") if file else os.environ.get(TOKEN)
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        where = str(file) if file else f"${TOKEN}"
        raise OhlolError(
            f"{where}: expected a token of visible ASCII characters without spaces, found none such"
        )
    return token

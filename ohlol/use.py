"""The commands that look at a bundle: verify, bench, inspect, compare. None needs torch, but for `verify --against`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ohlol.artifacts.parity import Proof

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle")
@click.option("--against", type=PATH, metavar="RUN", help="Against RUN's checkpoint too, on other batches.")
@click.option(
    "--runtime", "use", multiple=True, default=("onnxruntime",), show_default=True,
    type=click.Choice(["onnxruntime", "openvino"]), help="May be given twice.",
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


@click.command()
@click.argument("bundle")
@click.option("--peers", is_flag=True, help="In every runtime that is installed, not ONNX Runtime alone.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads inside a batch."
)
def bench(bundle: str, peers: bool, threads: int) -> None:
    """Time the files of BUNDLE on this machine, side by side.

    On batches of 1×1, 1×64, 32×64 and 256×64 characters. Do nothing else meanwhile. The ratio is the time beside
    that of model.onnx, the difference that of the probabilities.
    """
    from ohlol.artifacts.bundle import open_named
    from ohlol.serve import bench as timing
    from ohlol.serve.runtimes import installed

    use = installed() if peers else ["onnxruntime"]
    click.echo(timing.table(timing.bench(open_named(bundle), use, threads=threads)))


@click.command()
@click.argument("path")
def inspect(path: str) -> None:
    """What a run, a bundle or an .onnx file is."""
    from ohlol.artifacts import describe
    from ohlol.artifacts.run import is_run

    if is_run(Path(path)):
        facts = describe.describe_run(Path(path))
    elif Path(path).suffix == ".onnx" and Path(path).is_file():
        from ohlol.artifacts.bundle import read
        from ohlol.serve.opening import read_manifest

        content = read(Path(path))
        manifest, kind = read_manifest(content, path)
        facts = describe.describe_file(manifest, kind, Path(path).name, content)
    else:
        from ohlol.artifacts.bundle import open_named

        bundle = open_named(path)
        facts = describe.describe_manifest(bundle.manifest, bundle.contents)
    click.echo(describe.table(facts))


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN|BUNDLE...")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def compare(paths: tuple[str, ...], form: str) -> None:
    """Runs and bundles side by side, and where their recipes differ.

    The best value of each metric is marked; bits per character, which are nats in another unit, are in the JSON.
    """
    from ohlol.artifacts import compare as table

    rows = table.compare(paths)
    click.echo(table.as_json(rows) if form == "json" else table.as_text(rows))

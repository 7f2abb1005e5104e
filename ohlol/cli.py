"""The command line: the group of commands, and what becomes of errors."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

import ohlol
from ohlol.artifacts.errors import OhlolError, printable

# What no command of serving needs, and the extra that brings it.
TRAIN = ("torch", "onnx", "safetensors", "pydantic", "rich", "tomli_w", "filelock", "matplotlib", "jinja2")
EXTRAS = {
    **dict.fromkeys(TRAIN, "train"),
    "tensorboard": "tensorboard",
    "pyarrow": "parquet",
    "starlette": "http",
    "uvicorn": "http",
    "ray": "ray",
}


# The module of each command. It is imported when the command is called: `ohlol predict` pays for itself alone.
MODULES = {
    "bench": "use",
    "compare": "use",
    "demo": "make",
    "embed": "apps",
    "evaluate": "learn",
    "export": "make",
    "generate": "language",
    "init": "learn",
    "inspect": "use",
    "predict": "predict",
    "report": "learn",
    "score": "language",
    "serve": "net",
    "train": "learn",
    "verify": "use",
    "web": "apps",
}


class Commands(click.Group):
    """Turns the errors ohlol raises on purpose, and those of the machine, into one message and exit code 1."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        command: click.Command = getattr(import_module(f"ohlol.{MODULES[cmd_name]}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OhlolError as error:
            raise click.ClickException(printable(str(error), "\n\t")) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"`ohlol {ctx.invoked_subcommand}` needs {error.name}: pip install 'ohlol[{extra}]'"
            raise click.ClickException(message) from error
        except BrokenPipeError:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (nothing left to flush at exit)
            click.echo("stdout was closed by its reader: stopped", err=True)
            ctx.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable(f"{where}{error.strerror or error}", "\n\t")) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ohlol.__version__, prog_name="ohlol")
def main() -> None:
    """Train small character-level RNNs, export them, prove the export, run it anywhere.

    Where a bundle is asked for, `hello` names the one shipped with ohlol. Answers go to stdout, everything
    else to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
    """


for name in MODULES:
    main.add_command(click.Command(name))  # for lists and hints; `get_command` brings the real one

if __name__ == "__main__":
    main()

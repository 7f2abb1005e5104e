"""Folders in which other people's servers and hubs expect a model, written from a bundle without their libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_named
from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.written import Files, check_free, write_folder
from ohlol.serve import hub, mlflow, triton
from ohlol.serve.model import of_bundle

PLACES = ("triton", "hf", "mlflow")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def write(bundle: str | Path, place: str, folder: str | Path, name: str | None = None) -> list[Path]:
    """Write the model of `bundle` into `folder` as `place`, one of `PLACES`, has it; the folders that were written.

    `triton`: `folder` is a repository, which may hold other models, and gets a model `name`, and `name`-text where the
    bundle has `text.onnx`. `hf`, `mlflow`: `folder` is the model itself, and `name` how it calls itself. Without `name`, that
    of the bundle's folder, or of the folder around it where that is just "bundle".
    Each folder is written whole or not at all, and in the place of another only where `write` has written that and
    nobody changed a file since. Raises `BundleError` where the bundle is not one, `OhlolError` for the rest.
    """
    opened = open_named(bundle)
    of_bundle(opened)  # its contract and facts
    name = name or name_of(bundle)
    check(place, folder, name)
    wanted = {Path(folder) / inside: files for inside, files in _contents(opened, place, name).items()}
    for path in _homes(place, folder, name):
        if path not in wanted and path.exists():
            raise OhlolError(
                f"{path}: is of another export, and this bundle has no {Layout.text} to put in its place; remove it, or "
                "Triton would answer strings by the old model"
            )
    for path, files in wanted.items():
        write_folder(path, files, place)
    return list(wanted)


def check(place: str, folder: str | Path, name: str) -> None:
    """Raise `OhlolError` where `write` could not: for its name, or for what is there already."""
    if not re.fullmatch(NAME, name):
        raise OhlolError(
            f"name {name!r}: expected letters, digits, '-', '_' and '.', a letter or digit first"
        )
    for path in _homes(place, folder, name):
        check_free(path)


def name_of(bundle: str | Path) -> str:
    """What a model is called after the folder it lies in: letters, digits, `-`, `_` and `.` alone."""
    path = Path(bundle) if bundle == HELLO else Path(bundle).resolve()
    name = path.parent.name if path.name == "bundle" and path.parent.name else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _homes(place: str, folder: str | Path, name: str) -> list[Path]:
    """Every folder that a place may have of a model."""
    return [
        Path(folder) / inside for inside in (triton.names(name, text=True) if place == "triton" else [""])
    ]


def _contents(bundle: Bundle, place: str, name: str) -> Mapping[str, Files]:
    """By the folder inside the one named: its files."""
    if place == "triton":
        return triton.repository(bundle, name)
    if place == "hf":
        return {"": hub.folder(bundle, name)}
    if place == "mlflow":
        return {"": mlflow.folder(bundle, name)}
    raise OhlolError(f"place {place!r}: expected one of {', '.join(PLACES)}")

"""Folders in which other people's servers and hubs expect a model, written from a bundle without their libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohlol.artifacts.bundle import HELLO, Bundle, Layout, open_named
from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.files import new_folder, sha256, sha256_of_file
from ohlol.serve import hub, mlflow, triton
from ohlol.serve.model import of_bundle

RECORD = "written-by-ohlol.json"  # the sha256 of every file written: what of a folder is ours to replace
PLACES = ("triton", "hf", "mlflow")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

Files = Mapping[str, bytes]  # by their names, with / between parts


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


def check_free(folder: Path) -> None:
    """Raise `OhlolError` where a folder holds anything but what `write` once wrote there, as it wrote it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        record: Any = json.loads((folder / RECORD).read_bytes())
        digests = dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OhlolError(
            f"{folder}: is there already, and not as `ohlol export` writes it; name another folder, or remove it"
        ) from error
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).as_posix()
        if file.is_dir() or inside == RECORD:
            continue
        if inside not in digests or sha256_of_file(file) != digests[inside]:
            raise OhlolError(
                f"{folder}: {inside} was added or changed since `ohlol export` wrote the folder; move it away, or name "
                "another folder"
            )


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


def write_folder(folder: Path, files: Files, place: str) -> None:
    """Write a folder whole, in the place of any that is there: `check_free` says whether it may."""
    digests = {name: sha256(content) for name, content in sorted(files.items())}
    record = json.dumps({"place": place, "files": digests}, indent=2) + "\n"
    with new_folder(folder.resolve()) as unfinished:
        for name, content in {**files, RECORD: record.encode()}.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(content)

"""Folders that are written whole for others, and replaced only where nobody changed them since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.files import new_folder, sha256, sha256_of_file

RECORD = "written-by-ohlol.json"  # the sha256 of every file written: what of a folder is ours to replace

Files = Mapping[str, bytes]  # by their names, with / between parts


def check_free(folder: Path) -> None:
    """Raise `OhlolError` where a folder holds anything but what `write_folder` once wrote there, as it wrote it.

    Nor is the working directory free: whoever stands in it would stand in a folder that is gone.
    """
    if folder.is_dir() and folder.samefile("."):
        raise OhlolError(f"{folder}: is the working directory, which cannot be replaced; name another folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise OhlolError(f"{folder}: is a file, expected a folder; name another one")
    try:
        record: Any = json.loads((folder / RECORD).read_bytes())
        digests = dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OhlolError(
            f"{folder}: is there already, and not as ohlol writes it; name another folder, or remove it"
        ) from error
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).as_posix()
        if file.is_dir() or inside == RECORD:
            continue
        if inside not in digests or sha256_of_file(file) != digests[inside]:
            raise OhlolError(
                f"{folder}: {inside} was added or changed since ohlol wrote the folder; move it away, or name "
                "another folder"
            )


def write_folder(folder: Path, files: Files, place: str) -> None:
    """Write a folder whole, in the place of any that is there: `check_free` says whether it may."""
    digests = {name: sha256(content) for name, content in sorted(files.items())}
    record = json.dumps({"place": place, "files": digests}, indent=2) + "\n"
    with new_folder(folder.resolve()) as unfinished:
        for name, content in {**files, RECORD: record.encode()}.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(content)

"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file to write that takes the name `path` once it is complete.

    A lone surrogate is written as `?`. If the block raises, `path` is as it was before. What is no regular
    file (a device, a pipe) is written to directly; behind a link, the file it leads to is exchanged.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path`, in the place of any folder there, once it is complete.

    A process killed at any moment leaves the old folder or the new one, the old one perhaps under the
    name that `folder_or_backup` looks for. If the block raises, `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    backup = _backup(path)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        for file in sorted(part.rglob("*")):
            sync(file)
        sync(part)
        if os.path.lexists(path):
            _remove(backup)
            path.replace(backup)
        part.replace(path)
        sync(path.parent)
        with suppress(OSError):
            _remove(backup)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if os.path.lexists(backup) and not os.path.lexists(path):
            backup.replace(path)
        raise


def folder_or_backup(path: Path) -> Path:
    """`path`, or the whole old folder that a killed `new_folder` left beside it."""
    return path if path.exists() or not _backup(path).exists() else _backup(path)


def _backup(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link (never what it points to), where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

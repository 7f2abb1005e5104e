"""Opening a bundle: the folder that an export leaves and that serving reads."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ohlol.artifacts.contract import Kind
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.files import folder_or_backup, sha256
from ohlol.artifacts.manifest import Entry, Manifest

HELLO = "hello"  # the name of the bundle shipped in the package
MOST_BYTES = 2**31 - 1  # of one file: protobuf, and so ONNX, ends there
MOST_FACTS = 2**26  # bytes of a manifest; 65,536 characters and as many labels take a twentieth


class Layout:
    """Every file name of a bundle; no other module spells one."""

    manifest = "manifest.json"
    onnx = "model.onnx"
    batch = "model.batch.onnx"
    half = "model.fp16.onnx"
    int8 = "model.int8.onnx"
    stream = "stream.onnx"
    text = "text.onnx"
    torchscript = "model.torchscript.pt"
    program = "model.pt2"
    proof = "proof.json"
    card = "README.md"
    test_data = "test_data_set_{}"
    # In there: `input_0.pb`, …, and of these `…_0.pb`, …, by the file that answers so; for all others `onnx`'s.
    expected: ClassVar = {onnx: "output", half: "fp16_output", int8: "int8_output"}


# Every ONNX file of a bundle, and what goes into it.
ONNX: dict[str, Kind] = {
    Layout.onnx: "model",
    Layout.batch: "model",
    Layout.half: "model",
    Layout.int8: "model",
    Layout.stream: "stream",
    Layout.text: "text",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was there with the right digest when it was opened.

    `contents` holds the bytes that were checked, by the name in the manifest: what runs is what was
    checked, whatever happens to the folder afterwards.
    """

    path: Path
    manifest: Manifest
    contents: dict[str, bytes]


def shipped() -> Path:
    """The folder of the `hello` bundle inside the package."""
    return Path(__file__).parent / HELLO


def open_named(path: str | Path) -> Bundle:
    """The bundle in the folder `path`, or the shipped one by its name. Raises `BundleError`."""
    return open_bundle(shipped() if path == HELLO else Path(path))


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and check each file's digest. Raises `BundleError`, naming what is wrong."""
    try:
        path = folder_or_backup(path)
        if not path.is_dir():
            problem = "is not a folder" if path.exists() else "does not exist"
            if path.is_file() and path.suffix == ".onnx":
                problem += ": name the one that it lies in"
            raise BundleError(f"{path}: {problem}; expected a bundle made by `ohlol export`")
        where = path / Layout.manifest
        if not where.is_file():
            hint = ""
            if (path / "recipe.toml").is_file():
                hint = f"; it looks like a run: make a bundle of it with `ohlol export {path}`"
            raise BundleError(f"{path}: has no {Layout.manifest}, so it is not a bundle{hint}")
    except (OSError, ValueError) as error:  # no rights, a name that cannot be
        raise BundleError(
            f"{path}: cannot be read ({error}); expected a bundle made by `ohlol export`"
        ) from error
    manifest = Manifest.from_json(read(where, MOST_FACTS), str(where))
    if Layout.onnx not in manifest.files:
        raise BundleError(f"{where}: lists no {Layout.onnx}; the bundle is damaged, export it again")
    for name in (Layout.half, Layout.int8):
        if name in manifest.files and not manifest.files[name].measured:
            raise BundleError(f"{where}: does not say what {name} costs in precision; export it again")
    root = path.resolve()
    contents = {name: _checked(root, path / name, entry) for name, entry in manifest.files.items()}
    return Bundle(path, manifest, contents)


def read(file: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, which has at most `most`. Raises `BundleError`."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = opened.read(size) if size <= most else b""
    except (OSError, ValueError, MemoryError) as error:  # no rights, no name here, no room
        raise BundleError(f"{file}: cannot be read ({error!r}); copy or export it again") from error
    if size > most:
        raise BundleError(f"{file}: has {size:,} bytes, expected at most {most:,}; refused")
    return data


def _checked(root: Path, file: Path, entry: Entry) -> bytes:
    """The bytes of a file inside `root`, looked at only as far as is needed to refuse it."""
    there, size = False, 0
    try:
        inside = file.resolve().is_relative_to(root)
        with suppress(FileNotFoundError, NotADirectoryError):
            state = file.stat()
            there, size = stat.S_ISREG(state.st_mode), state.st_size
    except (OSError, ValueError, RuntimeError) as error:  # no rights, no name here, a loop of links
        raise BundleError(f"{file}: cannot be read ({error}); copy or export the bundle again") from error
    if not inside:
        raise BundleError(f"{file}: a link that leaves the bundle; refused")
    if not there:
        raise BundleError(f"{file}: missing; the manifest lists it. Copy or export the bundle again")
    if size != entry.bytes:
        raise BundleError(
            f"{file}: damaged or changed: it has {size:,} bytes, the manifest says {entry.bytes:,}; copy or export the "
            "bundle again"
        )
    data = read(file)
    check_content(data, entry, file)
    return data


def check_content(data: bytes | bytearray, entry: Entry, file: Path) -> None:
    """Raise `BundleError` where `data` is not what the manifest says of `file`."""
    found = sha256(data)
    if found != entry.sha256:
        raise BundleError(
            f"{file}: damaged or changed: its sha256 is {found[:12]}…, the manifest says {entry.sha256[:12]}…; copy or "
            "export the bundle again"
        )

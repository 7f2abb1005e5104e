"""The files of ONNX Runtime that run in a browser: of the npm package onnxruntime-web, found or fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.files import new_folder, sha256

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"  # the one that the tests run
VERSIONS = r"[0-9A-Za-z.+-]{1,60}"
MODULE, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
DIGESTS = {  # of that version, wherever it comes from
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MOST_BYTES = 2**26  # of one of its files; they have 14 MB
PATIENCE = 300  # seconds for npm

Say = Callable[[str], None]


@dataclass(frozen=True)
class Runtime:
    """`module` is JavaScript (an ES module in UTF-8), `wasm` what it runs."""

    version: str
    module: bytes
    wasm: bytes


def find(folder: Path | None, say: Say) -> Runtime:
    """The runtime of the package in `folder`; without one, of `node_modules` here or above, of the cache, or from npm.

    `say` gets a line where the version is not the tested one, and where something is fetched. Raises `OhlolError` where
    there is none or its files are not as they were released.
    """
    if folder is None:
        folder = next((path for path in _places() if (path / "package.json").is_file()), None)
    return _read(folder or _fetch(say), say)


def _places() -> Iterator[Path]:
    here = Path.cwd()
    yield from (path / "node_modules" / PACKAGE for path in (here, *here.parents))
    yield _cache()


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    return base / "ohlol" / f"{PACKAGE}-{VERSION}"


def _read(folder: Path, say: Say) -> Runtime:
    try:
        about = json.loads((folder / "package.json").read_bytes())
        name, version = about["name"], about["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OhlolError(
            f"{folder}: not the folder of the npm package {PACKAGE} ({error}); {_ADVICE}"
        ) from error
    if name != PACKAGE:
        raise OhlolError(f"{folder}: holds the package {str(name)!r:.80}, expected {PACKAGE}; {_ADVICE}")
    if not isinstance(version, str) or not re.fullmatch(
        VERSIONS, version
    ):  # it stands in a comment of the page
        raise OhlolError(
            f"{folder}: its version is {str(version)!r:.80}, expected one like {VERSION}; {_ADVICE}"
        )
    files = {}
    for name, digest in DIGESTS.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise OhlolError(
                f"{file}: no such file, or not one of {PACKAGE}; its version is {version}. {_ADVICE}"
            )
        files[name] = file.read_bytes()
        if version == VERSION and sha256(files[name]) != digest:
            raise OhlolError(
                f"{file}: not the file of {PACKAGE} {VERSION}: its sha256 is {sha256(files[name])[:12]}…, expected "
                f"{digest[:12]}…; remove {folder} and install it again"
            )
    if version != VERSION:
        say(f"{folder}: {PACKAGE} {version}; the page was tested with {VERSION}")
    return Runtime(version, files[MODULE], files[WASM])


def _fetch(say: Say) -> Path:
    """The package from npm's registry, its few files kept in the cache."""
    npm = shutil.which("npm")
    if npm is None:
        raise OhlolError(
            f"{PACKAGE} is not in node_modules here or above, and npm is not installed; {_ADVICE}"
        )
    cache = _cache()
    say(f"fetching {PACKAGE} {VERSION} with npm, once, into {cache}")
    with tempfile.TemporaryDirectory() as name:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", name]
        try:
            ran = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", cwd=name, timeout=PATIENCE, check=False
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OhlolError(f"npm cannot fetch {PACKAGE} {VERSION} ({error}); {_ADVICE}") from error
        archives = list(Path(name).glob("*.tgz"))
        if ran.returncode or len(archives) != 1:
            raise OhlolError(
                f"npm cannot fetch {PACKAGE} {VERSION} ({_reason(ran.stderr) or ran.returncode}); {_ADVICE}"
            )
        _unpack(archives[0], cache)
    return cache


def _reason(said: str) -> str:
    """What npm says of an error, without where in its own code that was, and without its advice."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("npm error ") for line in lines if line.startswith("npm error ")]
    return "; ".join(errors[:4] or lines[-4:])[:400]


def _unpack(archive: Path, folder: Path) -> None:
    """Of the package, what is needed, checked, in `folder`: whole or not at all."""
    with new_folder(folder) as part, tarfile.open(archive, "r:gz") as packed:
        for name in ("package.json", *DIGESTS):
            try:
                file = packed.extractfile(f"package/{name}")
            except KeyError:
                file = None
            content = b"" if file is None else file.read(MOST_BYTES)
            if sha256(content) != DIGESTS.get(name, sha256(content)) or not content:
                raise OhlolError(
                    f"npm's {PACKAGE} {VERSION} has not the {name} that was released; refused. {_ADVICE}"
                )
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(content)


_ADVICE = (
    f"where there is a network, run `npm install {PACKAGE}@{VERSION}` here, or there and name its folder: "
    f"--runtime node_modules/{PACKAGE}"
)

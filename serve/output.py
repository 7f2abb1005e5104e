"""Where answers are written: to stdout, into a pipe, or beside a file that takes its name once it is whole.

What is written of OUT stands in the folder `.OUT.ohlol-part` beside it, with a journal of how far it is: a run that is
killed at any moment can be gone on with, and OUT is as it was until the end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ohlol.artifacts.errors import InputError
from ohlol.artifacts.files import sync
from ohlol.serve.blocks import Place

if TYPE_CHECKING:
    from ohlol.serve.packed import Compressor


class OutputError(InputError):
    """A file is being written by another run, or an interrupted run cannot be gone on with."""


class Sink:
    """Bytes into a file, compressed where `make` says how, in parts that each can be read alone."""

    def __init__(
        self, file: IO[bytes], make: Callable[[], Compressor] | None = None, written: int = 0
    ) -> None:
        self._file = file
        self._make = make
        self._part: Compressor | None = None
        self._written = written

    def write(self, data: bytes) -> None:
        if self._make and data:
            self._part = self._part or self._make()
            data = self._part.compress(data)
        self._written += self._file.write(data)

    def settle(self) -> int:
        """End the compressed part, pass on all that is written; the file's size then."""
        if self._part:
            self._written += self._file.write(self._part.flush())
            self._part = None
        self._file.flush()
        return self._written

    def close(self) -> None:
        """The end of the file, which is not empty where it is compressed."""
        if self._make and not self.settle():
            self._part = self._make()
        self.settle()


@dataclass
class Journal:
    """How far a run is. `facts` says what is answered, by which model and how; all must be the same to go on.

    `written` is the output's size in bytes (Parquet: in parts), and `state` what its writer must know again. `done`:
    nothing is left but that the output takes its name.
    """

    facts: dict[str, Any]
    place: Place = field(default_factory=Place)
    written: int = 0
    skipped: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    done: bool = False


class Beside:
    """The folder in which OUT is made."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # behind a link, its file is exchanged
        self.folder = self.path.with_name(f".{self.path.name}.ohlol-part")
        self.output = self.folder / "output"
        self._journal = self.folder / "journal.json"

    @property
    def kept(self) -> bool:
        """Whether there is something to go on from."""
        return self._journal.is_file()

    def load(self, facts: dict[str, Any]) -> Journal | None:
        """The journal of a run that was interrupted; None where nothing is left of it to go on from.

        Raises `OutputError` where it was of something else.
        """
        if not self.kept:
            return None
        try:
            found = Journal(**json.loads(self._journal.read_text(encoding="utf-8")))
            found.place = Place(*map(int, found.place))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{self._journal}: damaged ({error}); start anew without --resume") from error
        for name, what in (("version", "ohlol"), ("input", "the input"), ("model", "the model")):
            if found.facts.get(name) != facts[name]:
                raise OutputError(
                    f"{self.path}: cannot go on: {what} is not what the interrupted run had; start anew without --resume"
                )
        before, now = found.facts.get("options", {}), facts["options"]
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            values = ", ".join(
                f"{name} was {before.get(name)!r}, now it is {now[name]!r}" for name in changed
            )
            raise OutputError(
                f"{self.path}: cannot go on: {values}; give the same options, or start anew without --resume"
            )
        if found.done and not self.output.exists() and not self.path.exists():
            return None  # its name was given to it, and OUT removed since
        return found

    def save(self, journal: Journal) -> None:
        """Keep how far the run is; what is written up to there is on the disk then."""
        if self.output.exists():
            sync(self.output)
        new = self._journal.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(journal), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._journal)

    @contextmanager
    def opened(self, written: int) -> Iterator[IO[bytes]]:
        """`output`, cut to the bytes that an interrupted run is known to have written."""
        if written and (not self.output.exists() or self.output.stat().st_size < written):
            raise OutputError(f"{self.output}: shorter than its journal says; start anew without --resume")
        with self.output.open("r+b" if written else "wb") as file:
            file.truncate(written)
            file.seek(written)
            yield file

    def clear(self) -> None:
        """Drop what an earlier run left; the lock stays."""
        for file in self.folder.iterdir():
            if file.name != "lock":
                file.unlink()

    def finish(self) -> None:
        """`output` takes the name of OUT."""
        sync(self.output)
        self.output.replace(self.path)
        sync(self.path.parent)


@contextmanager
def beside(path: Path) -> Iterator[Beside]:
    """The folder in which `path` is made, for this process alone.

    It is removed at the end, and where the block raises before there is something to go on from. Raises `OutputError`
    where another process is at work on the same file.
    """
    made = Beside(path)
    made.path.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(made)
    keep = False
    try:
        yield made
    except BaseException:
        keep = made.kept
        raise
    finally:
        if not keep:
            from shutil import rmtree  # late: it is not light, and stdout needs none

            rmtree(made.folder, ignore_errors=True)
        lock.close()


def _locked(made: Beside) -> IO[bytes]:
    name = made.folder / "lock"
    while True:
        made.folder.mkdir(exist_ok=True)
        try:
            file = name.open("wb")
        except FileNotFoundError:  # another run ended just now, and removed the folder
            continue
        try:
            _lock(file)
        except OSError:
            file.close()
            raise OutputError(
                f"{made.path}: another run is writing it; wait for its end, or stop it"
            ) from None
        if name.exists() and os.path.samestat(name.stat(), os.fstat(file.fileno())):
            return file
        file.close()


if sys.platform == "win32":

    def _lock(file: IO[bytes]) -> None:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:

    def _lock(file: IO[bytes]) -> None:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it, however the process ends


def stdout() -> IO[bytes]:
    if sys.stdout is None:
        raise InputError("stdout is closed; write to a file with -o FILE")
    return sys.stdout.buffer

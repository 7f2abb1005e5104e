"""Examples end to end in a few arrays: in memory where the data is small, in a cache on disk where it is not."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ohlol.artifacts.errors import DataError
from ohlol.artifacts.files import new_folder, sha256
from ohlol.train.readers import Example

VERSION = 1  # of the cache's files
BLOCK = 1 << 20  # characters handled at once
COLUMNS = ("codes", "labels", "offsets", "lines")
FACTS = "facts.json"

Array = NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Examples end to end: example e is `codes[offsets[e] : offsets[e + 1]]`, code points.

    `labels` are numbers into `names`, one for each code point (`tag`), one for each example (`classify`), or
    none (`lm`). `lines` says where an example stands in its file. `maps` are the files behind the arrays.
    """

    codes: Array  # (N,) uint8, uint16 or uint32: the smallest that holds `highest`
    labels: Array  # (N,), (E,) or (0,), likewise
    offsets: NDArray[np.int64]  # (E + 1,)
    lines: NDArray[np.int64]  # (E,)
    names: tuple[str, ...]
    highest: int  # code point
    maps: tuple[mmap.mmap, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def example(self, number: int) -> Example:
        start, end = (int(k) for k in self.offsets[number : number + 2])
        own = self.labels[number : number + 1] if self.per_example else self.labels[start:end]
        return Example(self.text(start, end), tuple(self.names[k] for k in own), int(self.lines[number]))

    @property
    def per_example(self) -> bool:
        return len(self.labels) == len(self)

    def text(self, start: int, end: int) -> str:
        return self.codes[start:end].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def stretch(self, start: int, end: int) -> Packed:
        """Of one text without labels, the characters from `start` to `end`."""
        return replace(
            self, codes=self.codes[start:end], offsets=np.array([0, end - start]), lines=self.lines[:1]
        )

    def as_one(self) -> Packed:
        """Every example joined to the one before, as the pieces of one running text."""
        return self.stretch(0, len(self.codes))

    def forget(self) -> None:
        """Let go of what was read from disk, so that memory does not grow with what is read; it can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self.maps:
                file.madvise(mmap.MADV_DONTNEED)


class Examples(Sequence[Example]):
    """Those of `packed` with the numbers `part` (all where that is None), made when they are asked for."""

    def __init__(self, packed: Packed, part: NDArray[np.int64] | None = None) -> None:
        self.packed = packed
        self.part = part

    def __len__(self) -> int:
        return len(self.packed) if self.part is None else len(self.part)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.packed.example(index if self.part is None else int(self.part[index]))

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def texts(self) -> Iterator[str]:
        offsets = self.packed.offsets
        for number in range(len(self.packed)) if self.part is None else self.part:
            yield self.packed.text(offsets[number], offsets[number + 1])
            if number % BLOCK == 0:
                self.packed.forget()


def pack(examples: Iterable[Example], per_example: bool) -> Packed:
    """In memory."""
    columns = {name: BytesIO() for name in COLUMNS}
    names, highest = _write(examples, columns, per_example)
    arrays = {name: np.frombuffer(file.getvalue(), dtype=_WIDE[name]) for name, file in columns.items()}
    arrays["codes"] = arrays["codes"].astype(_smallest(highest))
    arrays["labels"] = arrays["labels"].astype(_smallest(len(names)))
    codes, labels, offsets, lines = (arrays[name] for name in COLUMNS)
    return Packed(codes, labels, offsets, lines, names, highest)


def cached(examples: Iterable[Example], per_example: bool, facts: dict[str, Any], folder: Path) -> Packed:
    """On disk, under a name that is the digest of `facts`: what the examples were read from, and how.

    Two processes may ask at once: one builds, the other waits. Raises `DataError` where the folder cannot
    be written to.
    """
    place = folder / sha256(json.dumps([VERSION, facts], sort_keys=True).encode())[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not place.is_dir():
                for stale in folder.glob(
                    f".{place.name}.*.part"
                ):  # of a process that was killed: as large as the data
                    shutil.rmtree(stale)
                with new_folder(place) as part:
                    _build(examples, per_example, part)
        return _open(place)
    except OSError as error:
        raise DataError(
            f"{folder}: the packed data cannot be kept there ({error.strerror or error}); make room, or name another "
            "folder in the variable OHLOL_CACHE"
        ) from error


def cache_folder() -> Path:
    """Where packed data is kept: `OHLOL_CACHE`, or `ohlol` in the user's folder for such things."""
    if own := os.environ.get("OHLOL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ohlol"


_WIDE = {"codes": np.uint32, "labels": np.uint32, "offsets": np.int64, "lines": np.int64}


class _Numbers(dict[str, int]):
    """Names numbered in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _write(
    examples: Iterable[Example], columns: dict[str, Any], per_example: bool
) -> tuple[tuple[str, ...], int]:
    """Append every example to the open `columns`; the labels' names and the highest code point."""
    numbers, highest, end = _Numbers(), 0, 0
    columns["offsets"].write(np.zeros(1, dtype=np.int64).tobytes())
    for block in _blocks(examples):
        codes = np.frombuffer("".join(e.text for e in block).encode("utf-32-le", "surrogatepass"), np.uint32)
        ends = end + np.cumsum([len(e.text) for e in block])
        own = (e.labels[:1] if per_example else e.labels for e in block)
        labels = np.array([numbers[label] for row in own for label in row], dtype=np.uint32)
        lines = np.array([e.line for e in block], dtype=np.int64)
        for name, array in (("codes", codes), ("labels", labels), ("offsets", ends), ("lines", lines)):
            columns[name].write(array.astype(_WIDE[name]).tobytes())
        highest, end = max(highest, int(codes.max(initial=0))), int(ends[-1])
    return tuple(numbers), highest


def _blocks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    block, size = [], 0
    for example in examples:
        block.append(example)
        size += len(example.text) + 16
        if size > BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _smallest(highest: int) -> Any:
    return np.min_scalar_type(highest)


def _build(examples: Iterable[Example], per_example: bool, folder: Path) -> None:
    with ExitStack() as stack:
        columns = {name: stack.enter_context((folder / name).open("wb")) for name in COLUMNS}
        names, highest = _write(examples, columns, per_example)
    dtypes = {name: np.dtype(kind) for name, kind in _WIDE.items()}
    for name, limit in (("codes", highest), ("labels", len(names))):  # known only now
        dtypes[name] = np.dtype(_smallest(limit))
        _narrow(folder / name, dtypes[name])
    facts = {"names": names, "highest": highest, "dtypes": {name: kind.str for name, kind in dtypes.items()}}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _narrow(path: Path, dtype: np.dtype[Any]) -> None:
    wide = path.with_suffix(".wide")
    path.rename(wide)
    with wide.open("rb") as source, path.open("wb") as out:
        while len(block := np.fromfile(source, np.uint32, BLOCK)):
            out.write(block.astype(dtype).tobytes())
    wide.unlink()


def _open(place: Path) -> Packed:
    facts = json.loads((place / FACTS).read_bytes())
    arrays: dict[str, Array] = {}
    maps = []
    for name in COLUMNS:
        dtype = np.dtype(facts["dtypes"][name])
        with (place / name).open("rb") as file:
            arrays[name] = np.zeros(0, dtype)
            if _size(file):  # nothing cannot be mapped
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                arrays[name] = np.frombuffer(maps[-1], dtype)
    codes, labels, offsets, lines = (arrays[name] for name in COLUMNS)
    return Packed(codes, labels, offsets, lines, tuple(facts["names"]), facts["highest"], tuple(maps))


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size

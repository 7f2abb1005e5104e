"""Examples end to end in a few arrays: in memory where the data is small, in a cache on disk where it is not."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

VERSION = 2  # of the cache's files
BLOCK = 1 << 20  # characters handled at once
FEW = 16  # examples after which what was read is let go: the system may map 2 MB around each
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
        return (self.packed.example(number) for number in self._numbers())

    def texts(self) -> Iterator[str]:
        offsets = self.packed.offsets
        return (self.packed.text(offsets[k], offsets[k + 1]) for k in self._numbers())

    def counts(self, column: Array, kinds: int) -> NDArray[np.int64]:
        """How often each number below `kinds` stands in the examples' `column`: the codes or the labels."""
        counts = np.zeros(kinds, dtype=np.int64)
        for own in self._stretches(column):
            counts += np.bincount(own, minlength=kinds)
            self.packed.forget()
        return counts

    def _stretches(self, column: Array) -> Iterator[Array]:
        """The examples' `column`, some of it at a time, in the order of the file."""
        offsets = self.packed.offsets
        if self.part is None:
            yield from (column[start : start + BLOCK] for start in range(0, len(column), BLOCK))
            return
        numbers = np.sort(self.part)
        for start in range(0, len(numbers), FEW):
            own = numbers[start : start + FEW]
            if len(column) == len(self.packed):
                yield column[own]
            else:
                yield np.concatenate([column[offsets[k] : offsets[k + 1]] for k in own])

    def _numbers(self) -> Iterator[int]:
        for k in range(len(self)):
            yield k if self.part is None else int(self.part[k])
            if k % FEW == 0:
                self.packed.forget()


def pack(examples: Iterable[Example], per_example: bool) -> Packed:
    """In memory."""
    files = {name: BytesIO() for name in COLUMNS}
    facts = _write(examples, files, per_example)
    arrays: dict[str, Any] = {
        name: np.frombuffer(file.getbuffer(), facts["dtypes"][name]) for name, file in files.items()
    }
    return Packed(**arrays, names=facts["names"], highest=facts["highest"])


def cached(examples: Iterable[Example], per_example: bool, facts: dict[str, Any], folder: Path) -> Packed:
    """On disk, under a name that is the digest of `facts`: what the examples were read from, and how.

    Two processes may ask at once: one builds, the other waits. What a killed process left and what is damaged
    is built anew. Raises `DataError` where the folder cannot be written to.
    """
    place = folder / sha256(json.dumps([VERSION, facts], sort_keys=True).encode())[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if (packed := _opened(place)) is None:
                for stale in folder.glob(f".{place.name}.*.part"):
                    shutil.rmtree(stale)
                with new_folder(place) as part:
                    _build(examples, per_example, part)
                packed = _opened(place)
    except OSError as error:
        raise DataError(
            f"{folder}: the packed data cannot be kept there ({error.strerror or error}); make room, or name another "
            "folder in the variable OHLOL_CACHE"
        ) from error
    if packed is None:
        raise DataError(
            f"{place}: the packed data cannot be read again; look after the disk, or set OHLOL_CACHE"
        )
    return packed


def cache_folder() -> Path:
    """Where packed data is kept: `OHLOL_CACHE`, or `ohlol` in the user's folder for such things."""
    if own := os.environ.get("OHLOL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ohlol"


class _Numbers(dict[str, int]):
    """Names numbered in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


class _Column:
    """Numbers appended to a file, each in as few bytes as the highest so far needs."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.dtype = np.dtype(np.uint8)
        self.highest = 0

    def append(self, numbers: Array) -> None:
        self.highest = max(self.highest, int(numbers.max(initial=0)))
        if (needed := np.min_scalar_type(self.highest)) != self.dtype:
            self._widen(needed)
        self.file.write(numbers.astype(self.dtype).tobytes())

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """From the end on, so that no number is written over before it is read."""
        old, self.dtype = self.dtype, dtype
        for start in reversed(range(0, self.file.tell() // old.itemsize, BLOCK)):
            self.file.seek(start * old.itemsize)
            block = np.frombuffer(self.file.read(BLOCK * old.itemsize), old)
            self.file.seek(start * dtype.itemsize)
            self.file.write(block.astype(dtype).tobytes())
        self.file.seek(0, os.SEEK_END)


def _write(examples: Iterable[Example], files: Mapping[str, IO[bytes]], per_example: bool) -> dict[str, Any]:
    """Write every example to the open `files`: the labels' names, the highest code point, the columns' types."""
    numbers, end = _Numbers(), 0
    codes, labels = _Column(files["codes"]), _Column(files["labels"])
    files["offsets"].write(np.zeros(1, dtype=np.int64).tobytes())
    for block in _blocks(examples):
        text = "".join(example.text for example in block)
        codes.append(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"))
        own = (example.labels[:1] if per_example else example.labels for example in block)
        labels.append(np.array([numbers[label] for row in own for label in row], dtype=np.uint32))
        ends = end + np.cumsum([len(example.text) for example in block], dtype=np.int64)
        files["offsets"].write(ends.tobytes())
        files["lines"].write(np.array([example.line for example in block], dtype=np.int64).tobytes())
        end = int(ends[-1])
    whole = np.dtype(np.int64)
    dtypes = {"codes": codes.dtype, "labels": labels.dtype, "offsets": whole, "lines": whole}
    return {"names": tuple(numbers), "highest": codes.highest, "dtypes": dtypes}


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


def _build(examples: Iterable[Example], per_example: bool, folder: Path) -> None:
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("w+b")) for name in COLUMNS}
        facts = _write(examples, files, per_example)
        sizes = {name: file.tell() for name, file in files.items()}
    dtypes = {name: kind.str for name, kind in facts["dtypes"].items()}
    text = json.dumps({**facts, "dtypes": dtypes, "sizes": sizes})
    (folder / FACTS).write_text(text, encoding="utf-8")


def _opened(place: Path) -> Packed | None:
    """None where there is none, or a damaged one."""
    arrays: dict[str, Any] = {}
    maps = []
    try:
        facts = json.loads((place / FACTS).read_bytes())
        for name in COLUMNS:
            dtype, size = np.dtype(facts["dtypes"][name]), facts["sizes"][name]
            with (place / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return None
                arrays[name] = np.zeros(0, dtype)
                if size:  # nothing cannot be mapped
                    maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                    arrays[name] = np.frombuffer(maps[-1], dtype)
        return Packed(**arrays, names=tuple(facts["names"]), highest=facts["highest"], maps=tuple(maps))
    except (OSError, ValueError, KeyError, TypeError):
        return None

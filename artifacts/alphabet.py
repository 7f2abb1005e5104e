"""The alphabet: which code points a model knows, and their ids."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.errors import OhlolError

Form = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
FORMS: tuple[Form, ...] = get_args(Form)

PADDING = 0
UNKNOWN = 1
RESERVED = 2  # ids below this are not characters

PAGE = 256  # code points in one page of the table

# All that a long run of combining marks can be made of: no space, no Latin letter, no Chinese or Korean character.
LONG_RUN = re.compile("[^\0-\u02ff\u3400-\u9fff\uac00-\ud7a3]{256,}")


def normalise(text: str, form: Form) -> str:
    """`text` in the Unicode normalisation form `form`; `"none"` leaves it as it is."""
    if form == "none" or is_normal(text, form):
        return text
    # Python sorts a run of marks by insertion: a hundred thousand of them, which fit in any request, take minutes.
    return unicodedata.normalize(form, LONG_RUN.sub(lambda run: _ordered(run[0], form), text))


def is_normal(text: str, form: Form) -> bool:
    """Whether `text` is in the form already. ASCII is in all of them, which a `str` knows at once."""
    return form == "none" or text.isascii() or unicodedata.is_normalized(form, text)


def _ordered(text: str, form: Form) -> str:
    """`text` taken apart, its marks in the order that they have in every form: of the same meaning to `form`."""
    apart = "".join(_apart(character, "NFKD" if "K" in form else "NFD") for character in text)
    runs = groupby(apart, key=lambda character: unicodedata.combining(character) > 0)
    return "".join(
        c for marks, run in runs for c in (sorted(run, key=unicodedata.combining) if marks else run)
    )


@lru_cache(maxsize=65_536)
def _apart(character: str, form: Literal["NFD", "NFKD"]) -> str:
    return unicodedata.normalize(form, character)


def codepoints(text: str) -> NDArray[np.int32]:
    """The code points of `text`, shape `(T,)` int32. A lone surrogate is one code point like another."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<i4").astype(np.int32, copy=False)


def _can_be_known(character: str) -> bool:
    # NUL cuts strings in two of onnxruntime's bindings, and no valid UTF-8 holds a surrogate: both
    # are always unknown, so that every door into a model answers the same.
    return character != "\0" and not "\ud800" <= character <= "\udfff"


@dataclass(frozen=True)
class Alphabet:
    """The known characters, in the order of their ids, which start at 2; 0 is padding, 1 unknown.

    `normalisation` is the Unicode form of a text before it is looked up.
    """

    characters: str
    normalisation: Form = "NFC"

    def __post_init__(self) -> None:
        twice = [c for c, n in Counter(self.characters).items() if n > 1]
        if twice:
            raise OhlolError(
                f"alphabet: {twice[0]!r} stands there more than once; every character has one id"
            )
        for character in self.characters:
            if not _can_be_known(character):
                raise OhlolError(
                    f"alphabet: {character!r} (U+{ord(character):04X}) cannot be a known character"
                )
        if self.normalisation not in FORMS:
            raise OhlolError(
                f"alphabet: normalisation is {self.normalisation!r}, expected one of {', '.join(FORMS)}"
            )

    @classmethod
    def of(cls, counts: Mapping[str, int], normalisation: Form = "NFC", min_count: int = 1) -> Alphabet:
        """The characters of normalised texts that occur at least `min_count` times there."""
        known = sorted(c for c, n in counts.items() if n >= min_count and _can_be_known(c))
        return cls("".join(known), normalisation)

    def __len__(self) -> int:
        """V: the number of ids, padding and unknown included."""
        return len(self.characters) + RESERVED

    def normalise(self, text: str) -> str:
        return normalise(text, self.normalisation)

    def encode(self, text: str) -> NDArray[np.int64]:
        """The ids of a normalised `text`, shape `(T,)` int64."""
        return self.ids(codepoints(text))

    def ids(self, points: NDArray[np.int32]) -> NDArray[np.int64]:
        """The ids of code points of any shape, int32 to int64; the same arithmetic as in the ONNX graph."""
        pages, table = self.page_table
        clipped = np.clip(points, 0, len(pages) * PAGE - 1)
        found: NDArray[np.int32] = table[pages[clipped // PAGE] + clipped % PAGE]
        return found.astype(np.int64)

    def character(self, index: int) -> str | None:
        """The character of an id; None for padding and unknown."""
        return self.characters[index - RESERVED] if index >= RESERVED else None

    @cached_property
    def page_table(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`pages (P,) int32` and `table (Q * 256,) int32` with `id = table[pages[c // 256] + c % 256]`.

        `pages` ends one page after the last known one, so that a code point clipped to its end is
        unknown; pages with no known character share the first 256 entries of `table`.
        """
        points = codepoints(self.characters)
        known = sorted({int(c) // PAGE for c in points})
        offset = {page: (k + 1) * PAGE for k, page in enumerate(known)}
        pages = np.zeros(known[-1] + 2 if known else 1, dtype=np.int32)
        table = np.full((len(known) + 1) * PAGE, UNKNOWN, dtype=np.int32)
        for page, start in offset.items():
            pages[page] = start
        for index, point in enumerate(points.tolist(), start=RESERVED):
            table[offset[point // PAGE] + point % PAGE] = index
        return pages, table

"""Text made by a language model, character by character, its state carried: nothing is computed twice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.alphabet import RESERVED, codepoints
from ohlol.artifacts.errors import InputError
from ohlol.serve.stream import StreamFile

NEWLINE = "\n"


@dataclass(frozen=True)
class Sampling:
    """How the next character is drawn from the logits; in this order:

    1. Padding and the unknown character have probability 0; they are never made.
    2. `temperature`: logits are divided by it; 0 takes the likeliest character, and nothing below matters.
    3. `top_k`: only so many of the likeliest stay; of equals, those of lower ids.
    4. `top_p`: only the smallest set of the likeliest stays whose probability, as it is after 3, is at least that.

    Then one of those that stay is drawn by its probability among them, in float64.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Raises `InputError` on a number out of its range."""
        if not _number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature!r}, expected a number from 0 up")
        if self.top_k is not None and not (_whole(self.top_k) and self.top_k >= 1):
            raise InputError(f"top_k is {self.top_k!r}, expected a whole number from 1 up")
        if self.top_p is not None and not (_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p is {self.top_p!r}, expected a number above 0 and at most 1")

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """What a character is drawn by: `(V,) float64` of `logits (V,)`, where V is the alphabet's size."""
        exact = logits.astype(np.float64)
        exact[:RESERVED] = -np.inf
        exact -= exact.max()
        if self.temperature == 0:
            p: NDArray[np.float64] = np.zeros_like(exact)
            p[exact.argmax()] = 1
            return p
        with np.errstate(over="ignore"):  # to −inf, which is right
            p = np.exp(exact / self.temperature)
        p /= p.sum()
        if self.top_k is None and self.top_p is None:
            return p
        order = np.argsort(-exact, kind="stable")  # not of p: a high temperature makes equals of them
        order = order[: self.top_k]
        if self.top_p is not None:
            reached = np.cumsum(p[order]) / p[order].sum()
            order = order[: int(np.searchsorted(reached, self.top_p)) + 1]
        kept: NDArray[np.float64] = np.zeros_like(p)
        kept[order] = p[order] / p[order].sum()
        return kept


def generate(
    file: StreamFile[Any],
    prompt: str = "",
    *,
    length: int = 200,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Iterable[str] = (),
) -> Iterator[str]:
    """Characters that may follow `prompt`, as they are made, at most `length` of them.

    The same `seed` gives the same text, up to the rounding of another machine; None gives another one each time.
    It ends before the first of the strings `stop` in what is made: no part of one comes out, so what could
    still become one is held back.

    The prompt is normalised; what is made is read on as it is. Without a prompt the first character is what follows a
    line end or, where the model does not know that, one of the alphabet, all equally likely.

    Raises `InputError` where the model is not for `lm`, or an argument is out of its range; at once, not at the
    first character.
    """
    manifest = file.manifest
    if manifest.task != "lm":
        raise InputError(f"generating needs a language model (task lm), this one is for {manifest.task}")
    if not manifest.alphabet.characters:
        raise InputError("the model's alphabet is empty, so there is nothing to make")
    if not _whole(length) or length < 0:
        raise InputError(f"length is {length!r}, expected a whole number from 0 up")
    if seed is not None and not (_whole(seed) and seed >= 0):
        raise InputError(f"seed is {seed!r}, expected a whole number from 0 up")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise InputError("a stop string is empty or no string; leave it out")
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is {type(prompt).__name__}, expected a str")
    random = np.random.Generator(np.random.PCG64(seed))
    made = _made(file, manifest.alphabet.normalise(prompt), sampling or Sampling(), random)
    return _until(stops, made, length)


def _made(
    file: StreamFile[Any], prompt: str, sampling: Sampling, random: np.random.Generator
) -> Iterator[str]:
    """Without end."""
    alphabet = file.manifest.alphabet
    if not prompt and NEWLINE in alphabet.characters:
        prompt = NEWLINE
    hidden = file.beginning().hidden[:, None]  # (S, 1, H)
    points, logits = codepoints(prompt)[None], np.zeros(len(alphabet), dtype=np.float32)
    while True:
        for start in range(0, points.shape[1], file.most):  # nothing, where there is no prompt
            (found,), hidden = file.run(("logits",), points[:, start : start + file.most], hidden)
            logits = found[0, -1]
        total = np.cumsum(sampling.probabilities(logits))
        # A number in [0, total) falls into the part of one character; those of probability 0 have none.
        drawn = int(np.searchsorted(total, random.random() * total[-1], side="right"))
        character = alphabet.characters[drawn - RESERVED]
        yield character
        points = np.array([[ord(character)]], dtype=np.int32)


def _until(stops: tuple[str, ...], made: Iterator[str], length: int) -> Iterator[str]:
    """At most `length` of the characters `made`, up to the first stop string."""
    held = ""
    for _ in range(length):
        held += next(made)
        found = [held.index(stop) for stop in stops if stop in held]
        if found:
            yield from held[: min(found)]
            return
        free = len(held) - max((_begun(stop, held) for stop in stops), default=0)
        yield from held[:free]
        held = held[free:]
    yield from held


def _begun(stop: str, text: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    most = min(len(stop) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Windows answered ahead: while the answers to one are used, the next one is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar, cast

from ohlol.serve.answers import Answers
from ohlol.serve.model import Model
from ohlol.serve.rows import Rows
from ohlol.serve.windows import Window

T = TypeVar("T")


def answered(
    model: Model[Any], windows: Iterable[tuple[Window, T]], *, probabilities: bool = False
) -> Generator[tuple[Window, T, Answers[Any]], None, None]:
    """Each window, in order, with what was known when it was read, and its answers.

    What is at work ends with the generator.
    """
    begun: deque[tuple[Window, T]] = deque()

    def rows() -> Iterator[Rows]:
        for window, known in windows:
            begun.append((window, known))
            yield window.rows

    answers = model.answers(rows(), probabilities=probabilities)
    with closing(cast(Generator[Answers[Any], None, None], answers)):
        for some in answers:
            window, known = begun.popleft()
            yield window, known, some

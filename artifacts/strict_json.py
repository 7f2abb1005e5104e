"""JSON that others wrote: what two readers could take for two things, or a program could choke on, is refused."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_NESTED = 32
MOST_DIGITS = 20  # of a whole number; 64 bits


def loads(text: str | bytes) -> Any:
    """The value of a JSON text, which is UTF-8 without a mark where it is bytes.

    Raises `ValueError` on what is not JSON, and on a name that an object has twice, a number beyond 64 bits or
    not finite, a lone surrogate, and values nested deeper than `MOST_NESTED`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_NESTED}") from None
    _check(value)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON. In Python `1 == 1.0 == True`."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.60} is there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits:.60} is no finite number")
    return value


def _check(value: Any) -> None:
    """Depth and strings; not recursive, whatever the value is."""
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        if depth > MOST_NESTED:
            raise ValueError(f"nested deeper than {MOST_NESTED}")
        if isinstance(item, str):
            item.encode("utf-8")  # a lone surrogate raises
        elif isinstance(item, dict):
            todo += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list):
            todo += [(inner, depth + 1) for inner in item]

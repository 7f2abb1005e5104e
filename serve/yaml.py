"""The little of YAML that is written here: mappings, lists and JSON's scalars, in block style."""

from __future__ import annotations

import json
from typing import Any


def dump(value: Any, indent: str = "") -> str:
    """A mapping or a list as lines of YAML. Strings are quoted as JSON quotes them, which YAML reads alike."""
    if isinstance(value, dict):
        return "".join(f"{indent}{key}:{_after(item, indent)}" for key, item in value.items())
    return "".join(f"{indent}-{_item(item, indent)}" for item in value)


def _after(value: Any, indent: str) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + dump(value, indent + "  ")
    return f" {json.dumps(value, ensure_ascii=False)}\n"


def _item(value: Any, indent: str) -> str:
    if isinstance(value, dict | list) and value:
        return " " + dump(value, indent + "  ").removeprefix(indent + "  ")
    return f" {json.dumps(value, ensure_ascii=False)}\n"

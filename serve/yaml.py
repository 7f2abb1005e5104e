"""The little of YAML that is written here: mappings whose keys are ours, lists and scalars, in block style."""

from __future__ import annotations

import json
import re
from typing import Any


def dump(value: Any, indent: str = "") -> str:
    """A mapping or a list as lines of YAML."""
    if isinstance(value, dict):
        return "".join(f"{indent}{key}:{_after(item, indent)}" for key, item in value.items())
    return "".join(f"{indent}-{_item(item, indent)}" for item in value)


def _after(value: Any, indent: str) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + dump(value, indent + "  ")
    return f" {_scalar(value)}\n"


def _item(value: Any, indent: str) -> str:
    if isinstance(value, dict | list) and value:
        return " " + dump(value, indent + "  ").removeprefix(indent + "  ")
    return f" {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    """As JSON has it, but for two things that readers of YAML 1.1 take otherwise."""
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "." not in text:
        return text.replace("e", ".0e")  # 1e-05 would be a string
    if isinstance(value, str):  # a character that cannot be printed would be refused
        return re.sub(r"[^ -~]", lambda c: c[0] if c[0].isprintable() else f"\\U{ord(c[0]):08x}", text)
    return text

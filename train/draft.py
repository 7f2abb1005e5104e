"""A recipe in the making: its keys with the reason of each, and its text."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from ohlol.artifacts.errors import DataError

WIDTH = 110


class Key(NamedTuple):
    """One key of the recipe, such as `data.format`, its value and the reason. The reason holds no line break."""

    name: str
    value: Any
    why: str


class Draft(NamedTuple):
    """What a recipe should say, and what else there is to know about the data."""

    keys: list[Key]
    notes: list[str]

    def said(self) -> list[str]:
        """One line for each note and each key."""
        values = [text if len(text := _toml(key.value)) <= 100 else f"{text[:99]}…" for key in self.keys]
        told = [f"{key.name} = {value}  # {key.why}" for key, value in zip(self.keys, values, strict=True)]
        return [*(f"note: {note}" for note in self.notes), *told]

    def recipe(self, data: Path) -> str:
        """The recipe's text. Raises `DataError` where no UTF-8 can hold it."""
        lines = _comment(
            f"Written by `ohlol init` from a look at {data.name!r}. Each value is a guess, its reason beside it: "
            "mend what is wrong. All keys: docs/recipe.md."
        )
        lines += [line for note in self.notes for line in _comment(f"Note: {note}.")]
        section = ""
        for key in self.keys:
            table, _, name = key.name.partition(".")
            if table != section:
                lines += ["", f"[{table}]"]
                section = table
            line = f"{name} = {_toml(key.value)}"
            if len(f"{line} # {key.why}") <= WIDTH:
                lines.append(f"{line} # {key.why}")
            else:
                lines += [*_comment(key.why), line]
        text = "\n".join(lines) + "\n"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{str(data)!r}: the name of a file, a column or a label holds {text[error.start]!r}, "
                "which no recipe can; rename it"
            ) from None
        return text


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml(value: Any) -> str:
    if isinstance(value, list):  # which tomli_w puts on a line for each item
        return f"[{', '.join(_toml(item) for item in value)}]"
    return tomli_w.dumps({"k": value}).removeprefix("k = ").removesuffix("\n")

"""docs/tutorial.md is run as a reader would run it.

Its ```bash blocks are commands. A ```text block right after one is that block's output, shortened: each
line shown must be printed, in that order; `…` stands for any text, or alone for any lines; a number with a
decimal point may differ a little, every other number may not. ```sh blocks (set-up, long loops) are not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "docs" / "tutorial.zh.md").read_text(encoding="utf-8")

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = r"\d+\.\d+(?:e[+-]\d+)?"
ABSOLUTE, RELATIVE = 0.01, 0.02  # far more than machines differ by, far less than a wrong figure would


def prints(shown: str, printed: str) -> bool:
    """Whether the line `shown` in the page stands for the line `printed` by the command."""
    parts = [part for part in re.split(f"(…|{NUMBER})", shown.rstrip()) if part]
    numbers = [part for part in parts if re.fullmatch(NUMBER, part)]
    patterns = [f"({NUMBER})" if part in numbers else re.escape(part) for part in parts]
    found = re.fullmatch("".join(".*" if p == re.escape("…") else p for p in patterns), printed.rstrip())
    return found is not None and all(
        abs(float(have) - float(want)) <= ABSOLUTE + RELATIVE * abs(float(want))
        for have, want in zip(found.groups(), numbers, strict=True)
    )


def missing(shown: str, printed: str) -> list[str]:
    """The first line of `shown` that is not in `printed`, after the lines before it; nothing if all are."""
    rest = iter(printed.splitlines())
    for line in shown.splitlines():
        if not any(prints(line, candidate) for candidate in rest):
            return [line]
    return []


def prose(page: str) -> str:
    return BLOCK.sub("", page)


def test_every_command_works_in_order_and_prints_what_the_page_shows(tmp_path: Path) -> None:
    """A reader who pastes the page's commands into a fresh clone sees what the page shows."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes", target_is_directory=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    blocks = COMMANDS.findall(ENGLISH)
    assert len(re.findall("^```bash$", ENGLISH, re.MULTILINE)) == len(blocks)
    assert len(re.findall("^```text$", ENGLISH, re.MULTILINE)) == sum(bool(shown) for _, shown in blocks)
    for command, shown in blocks:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert (command, 0) == (command, ran.returncode), ran.stdout
        assert [] == missing(shown, ran.stdout), f"{command}\nprinted:\n{ran.stdout}"
    assert [] == list((tmp_path / "runs").iterdir())  # the last command leaves nothing behind


def test_the_chinese_page_has_the_same_commands_and_outputs() -> None:
    """What one page mends must not stay broken in the other."""
    assert BLOCK.findall(ENGLISH) == BLOCK.findall(CHINESE)


def test_the_chinese_page_states_the_same_figures() -> None:
    """A figure that is measured again is changed in both pages."""
    decimals = (re.findall(r"(?<![\w.])\d+\.\d+", prose(page)) for page in (ENGLISH, CHINESE))
    english, chinese = map(Counter, decimals)
    assert english == chinese


def test_the_comparison_notices_a_wrong_figure_and_a_missing_line() -> None:
    """The convention itself: what it lets pass and what it does not."""
    printed = "epoch 1/2  loss 1.3524  70 chars/s\nepoch 2/2  loss 0.7207  70 chars/s\n\nohlll\n"
    assert [] == missing("epoch 1/2  loss 1.3531 …\n…\nohlll\n", printed)
    assert ["epoch 2/2  loss 0.8207 …"] == missing("epoch 2/2  loss 0.8207 …\n", printed)
    assert ["epoch 3/3  loss 0.7207 …"] == missing("epoch 3/3  loss 0.7207 …\n", printed)
    assert ["ohlol"] == missing("ohlol\n", printed)
    assert ["epoch 1/2  loss 1.3524 …"] == missing("ohlll\nepoch 1/2  loss 1.3524 …\n", printed)

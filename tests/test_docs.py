"""README and tutorial are run as a reader would run them; the help pages are those of the commands.

```bash and ```python blocks are run. A ```text block right after one is that block's output, shortened: each
line shown must be printed, in that order; `…` stands for any text, with spaces after it for any number of them, or
alone for any lines; a number with a decimal point may differ a little, every other number may not. ```sh blocks (set-up, long loops) are not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from ohlol.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {"README": "README", "tutorial": "docs/tutorial"}  # English: .md, Chinese: .zh.md
ENGLISH = {name: f"docs/{name}" for name in ("adopt", "formats", "predict", "streams")}

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```(bash|python)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = r"\d+\.\d+(?:e[+-]\d+)?"
ABSOLUTE, RELATIVE = 0.01, 0.02  # far more than machines differ by, far less than a wrong figure would


def prints(shown: str, printed: str) -> bool:
    """Whether the line `shown` in the page stands for the line `printed` by the command."""
    parts = [part for part in re.split(f"(… *|{NUMBER})", shown.rstrip()) if part]
    numbers = [part for part in parts if re.fullmatch(NUMBER, part)]
    patterns = [
        f"({NUMBER})"
        if part in numbers
        else ".*" + " +" * (len(part) > 1)
        if part[0] == "…"
        else re.escape(part)
        for part in parts
    ]
    found = re.fullmatch("".join(patterns), printed.rstrip())
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


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def commands(text: str) -> list[tuple[str, str]]:
    """The blocks without their comments, which are in the page's language."""
    return [(kind, re.sub(r" +# .*", "", code)) for kind, code in BLOCK.findall(text)]


def page(name: str, language: str = "") -> str:
    return (ROOT / f"{(PAGES | ENGLISH)[name]}{language}.md").read_text(encoding="utf-8")


def run_page(name: str, folder: Path) -> None:
    """Run a page's blocks in order in `folder`, as if it were a fresh clone with its environment."""
    for tree in ("recipes", "artifacts"):
        (folder / tree).symlink_to(ROOT / tree, target_is_directory=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()  # the environment is that of the tests
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code, shown in COMMANDS.findall(page(name)):
        program = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
        ran = subprocess.run(
            [*program, "-c", code],
            cwd=folder,
            env=os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        assert (code, 0) == (code, ran.returncode), ran.stdout
        assert missing(shown, ran.stdout) == [], f"{code}\nprinted:\n{ran.stdout}"


def test_the_tutorial_does_what_it_shows(tmp_path: Path) -> None:
    """A reader who pastes the page's commands into a fresh clone sees what the page shows."""
    run_page("tutorial", tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []  # the last command leaves nothing behind


def test_the_readme_does_what_it_shows(tmp_path: Path, real_data: Path) -> None:
    """The same for the page that everyone reads first; it trains on real names."""
    run_page("README", tmp_path)


@pytest.mark.parametrize("name", ENGLISH)
def test_an_english_page_does_what_it_shows(name: str, tmp_path: Path) -> None:
    """A module and a file of weights become bundles; a stream carries its state; files are answered."""
    run_page(name, tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_commands_and_figures(name: str) -> None:
    """What one page mends must not stay broken in the other."""
    english, chinese = page(name), page(name, ".zh")
    assert commands(english) == commands(chinese)
    decimals = (re.findall(r"(?<![\w.])\d+\.\d+", prose(text)) for text in (english, chinese))
    expected, actual = map(Counter, decimals)
    assert expected == actual


@pytest.mark.parametrize(
    "file", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda file: file.name
)
def test_links_lead_somewhere(file: Path) -> None:
    """Every link of a page to a file of the project finds it, and the heading it names."""
    links = re.findall(r"\]\((?!https?:)([^)]+)", prose(file.read_text(encoding="utf-8")))
    for link in links:
        path, _, anchor = link.partition("#")
        found = file.parent / path if path else file
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


def anchors(page: Path) -> list[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_help_pages_are_those_of_the_commands() -> None:
    """docs/cli.md shows what `--help` prints; `make docs` writes it anew."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == help_pages()


def help_pages() -> str:
    parts = [
        "# The command line",
        "What `--help` prints, for each command. This page is generated: `make docs`.",
    ]
    for name in ("", *sorted(main.commands)):
        words = " ".join(filter(None, ["ohlol", name, "--help"]))
        text = CliRunner().invoke(main, words.split()[1:], prog_name="ohlol", terminal_width=100).output
        parts += [f"## `ohlol {name}`" if name else "## `ohlol`", f"```text\n{text}```"]
    return "\n\n".join(parts) + "\n"


def test_the_comparison_notices_a_wrong_figure_and_a_missing_line() -> None:
    """The convention itself: what it lets pass and what it does not."""
    printed = "epoch 1/2  loss 1.3524  70 chars/s\nepoch 2/2  loss 0.7207  70 chars/s\n\nohlll\n"
    assert missing("epoch 1/2  loss 1.3531 …\n…\nohlll\n", printed) == []
    assert missing("epoch 2/2  loss 0.8207 …\n", printed) == ["epoch 2/2  loss 0.8207 …"]
    assert missing("epoch 3/3  loss 0.7207 …\n", printed) == ["epoch 3/3  loss 0.7207 …"]
    assert missing("ohlol\n", printed) == ["ohlol"]
    assert missing("epoch …     70 chars/s\n", printed) == []
    assert missing("epoch …     71 chars/s\n", printed) == ["epoch …     71 chars/s"]
    assert missing("ohlll\nepoch 1/2  loss 1.3524 …\n", printed) == ["epoch 1/2  loss 1.3524 …"]


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(help_pages(), encoding="utf-8")

"""The card's programs, as text: whole in any Markdown, right in names and shapes, their literals what the labels are.

tests/embed/test_programs.py runs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import FORMS, Alphabet
from ohlol.artifacts.contract import TASKS
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import Proof, Row
from ohlol.export.card import card
from ohlol.export.snippets import LANGUAGES, fits, literal
from ohlol.export.snippets import program as program_of

BY_NAME = {language.template: language for language in LANGUAGES}
WITH_LABELS = [name for name in BY_NAME if name not in ("javascript", "cpp")]  # the others' modules know them
# What ends a literal, a line, a block or an escape; what is unseen, joins its neighbour or turns the line round.
LABELS = (
    "\"quoted\" 'too' \\ \\n \\u0041 \\(x) {y} %s %c ${z} $z #{w} `v`",
    "```\n```java\n</details>\n\r\t\0\x01\x1a\x1b\x7f\x85\u2028\u2029\ufeff",
    "né n\u0303e\u0301 \u0301 \u1112\u1161\u11ab \u212b",
    "👩\u200d💻 😀\U0010ffff \U0001d54f",
    "\u202eשלום\u202c \u0628",
    "中文 ỹ ½ ⟨x⟩ /* */ // -- '''",
    "",
)
EVERY = "".join(
    map(chr, (*range(0x300), *range(0x2000, 0x2070), 0xD7FF, *range(0xE000, 0xE008), *range(0xFFF0, 0x10010)))
)
STRINGS = (*LABELS, "\\", '"', "\0" + "7", "\x01" + "f", "\\" * 3 + "é", EVERY, EVERY[::-1])
NETWORK = {
    "input": "embedding", "embedding_size": 7, "cell": "gru", "num_layers": 1, "hidden_size": 6,
    "bidirectional": False, "head": "linear",
}  # fmt: skip
PROOF = Proof(
    "the network", [Row("model.onnx", "onnxruntime", "a case", (1, 1), 1e-6, 1e-6, 0, 1e-5, "")], {}
)


def manifest_of(
    task, form="NFC", labels=LABELS, characters=EVERY[1:]
) -> Manifest:  # NUL can be no known character
    return Manifest(task, Alphabet(characters, form), () if task == "lm" else labels, None, NETWORK)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", TASKS)
def test_the_card_holds_a_program_for_each_language(task, form):
    """Whatever stands in labels and alphabet: each program is one block, and each fold opens and closes."""
    manifest = manifest_of(task, form)
    page = card(manifest, PROOF, {})
    assert ("taken as they are" if form == "none" else f"normalised to {form} first") in page
    tokens = MarkdownIt().parse(page)
    (_, use), *found = [(token.info, token.content) for token in tokens if token.type == "fence"]
    assert "ohlol.load" in use
    assert [
        (name, program_of(manifest, language).rstrip() + "\n") for name, language in BY_NAME.items()
    ] == found
    html = [token.content.rstrip() for token in tokens if token.type == "html_block"]
    folds = [f"<details>\n<summary>{language.name}</summary>" for language in LANGUAGES]
    assert [part for fold in folds for part in (fold, "</details>")] == html
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == ["A character model", "Files", "Inputs and outputs", "Use", "In other languages"]


def test_the_card_names_labels_that_hold_anything():
    """Each label is a piece of code of its own, on one line, and the first forty of them are there."""
    labels = (*LABELS, " ", "  x ", "`", "a`")
    tokens = MarkdownIt().parse(card(manifest_of("tag", labels=labels), PROOF, {}))
    (line,) = [token for token in tokens if token.type == "inline" and "It answers with" in token.content]
    shown = [child.content for child in line.children if child.type == "code_inline"]
    escaped = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in label) for label in labels if label]
    assert escaped == shown
    assert "(the empty label)" in line.content


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("task", TASKS)
def test_names_and_shapes_are_the_models(task, name):
    """A program says of each tensor that it touches what the manifest says, for one text."""
    manifest = manifest_of(task)
    source = program_of(manifest, BY_NAME[name])
    assert '"model.onnx"' in source
    if name not in WITH_LABELS:
        assert {"tag": "tag(", "classify": "classify(", "lm": "score("}[task] in source
        return
    wanted = {"tag": ("label_ids",), "classify": ("label_ids", "probabilities"), "lm": ("probabilities",)}[
        task
    ]
    for tensor in (*contract.inputs(), *contract.outputs(task)):
        used = tensor in contract.inputs() or tensor.name in wanted
        axes = [{"batch": "1", "time": "T"}.get(axis, axis) for axis in manifest.shape(tensor)]
        shape = f"({', '.join(map(str, axes))}{',' * (len(axes) == 1)}) {tensor.dtype}"
        assert used == (f'"{tensor.name}"' in source), tensor.name
        assert not used or shape in source, shape
    other = "NFKD"
    assert program_of(manifest_of(task, other), BY_NAME[name]) != source
    assert "ormali" not in program_of(manifest_of(task, "none"), BY_NAME[name])


@pytest.mark.parametrize("name", WITH_LABELS)
def test_labels_that_are_too_many_are_numbers(name):
    """A card of thousands of labels stays one that a person can read, and says where they are."""
    few, many = (manifest_of("tag", labels=tuple(f"label {k}" for k in range(n))) for n in (1000, 2000))
    assert (fits(few), fits(many)) == (True, False)
    assert "label 999" in program_of(few, BY_NAME[name])
    assert "label 1" not in program_of(many, BY_NAME[name])
    assert "0 is the first of `labels` in `manifest.json`" in card(many, PROOF, {})
    chinese = manifest_of("lm", characters="".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    assert not fits(chinese)
    assert "2 is the first of `alphabet.characters` in `manifest.json`" in card(chinese, PROOF, {})


@pytest.mark.parametrize("name", WITH_LABELS)
def test_what_a_literal_shows(name):
    """Letters stay letters; what cannot be seen, or would not survive being copied, is an escape."""
    language = BY_NAME[name]
    for text in STRINGS:
        written = literal(text, language)
        assert written.isprintable(), written
        assert not language.ascii or written.isascii()
    visible = "é 中文 😀 ỹ €"
    assert language.ascii or literal(visible, language) == f'"{visible}"'
    for text in ("e\u0301", "\u0628", "\u00a0", "\u200b", "\U0010ffff", "\u212b", "\u1112\u1161"):
        assert literal(text, language).isascii(), text


# A program that prints the code points of literals, a line for each string; and how it is run.
ECHO = {
    "python": "for text in [@]:\n    print(*(f'{ord(c):x}' for c in text))\n",
    "java": """class Echo {
    public static void main(String[] args) {
        for (String text : new String[] {@}) {
            StringBuilder line = new StringBuilder();
            text.codePoints().forEach(c -> line.append(Integer.toHexString(c)).append(' '));
            System.out.println(line);
        }
    }
}
""",
    "csharp": """static class Echo {
    static void Main() {
        foreach (string text in new[] { @ }) {
            for (int k = 0; k < text.Length; k += char.IsSurrogatePair(text, k) ? 2 : 1)
                System.Console.Write("{0:x} ", char.ConvertToUtf32(text, k));
            System.Console.WriteLine();
        }
    }
}
""",
    "go": """package main

import "fmt"

func main() {
	for _, text := range []string{@} {
		for _, c := range text {
			fmt.Printf("%x ", c)
		}
		fmt.Println()
	}
}
""",
    "rust": """fn main() {
    let texts: &[&str] = &[@];
    for text in texts {
        for c in text.chars() {
            print!("{:x} ", c as u32);
        }
        println!();
    }
}
""",
    "swift": """let texts: [String] = [@]
for text in texts {
    print(text.unicodeScalars.map { String($0.value, radix: 16) }.joined(separator: " "))
}
""",
}  # fmt: skip
COMPILED = {
    "python": ("echo.py", [[sys.executable, "echo.py"]]),
    "java": ("Echo.java", [["javac", "-encoding", "US-ASCII", "Echo.java"], ["java", "-cp", ".", "Echo"]]),
    "csharp": ("Echo.cs", [["mcs", "-out:echo.exe", "Echo.cs"], ["mono", "echo.exe"]]),
    "go": ("main.go", [["go", "run", "main.go"]]),
    "rust": ("main.rs", [["rustc", "-o", "echo", "main.rs"], ["./echo"]]),
    "swift": ("main.swift", [["swiftc", "-o", "echo", "main.swift"], ["./echo"]]),
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_literal_is_the_label(name, program, tmp_path):
    """What a compiler reads from a literal is the label, code point by code point."""
    file, commands = COMPILED[name]
    literals = ", ".join(literal(text, BY_NAME[name]) for text in STRINGS)
    (tmp_path / file).write_text(ECHO[name].replace("@", literals), encoding="utf-8")
    for command in commands:
        tool = command[0] if os.sep in command[0] else program(command[0])
        ran = subprocess.run(
            [tool, *command[1:]], cwd=tmp_path, env=os.environ | {"GOCACHE": str(tmp_path / "cache")},
            capture_output=True, encoding="utf-8", timeout=300, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    assert [[f"{ord(c):x}" for c in text] for text in STRINGS] == [
        line.split() for line in ran.stdout.splitlines()
    ]

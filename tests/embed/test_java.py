"""The card's Java programs compile wherever a javac is, against declarations of what they use of the binding.

The binding itself is seldom at hand; where the variable OHLOL_ORT_JAR names it, the declarations are compared with it.
tests/embed/test_programs.py runs the programs there.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import ohlol
from ohlol.artifacts.bundle import Layout
from ohlol.export import snippets
from ohlol.export.snippets import LANGUAGES
from ohlol.export.snippets import program as program_of

(JAVA,) = (language for language in LANGUAGES if language.template == "java")
# What a literal must escape, for a compiler that takes the file for ASCII and reads \uXXXX before all else.
LABELS = ('"$x" ${y} \\n \\u000a', "```\n\r\t\0{}", "e\u0301", "👩\u200d💻", "\u202eש", "\u2028")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """A command, whose messages are in English."""
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def javac(program) -> list[str]:
    """A compiler for Java 11, for which every warning is an error, and all that is not ASCII."""
    warnings = "-Xlint:all,-options"  # but that a newer one finds 11 old
    return [program("javac"), "--release", "11", warnings, "-Werror", "-encoding", "US-ASCII"]


@pytest.fixture(scope="module")
def declarations(javac, tmp_path_factory) -> Path:
    """The declarations, compiled."""
    folder = tmp_path_factory.mktemp("declarations")
    done = run(*javac, "-d", folder, *sorted(Path(__file__).with_name("java").rglob("*.java")))
    assert done.returncode == 0, done.stderr
    return folder


def in_card(bundle: Path) -> str:
    page = (bundle / Layout.card).read_text(encoding="utf-8")
    (source,) = [
        token.content for token in MarkdownIt().parse(page) if token.type == "fence" and token.info == "java"
    ]
    return source


def test_the_programs_compile(javac, declarations, bundles, tmp_path, monkeypatch):
    """Those of all cards, and with odd labels, and with numbers; a warning fails, as does an error not caught."""
    sources = {}
    for kind, bundle in bundles.items():
        name, manifest = kind.replace("-", "_"), ohlol.load(bundle).manifest
        sources[name] = in_card(bundle)
        if manifest.labels:
            sources[f"{name}_odd"] = program_of(replace(manifest, labels=LABELS), JAVA)
        with monkeypatch.context() as patch:
            patch.setattr(snippets, "MOST", 0)
            sources[f"{name}_numbers"] = program_of(manifest, JAVA)
    files = []
    for name, source in sources.items():  # all have one name: each gets a package of its own
        files.append(tmp_path / name / "Example.java")
        files[-1].parent.mkdir()
        files[-1].write_text(f"package {name};\n\n{source}", encoding="utf-8")
    done = run(*javac, "-cp", declarations, "-d", tmp_path / "compiled", *files)
    assert done.returncode == 0, done.stderr
    compiled = {file.parent.name for file in tmp_path.glob("compiled/*/Example.class")}
    assert compiled == sources.keys()


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (" throws OrtException", "", "must be caught or declared to be thrown"),
        ('.get("label_ids").get()', '.get("label_ids")', "cannot find symbol"),
        ("createTensor(", "createTensors(", "cannot find symbol"),
        ("IntBuffer.wrap(points)", "points", "no suitable method found for createTensor"),
    ],
)
def test_what_the_binding_would_refuse_does_not_compile(
    right, wrong, told, javac, declarations, bundles, tmp_path
):
    """An exception that is not declared, a value not unwrapped, a method or an argument that does not exist."""
    source = in_card(bundles["tag-rnn"])
    assert right in source
    (tmp_path / "Example.java").write_text(source.replace(right, wrong), encoding="utf-8")
    done = run(*javac, "-cp", declarations, "-d", tmp_path, tmp_path / "Example.java")
    assert done.returncode == 1
    assert told in done.stderr


def declared(javap: str, path: Path, names: list[str]) -> dict[str, set[str]]:
    """By the head of each class: its public members, as javap writes both."""
    done = run(javap, "-public", "-cp", path, *names)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(public .*) \{\n((?:  .*\n)*)\}$", done.stdout, re.MULTILINE)
    assert len(found) == len(names)
    return {head: {line.strip() for line in members.splitlines()} for head, members in found}


def called_alike(member: str) -> tuple[str, int] | None:
    """The name of a method and the number of its arguments; None for a field or a static block."""
    parts = re.search(r"(\S+)\((.*)\)", member)
    if parts is None:
        return None
    types = re.sub(r"<.*?>+", "", parts[2])  # a comma may stand inside
    return parts[1], len(types.split(",")) if types else 0


def test_the_declarations_are_the_bindings(program, declarations):
    """Each class and method word for word, and no other that could be meant by the same call."""
    if "OHLOL_ORT_JAR" not in os.environ:
        pytest.skip("the variable OHLOL_ORT_JAR names no jar of ai.onnxruntime")
    names = [
        f"ai.onnxruntime.{file.stem}"
        for file in declarations.glob("ai/onnxruntime/*.class")
        if file.stem != "package-info"
    ]
    javap = program("javap")
    ours = declared(javap, declarations, names)
    binding = declared(javap, Path(os.environ["OHLOL_ORT_JAR"]).resolve(), names)
    assert ours.keys() == binding.keys()
    for head, members in ours.items():
        calls = {called_alike(member) for member in members}
        assert None not in calls
        assert members == {member for member in binding[head] if called_alike(member) in calls}

"""The card's programs answer as Python does, in each language whose compiler and binding are here.

docs/languages.md says which variable names what; without it, or without the compiler, the test is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
from markdown_it import MarkdownIt
from onnx import numpy_helper

import ohlol
import ohlol.embed
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import allowed
from ohlol.export import snippets
from ohlol.export.snippets import LANGUAGES, literal
from ohlol.export.snippets import program as program_of
from ohlol.serve.results import Classified, Tagged

BY_NAME = {language.template: language for language in LANGUAGES}
FIRST = ("tag-rnn", "classify-lstm-both", "lm-gru")  # one for each task
KINDS = (*FIRST, "tag-gru", "tag-lstm", "tag-rnn-both", "tag-gru-both")  # and for each form of normalisation
MODULES = ("javascript", "cpp")  # which know labels and normalise; their own tests try more
# In the place of the labels of a bundle: what a literal must escape.
LABELS = ('"$x" ${y} \\n \\(z) %s', "```\n\r\t{}", "e\u0301", "👩\u200d💻", "\u202eש", "\u2028")
# Not in the text that is tried. A command line holds no NUL; and these marks, of Unicode 16, join in newer tables only.
LEFT_OUT = ("NUL", "Kirat Rai")
LEFT_OUT_OF = {
    # Go's normalisation puts U+034F into a run of more than 30 marks, as Unicode's stream-safe form has it.
    "go": ("many marks",),
    # mono, not .NET: it normalises no plane but the first, some of that otherwise, and refuses noncharacters as arguments.
    "csharp": ("compatibility", "ideographs", "long expansions", "noncharacters", "other planes"),
}

NameOf = Callable[[str], str]  # what a program has in the place of a label, or of a character of lm
Build = Callable[[Path], list[str]]  # the program in a folder, compiled: the command that runs it


def run(*command: object, cwd: Path, **environment: str) -> bytes:
    """What a command prints, which must end well."""
    env = (
        os.environ
        | {"ORT_DISABLE_TELEMETRY": "1", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
        | environment
    )
    ran = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, timeout=300, check=False
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr).decode("utf-8", "replace")
    return ran.stdout


def named(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"the variable {variable} names no {what}")
    return Path(os.environ[variable]).resolve()


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A folder with the installed wheel's own library of ONNX Runtime, by the names that bindings look for."""
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("the installed onnxruntime has no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found[0])
    return folder


@pytest.fixture(scope="module")
def toolchains(
    program, request, tmp_path_factory
) -> dict[str, Callable[[], tuple[str, dict[str, str], Build]]]:
    """For each language: the name of the source file, the environment it runs in, and how it is compiled."""

    def python():
        return "example.py", {}, lambda folder: [sys.executable, "example.py"]

    def java():
        javac, java = program("javac"), program("java")
        jar = named("OHLOL_ORT_JAR", "jar of ai.onnxruntime with its libraries")

        def build(folder: Path) -> list[str]:
            run(
                javac,
                "-Xlint:all",
                "-Werror",
                "-encoding",
                "US-ASCII",
                "-cp",
                jar,
                "Example.java",
                cwd=folder,
            )
            return [java, "-cp", f"{jar}{os.pathsep}.", "Example"]

        return "Example.java", {}, build

    def csharp():
        mcs, mono = program("mcs"), program("mono")
        assembly = named("OHLOL_ORT_DLL", "Microsoft.ML.OnnxRuntime.dll")
        where = {
            "MONO_PATH": str(assembly.parent),
            "LD_LIBRARY_PATH": str(request.getfixturevalue("library")),
        }

        def build(folder: Path) -> list[str]:
            run(mcs, "-warnaserror", f"-r:{assembly}", "-out:example.exe", "Example.cs", cwd=folder)
            return [mono, "example.exe"]

        return "Example.cs", where, build

    def go():
        go, gofmt = program("go"), program("gofmt")
        path = named("OHLOL_GOPATH", "GOPATH with onnxruntime_go and x/text")
        cache = str(tmp_path_factory.mktemp("go"))

        def build(folder: Path) -> list[str]:
            assert run(gofmt, "-l", "main.go", cwd=folder) == b""
            settings = {"GOPATH": str(path), "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": cache}
            run(go, "build", "-o", "example", "main.go", cwd=folder, **settings)
            return ["./example"]

        return "main.go", {"LD_LIBRARY_PATH": str(request.getfixturevalue("library"))}, build

    def rust():
        cargo = program("cargo")
        package = named("OHLOL_CRATE", "package with the crates ort and unicode-normalization")
        where = {"ORT_DYLIB_PATH": str(request.getfixturevalue("library") / "libonnxruntime.so")}

        def build(folder: Path) -> list[str]:
            shutil.copyfile(folder / "main.rs", package / "src" / "main.rs")
            run(cargo, "build", "--offline", "--quiet", cwd=package)
            (built,) = (
                f for f in (package / "target" / "debug").iterdir() if f.is_file() and os.access(f, os.X_OK)
            )
            shutil.copy(built, folder / "example")
            return ["./example"]

        return "main.rs", where, build

    def javascript():
        node, packages = program("node"), request.getfixturevalue("node_modules")

        def build(folder: Path) -> list[str]:
            shutil.copyfile(Path(ohlol.embed.__file__).with_name("js") / "ohlol.mjs", folder / "ohlol.mjs")
            (folder / "node_modules").symlink_to(packages / "node_modules")
            return [node, "example.mjs"]

        return "example.mjs", {}, build

    def cpp():
        compiler, headers = program("g++"), named("OHLOL_ORT_INCLUDE", "folder with onnxruntime_cxx_api.h")
        where = {"LD_LIBRARY_PATH": str(request.getfixturevalue("library"))}

        def build(folder: Path) -> list[str]:
            shutil.copytree(Path(ohlol.embed.__file__).with_name("cpp"), folder / "ohlol")
            include = (f"-I{headers}", "-DOHLOL_NO_UTF8PROC")
            link = (f"-L{where['LD_LIBRARY_PATH']}", "-lonnxruntime")
            run(compiler, "-std=c++17", *include, "example.cpp", "-o", "example", *link, cwd=folder)
            return ["./example"]

        return "example.cpp", where, build

    return {
        "python": python, "java": java, "csharp": csharp, "go": go, "rust": rust,
        "javascript": javascript, "cpp": cpp,
    }  # fmt: skip


def in_card(bundle: Path, name: str) -> str:
    """The program that the bundle's own card shows, as a Markdown parser reads it."""
    page = (bundle / Layout.card).read_text(encoding="utf-8")
    return [
        token.content for token in MarkdownIt().parse(page) if token.type == "fence" and token.info == name
    ][-1]


def assert_told(told: bytes, found, name_of: NameOf) -> None:
    """A program printed Python's answer."""
    text = told.decode("utf-8")
    if not found.text:
        assert text == ""
    elif isinstance(found, Tagged):
        assert "".join(f"{c}\t{name_of(k)}\n" for c, k in zip(found.text, found.labels, strict=True)) == text
    else:
        label, _, number = text.rpartition("\t")
        expected = found.label if isinstance(found, Classified) else found.next
        assert ("(unknown)" if expected is None else name_of(expected)) == label
        assert abs(float(number) - found.probability) <= allowed(found.probability)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "swift"])
def test_the_programs_answer_as_python_does(name, toolchains, bundles, nasty, tmp_path, monkeypatch):
    """On the empty text, one character, and all that is nasty; as the card has it, with odd labels, with numbers."""
    file, where, build = toolchains[name]()
    left_out = (*LEFT_OUT, *LEFT_OUT_OF.get(name, ()))
    texts = ["", "h", " ".join(text for key, text in nasty.items() if key not in left_out)]
    if name == "cpp":  # without utf8proc, which not every machine has
        texts[-1] = nasty["words"]
    for kind in FIRST if name in MODULES else KINDS:
        model = ohlol.load(bundles[kind])
        for which, (source, name_of) in programs(bundles[kind], model.manifest, name, monkeypatch).items():
            folder = tmp_path / kind / which
            folder.mkdir(parents=True)
            shutil.copyfile(bundles[kind] / Layout.onnx, folder / Layout.onnx)
            (folder / file).write_text(source, encoding="utf-8")
            command = build(folder)
            for text in texts if which == "card" else texts[-1:]:
                assert_told(run(*command, text, cwd=folder, **where), model(text), name_of)


def programs(bundle: Path, manifest: Manifest, name: str, monkeypatch) -> dict[str, tuple[str, NameOf]]:
    """A bundle's program as its card has it; once for each task also with odd labels, and with numbers."""
    language, labels, characters = BY_NAME[name], manifest.labels, manifest.alphabet.characters
    found: dict[str, tuple[str, NameOf]] = {"card": (in_card(bundle, name), lambda label: label)}
    if labels:
        odd = replace(manifest, labels=LABELS)
        found["odd"] = (program_of(odd, language), lambda label: LABELS[labels.index(label)])
    with monkeypatch.context() as patch:
        patch.setattr(snippets, "MOST", 0)
        number = labels.index if labels else lambda character: 2 + characters.index(character)
        found["numbers"] = (program_of(manifest, language), lambda label: str(number(label)))
    return found if name not in MODULES and bundle.name in FIRST else {"card": found["card"]}


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in (*MODULES, "swift")])
def test_an_unknown_next_character_is_said_to_be_one(name, toolchains, bundles, tmp_path):
    """Ids 0 and 1 are no characters; the alphabet's first is 2."""
    file, where, build = toolchains[name]()
    (tmp_path / file).write_text(in_card(bundles["lm-gru"], name), encoding="utf-8")
    command = build(tmp_path)
    for best, expected in enumerate(("(unknown)", "(unknown)", "\n", " ")):
        model = onnx.load(bundles["lm-gru"] / Layout.onnx)
        (bias,) = (weight for weight in model.graph.initializer if weight.name == "head.bias")
        values = numpy_helper.to_array(bias).copy()
        values[best] += 1000
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        onnx.save(model, tmp_path / Layout.onnx)
        label, _, number = run(*command, "hello", cwd=tmp_path, **where).decode().rpartition("\t")
        assert (expected, 1.0) == (label, float(number))


# How a program is called by another, and what its console shows of half a pair.
CALLERS = {
    "java": (
        ("Example.java", ""),
        """
class Caller {
    public static void main(String[] args) throws Exception {
        for (String text : new String[] {@}) Example.main(new String[] {text});
    }
}
""",
        "?",
    ),
    "csharp": (
        ("static void Main(", "internal static void Answer("),
        """
static class Caller {
    static void Main() {
        foreach (string text in new[] { @ }) Example.Answer(new[] { text });
    }
}
""",
        "\ufffd",
    ),
}


@pytest.mark.parametrize("name", CALLERS)
def test_half_a_surrogate_pair_is_one_unknown_character(name, toolchains, bundles, surrogates, tmp_path):
    """In UTF-16 a string may hold one. No command line does, so another class calls the program."""
    file, where, build = toolchains[name]()
    (old, new), caller, shown = CALLERS[name]
    literals = ", ".join(literal(text, BY_NAME[name]) for text in surrogates.values())
    source = in_card(bundles["tag-rnn"], name).replace(old, new or old) + caller.replace("@", literals)
    (tmp_path / file).write_text(source, encoding="utf-8")
    shutil.copyfile(bundles["tag-rnn"] / Layout.onnx, tmp_path / Layout.onnx)
    command = ["Caller" if word == "Example" else word for word in build(tmp_path)]
    told = run(*command, cwd=tmp_path, **where).decode("utf-8")
    found = [ohlol.load(bundles["tag-rnn"])(text) for text in surrogates.values()]
    lines = [f"{c}\t{label}\n" for each in found for c, label in zip(each.text, each.labels, strict=True)]
    assert re.sub("[\ud800-\udfff]", shown, "".join(lines)) == told

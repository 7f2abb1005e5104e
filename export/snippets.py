"""Whole programs in other languages that run a bundle, with its own names, shapes and labels: what the card shows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.manifest import Manifest

TEMPLATES = Path(__file__).with_name("languages")
MOST = 20_000  # bytes of labels or characters in a program; with more of them it prints their numbers
ALONE = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}  # the same in each of the languages


@dataclass(frozen=True)
class Language:
    """`escaped` writes a code point inside a literal; `template` names the file and the kind of the code block.

    `binding` says which packages the program was written for, `checked` how it was tried (docs/languages.md).
    """

    name: str
    template: str
    binding: str
    checked: str
    escaped: Callable[[int], str]
    ascii: bool = False  # whether its compilers may take a source file for another encoding than UTF-8


def _short_or_long(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _in_braces(point: int) -> str:
    return f"\\u{{{point:x}}}"


def _java(point: int) -> str:
    # Java reads \uXXXX before anything else: as such, a control character could end the line that it stands in.
    if point < 0x80:
        return f"\\{point:03o}"
    units = chr(point).encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k]:02x}{units[k + 1]:02x}" for k in range(0, len(units), 2))


LANGUAGES = (
    Language("Python", "python", "`onnxruntime` 1.32.0", "run by Python 3.11", _short_or_long),
    Language(
        "Java", "java", "`com.microsoft.onnxruntime:onnxruntime` 1.23.0",
        "compiled by javac 17 against its sources of June 2025 and run with ONNX Runtime 1.32.0", _java, ascii=True,
    ),
    Language(
        "C#", "csharp", "`Microsoft.ML.OnnxRuntime` 1.29.0",
        "compiled and run by mono 6.8 with ONNX Runtime 1.32.0, the binding's sources set back to C# 7", _short_or_long,
    ),
    Language(
        "Go", "go", "`github.com/yalue/onnxruntime_go` 1.35.0 (ONNX Runtime has none of its own) and `golang.org/x/text`",
        "compiled by Go 1.19 and run with ONNX Runtime 1.32.0", _short_or_long,
    ),
    Language(
        "Rust", "rust", "`ort` 2.0.0-rc.13 and `unicode-normalization` 0.1",
        "compiled by rustc 1.95 and run with ONNX Runtime 1.32.0", _in_braces,
    ),
    Language(
        "Swift", "swift", "`onnxruntime-swift-package-manager` 1.24.2",
        "not run: written by the binding's headers", _in_braces,
    ),
    Language(
        "JavaScript", "javascript", "`onnxruntime-node` or `onnxruntime-web` 1.30.0 and the module that `ohlol embed js` copies",
        "run by Node", _short_or_long,
    ),
    Language(
        "C++", "cpp", "ONNX Runtime's C++ API and the header that `ohlol embed cpp` copies, which says how to build",
        "compiled by g++ 12 against the headers of ONNX Runtime 1.21 and run", _short_or_long,
    ),
)  # fmt: skip


def program(manifest: Manifest, language: Language) -> str:
    """The source of a program that answers the text of its arguments by `model.onnx` in the current folder.

    It prints, with a tab between them: for `tag` each character and its label, for `classify` the label and its
    probability, for `lm` the likeliest next character and its probability; for an empty text nothing.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        variable_start_string="«",  # braces are the languages' own
        variable_end_string="»",
        block_start_string="«%",
        block_end_string="%»",
        keep_trailing_newline=True,
        autoescape=False,
    )
    form = manifest.alphabet.normalisation
    wanted = {"tag": ["label_ids"], "classify": ["label_ids", "probabilities"], "lm": ["probabilities"]}
    return environment.get_template(f"{language.template}.jinja").render(
        file=Layout.onnx,
        task=manifest.task,
        form="" if form == "none" else form,
        classes=manifest.classes,
        inputs={tensor.name: _shape(manifest, tensor) for tensor in contract.inputs()},
        outputs={tensor.name: _shape(manifest, tensor) for tensor in contract.outputs(manifest.task)},
        wanted=", ".join(f'"{name}"' for name in wanted[manifest.task]),
        names=_names(manifest, language),
    )


def fits(manifest: Manifest) -> bool:
    """Whether the labels, or the characters of `lm`, are few enough to stand in a program."""
    return sum(len(name.encode()) + 4 for name in manifest.labels or manifest.alphabet.characters) <= MOST


def literal(text: str, language: Language) -> str:
    """`text` as a string of the language's source.

    Characters that a person can see and that nothing on the way changes stand for themselves. All others are
    escapes: what is invisible, joins with its neighbour, turns the line round or would be normalised.
    """
    plain = not language.ascii and unicodedata.is_normalized("NFC", text)
    return (
        '"'
        + "".join(ALONE.get(c) or (c if _stays(c, plain) else language.escaped(ord(c))) for c in text)
        + '"'
    )


def _stays(character: str, plain: bool) -> bool:
    if character.isascii():
        return character.isprintable()
    joins = unicodedata.category(character).startswith("M")
    return (
        plain
        and character.isprintable()
        and not joins
        and unicodedata.bidirectional(character) not in ("R", "AL", "AN")
    )


def _names(manifest: Manifest, language: Language) -> str | list[str] | None:
    """The literal of the alphabet, those of the labels, or None where they are too many."""
    if not fits(manifest):
        return None
    if manifest.task == "lm":
        return literal(manifest.alphabet.characters, language)
    return [literal(label, language) for label in manifest.labels]


def _shape(manifest: Manifest, tensor: contract.Tensor) -> str:
    """`(1, T, 18) float32`, say: what the program has for one text."""
    one = {contract.BATCH: "1", contract.TIME: "T"}
    axes = [one.get(str(axis), str(axis)) for axis in manifest.shape(tensor)]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''}) {tensor.dtype}"

"""C source from a network's tables: NAME.h, NAME.c, and NAME_test.c with texts and the answers expected to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.parity import TOLERANCE
from ohlol.export.c_tables import Matrix, Tables, pages, unsigned
from ohlol.export.card import DOES

SUMS = {
    "rnn": (1, 1, "one"),
    "gru": (3, 4, "n of the input; r and z; n of the state"),
    "lstm": (4, 4, "i, f, g, o"),
}  # numbers of a product and of all sums, in hidden sizes, and what these are
# Headers of C, and those that they include where they are older than C: NAME.h must not be found in their place.
HEADERS = re.compile(
    "assert|complex|ctype|errno|fenv|float|inttypes|iso646|limits|locale|math|setjmp|signal|stdalign|stdarg|stdatomic|stdbit|"
    "stdbool|stdckdint|stddef|stdint|stdio|stdlib|stdnoreturn|string|tgmath|threads|time|uchar|wchar|wctype|"
    "alloca|endian|features|malloc|memory|strings|unistd|values",
    re.IGNORECASE,  # as some file systems compare names
)
LINE = 112  # characters
LONGEST_LITERAL = 4095  # bytes that every compiler of C99 takes
LONGEST_NAME = 48  # with what follows it, of the 63 characters that C99 has every compiler tell apart
LISTED = 20  # labels in a comment


@dataclass(frozen=True)
class Source:
    """What the caller of the C functions has to know of a network: sizes in floats."""

    name: str
    task: Task
    one_way: bool
    classes: int
    fixed: int  # of the work space, whatever the text's length
    each: int  # of it, for each code point
    state: int

    def work(self, n: int) -> int:
        """What `NAME_WORK(n)` is."""
        return self.fixed + n * self.each


def described(name: str, manifest: Manifest, tables: Tables) -> Source:
    layers, ways, H = len(tables.layers), len(tables.layers[0]), tables.hidden
    kept = H * (2 if tables.cell == "lstm" else 1)
    if ways == 1:
        return Source(name, manifest.task, True, tables.classes, layers * kept, 0, layers * kept)
    classify = (
        manifest.task == "classify"
    )  # which needs no place for the last layer's answers but the final ones
    places = min(layers - classify, 2)
    return Source(name, manifest.task, False, tables.classes, kept + 2 * H * classify, places * 2 * H, 0)


def identifier(name: str) -> str:
    """`name` as what all names in C begin with. Raises `OhlolError` where it is too long for one."""
    if len(name) > LONGEST_NAME:
        raise OhlolError(
            f"name {name[:20]!r}…: {len(name)} characters, expected at most {LONGEST_NAME} for C, whose compilers may tell no more "
            "apart; give another with --name"
        )
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    fits = re.match("[A-Za-z]", plain) and not HEADERS.fullmatch(plain)
    return plain if fits else f"model_{plain}".rstrip("_")


def write_source(source: Source, manifest: Manifest, tables: Tables, measured: str) -> dict[str, bytes]:
    """`NAME.h` and `NAME.c`. Raises `OhlolError` for a label that no C string can hold."""
    name, NAME, network = source.name, source.name.upper(), manifest.network
    int8 = tables.layers[0][0].own.values.dtype == np.int8
    product, sums, sums_are = SUMS[tables.cell]
    embedding_size = tables.embedding.values.shape[1] if tables.embedding else 0
    bits, index, rows = pages(manifest.alphabet)
    sizes = [array.nbytes for array in tables.arrays] + [
        array.size * unsigned(array) for array in (index, rows)
    ]
    checkpoint = manifest.provenance["checkpoint"]
    labels = manifest.labels or ("", "", *manifest.alphabet.characters)
    facts = {
        "name": name,
        "NAME": NAME,
        "version": version("ohlol"),
        "does": DOES[manifest.task],
        "network": _network(network),
        "weights": f"{'int8, a scale for each row' if int8 else 'float32'}, {sum(a.size for a in tables.arrays):,} numbers",
        "bytes": sum(sizes),
        "checkpoint": f"{checkpoint['which']}, of epoch {checkpoint['epoch']}; its sha256 {checkpoint['sha256']}",
        "measured": measured,
        "texts": _texts(manifest),
        "answers": _answers(manifest),
        "scheme": manifest.label_scheme,
        "memory": _memory(source),
        "stack": 4 * (sums * tables.hidden + embedding_size),
        "usage": _usage(source, manifest),
        "task": manifest.task,
        "one_way": source.one_way,
        "classes": source.classes,
        "form": literal(manifest.alphabet.normalisation),
        "state": source.state,
        "work": f"{source.fixed} + {source.each} * (n)" if source.each else str(source.fixed),
        "hidden": tables.hidden,
        "memory_of_layer": tables.hidden * (2 if tables.cell == "lstm" else 1),
        "ways": len(tables.layers[0]),
        "product": product * tables.hidden,
        "sums": sums * tables.hidden,
        "sums_are": sums_are,
        "cell": tables.cell,
        "int8": int8,
        "whole": tables.embedding is None,
        "embedding_size": embedding_size,
        "pages": _integers(index),
        "rows": _integers(rows),
        "bits": bits,
        "mask": (1 << bits) - 1,
        "embedding": tables.embedding and _matrix("characters", tables.embedding),
        "layers": [
            [
                {
                    "input": _matrix(f"{prefix}_input", way.input),
                    "own": _matrix(f"{prefix}_own", way.own),
                    "bias": {"name": f"{prefix}_bias", "numbers": numbers(way.bias)},
                }
                for prefix, way in zip((f"layer{k}", f"layer{k}_back"), ways, strict=False)
            ]
            for k, ways in enumerate(tables.layers)
        ],
        "head": tables.head and _matrix("head_weights", tables.head),
        "head_bias": None if tables.head_bias is None else numbers(tables.head_bias),
        "labels": ",\n".join(f"    {literal(label)}" for label in labels),
    }
    return {
        f"{name}.h": _rendered("c_model.h.jinja", facts),
        f"{name}.c": _rendered("c_model.c.jinja", facts),
    }


def write_test(source: Source, texts: Sequence[NDArray[np.uint32]], logits: NDArray[np.float32]) -> bytes:
    """`NAME_test.c` of `texts`, each `(T,)`, and the logits `(answers, C)` of all of them."""
    longest = max(map(len, texts))
    facts = {
        "name": source.name,
        "NAME": source.name.upper(),
        "task": source.task,
        "one_way": source.one_way,
        "tolerance": f"{TOLERANCE:g}",
        "longest": longest,
        "answers_of_longest": 1 if source.task == "classify" else longest,
        "codepoints": _lines(f"0x{point:X}" for point in np.concatenate(texts).tolist()),
        "lengths": _lines(str(len(text)) for text in texts),
        "logits": numbers(logits),
    }
    return _rendered("c_test.c.jinja", facts)


def literal(text: str) -> str:
    """`text` in UTF-8 as a string of C: plain ASCII, no escape that could go on into what follows, no trigraph.

    Raises `OhlolError` where C cannot hold it.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data or len(data) > LONGEST_LITERAL:
        what = "a NUL or a lone surrogate" if b"\0" in data else f"more than {LONGEST_LITERAL:,} bytes"
        raise OhlolError(
            f"label {text[:40]!r}: has {what}, which no string of C can hold; name it otherwise and train again"
        )
    return (
        '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data) + '"'
    )


def numbers(array: NDArray[Any]) -> str:
    """Its numbers in order. float32 in the fewest decimal digits that read back as the same number, bit for bit: a person
    can read them, and C++ before 2017 too, which hexadecimal ones are not for.
    """
    flat = array.ravel()
    if array.dtype == np.float32:
        return _lines(f"{number}f" for number in map(str, flat))
    return _lines(map(str, flat.tolist()))


def _lines(words: Iterable[str]) -> str:
    """With commas between, in lines."""
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line]).removesuffix(",")


def _integers(array: NDArray[np.int32]) -> dict[str, Any]:
    return {"ctype": f"uint{8 * unsigned(array)}_t", "size": array.size, "numbers": numbers(array)}


def _matrix(name: str, matrix: Matrix) -> dict[str, Any]:
    n, m = matrix.values.shape
    scales = None if matrix.scales is None else numbers(matrix.scales)
    return {"name": name, "n": n, "m": m, "numbers": numbers(matrix.values), "scales": scales}


def _network(network: Any) -> str:
    ways = "both ways" if network["bidirectional"] else "one way"
    size = f" of {network['embedding_size']}" if network["input"] == "embedding" else ""
    head = "linear" if network["head"] == "linear" else "the hidden state is the answer"
    layers = f"{network['num_layers']} x {network['cell'].upper()} of {network['hidden_size']}, {ways}"
    return f"{network['input']}{size}, {layers}, {head}"


def _texts(manifest: Manifest) -> str:
    form = manifest.alphabet.normalisation
    first = (
        "as they are, not normalised"
        if form == "none"
        else f"in normal form {form} of Unicode, which is the caller's work"
    )
    return f"code points {first}; {len(manifest.alphabet.characters):,} are known, all others are one unknown character"


def _answers(manifest: Manifest) -> str:
    if manifest.task == "lm":
        return f"the {len(manifest.alphabet):,} characters of the alphabet: 0 padding, 1 the unknown, then the known ones"
    shown = [
        json.dumps(label[:40]).replace("/", "\\u002f") for label in manifest.labels[:LISTED]
    ]  # nothing ends the comment
    more = f" and {len(manifest.labels) - LISTED:,} more" if len(manifest.labels) > LISTED else ""
    indent = "\n *             "
    return indent.join(_wrapped(", ".join(shown) + more))


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > LINE - 16:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word}"
    return lines


def _memory(source: Source) -> str:
    if source.one_way:
        return f"{4 * source.state} bytes for a state, and as many of work"
    return f"work of {4 * source.fixed} bytes and {4 * source.each} more for each code point"


def _usage(source: Source, manifest: Manifest) -> list[str]:
    """How it is called, for this network."""
    name, NAME = source.name, source.name.upper()
    many = "" if manifest.task == "classify" else "MOST * "
    label = "labels[0]" if manifest.task == "classify" else "labels[k]"
    lines = [
        f"    float work[{NAME}_WORK(MOST)], logits[{many}{NAME}_CLASSES];",
        "    uint32_t codepoints[MOST]; int labels[MOST]; size_t n = 0;",
        "    const char *at = text, *end = text + strlen(text);",
        f"    while (at < end && n < MOST) codepoints[n++] = {name}_utf8(&at, end);",
        f"    {name}_run(codepoints, n, work, logits, labels);   ... {name}_labels[{label}] ...",
    ]
    if source.one_way:
        lines += [
            "",
            "or as the text arrives:",
            "",
            f"    {name}_state state; float logits[{NAME}_CLASSES]; int label;",
            f"    {name}_start(&state);",
            f"    while (at < end) label = {name}_step(&state, {name}_utf8(&at, end), logits);",
        ]
    return lines


def _rendered(template: str, facts: dict[str, Any]) -> bytes:
    text: str = _template(template).render(facts)
    lines = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n")))
    return lines.encode("ascii")


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined  # here: an export without C starts without it

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(Path(__file__).with_name(name).read_text(encoding="utf-8"))

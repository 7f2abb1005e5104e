"""C source of every network, compiled without a warning, held against PyTorch; what goes wrong is seen or refused."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import OhlolError, ProofError
from ohlol.cli import main
from ohlol.export import c, c_proof, c_source, c_tables, proof
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
STRICT = (
    *(
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-Wshadow",
        "-Wconversion",
        "-Wdouble-promotion",
    ),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Wcast-align", "-Wwrite-strings", "-Wvla"),
)
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-g0")
CHECKPOINT = {"which": "best", "epoch": 3, "sha256": "0" * 64}
# Three layers are two and one more: a few of them.
NETWORKS = {
    "_".join(map(str, (task, cell, "both" if both else "one", layers, given, head, weights))).lower(): (
        *(task, cell, both, layers, given, head, weights),
    )
    for task, cell, both, layers, given, head, weights in itertools.product(
        ("tag", "classify", "lm"),
        ("rnn", "gru", "lstm"),
        (False, True),
        (1, 2, 3),
        ("embedding", "one_hot"),
        ("linear", "none"),
        ("float32", "int8"),
    )
    if not (task == "lm" and both)
    and not (layers == 3 and (given, head, weights) != ("embedding", "linear", "float32"))
}


def made(make, name, described, **more):
    """A network with random weights, its manifest, what its source is, the network it is held against, and the files."""
    *shape, weights = described
    network, manifest = make(*shape, **more)
    with torch.no_grad():  # a network that was trained answers with larger numbers than one just made
        for weight in network.parameters():
            weight.mul_(2)
    manifest = dataclasses.replace(manifest, provenance={"checkpoint": CHECKPOINT})
    _, oracle, tables = c.prepared(network, weights)
    source = c_source.described(name, manifest, tables)
    cases = proof.draw_cases(manifest.alphabet)
    return network, manifest, source, oracle, c.written(source, manifest, tables, oracle, cases)


def compiled(compiler, *arguments):
    command = [compiler, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stderr == ""


def ran(program, code=0):
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def cc(program):
    return program("cc")


@pytest.fixture(scope="module")
def networks(make, tmp_path_factory):
    """Every network, its files in one folder; `NAME_test.c` is short, since their number is large."""
    folder = tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_proof, "MOST", 300)
        found = {name: made(make, name, described) for name, described in NETWORKS.items()}
    for *_, files in found.values():
        for file, content in files.items():
            (folder / file).write_bytes(content)
    return folder, found


@pytest.fixture(scope="module")
def library(cc, networks):
    """All of them compiled in one file, so that no two names are the same, without a warning, as one library."""
    folder, found = networks
    (folder / "all.c").write_text("".join(f'#include "{name}.c"\n' for name in found))
    compiled(cc, *STRICT, "-O0", "-fPIC", "-shared", folder / "all.c", "-lm", "-o", folder / "all.so")
    functions = ctypes.CDLL(str(folder / "all.so"))
    return {name: c_proof.Library(source, functions) for name, (_, _, source, _, _) in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_pytorch(name, networks, library):
    """Logits, probabilities and labels, of the network itself in float64; for int8, of the network rounded."""
    _, manifest, source, oracle, _ = networks[1][name]
    claims = c_proof.claims(library[name], "of a test")
    cases = proof.draw_cases(manifest.alphabet, seed=3)
    table = proof.prove(oracle, manifest.alphabet, claims, cases)
    assert table.passed, table.table()
    assert len(table.rows) == len(cases) * (2 if source.one_way else 1)


# One of each form that the source has.
FORMS = [
    name
    for name, (task, cell, both, layers, given, head, weights) in NETWORKS.items()
    if layers < 3 and (given == "embedding") == (layers == 2) and (head == "linear" or weights == "float32")
]
EXACT = """
static void exact_NAME(void)
{
    size_t n, k;
    for (n = 0; n < 4; n++) {
        uint32_t *codepoints = malloc(n * sizeof *codepoints + 1);
        float *work = malloc(MACRO_WORK(n) * sizeof *work), *logits = malloc(ANSWERS * MACRO_CLASSES * sizeof *logits + 1);
        int *labels = malloc(ANSWERS * sizeof *labels + 1);
        for (k = 0; k < n; k++) codepoints[k] = k == 1 ? 'h' : 0xFFFFFFFF;
        NAME_run(codepoints, n, work, logits, NULL);
        NAME_run(codepoints, n, work, logits, labels);
        if (ANSWERS > 0 && labels[0] != (n == 0 ? -1 : labels[0])) abort();
        free(codepoints); free(work); free(logits); free(labels);
    }
}
"""


def test_no_sanitizer_finds_anything(cc, networks):
    """NAME_test.c of every form of the source, and calls with not one byte more than asked for, under ASan and UBSan."""
    folder, found = networks
    lines = ["#include <stdlib.h>"]
    for name in FORMS:
        answers = "(size_t)1" if found[name][2].task == "classify" else "n"
        exact = EXACT.replace("NAME", name).replace("MACRO", name.upper()).replace("ANSWERS", answers)
        lines += [
            f"#define {name.upper()}_NO_MAIN",
            f'#include "{name}.c"',
            f'#include "{name}_test.c"',
            exact,
        ]
    calls = " ".join(f"wrong += {name}_test(); exact_{name}();" for name in FORMS)
    lines.append(f"int main(void) {{ int wrong = 0; {calls} return wrong > 0; }}")
    (folder / "sanitized.c").write_text("\n".join(lines) + "\n")
    compiled(cc, *STRICT, *SANITIZED, folder / "sanitized.c", "-lm", "-o", folder / "sanitized")
    told = ran(folder / "sanitized")
    assert len(FORMS) == told.count("all as PyTorch's")


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("more", [{"tied": True, "embedding_size": 6}, {"loop": True}], ids=["tied", "loop"])
def test_what_training_shares_or_loops_over(more, weights, cc, make):
    """The head's weights that are the embedding's too, and the layer trained cell by cell: tables of their own."""
    assert proved(make, ("lm", "gru", False, 1, "embedding", "linear", weights), cc, **more) == set()


@pytest.mark.parametrize("task", ["classify", "lm"])
def test_the_proof_that_goes_along_stays_small(task, cc, make):
    """Of thousands of characters or labels, too: at least one answer is held against PyTorch."""
    alphabet = Alphabet("".join(map(chr, range(0x4E00, 0x4E00 + 3000))))
    *_, files = made(make, "many", (task, "rnn", False, 1, "embedding", "linear", "int8"), alphabet=alphabet)
    expected = (
        re.search(r"_test_logits\[\] = \{(.*?)\}", files["many_test.c"].decode(), re.DOTALL)[1].count(",") + 1
    )
    assert (3002 if task == "lm" else 4) <= expected <= c_proof.MOST


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("tag")])
def test_steps_are_the_whole(name, networks, library):
    """`NAME_step` gives the very numbers of `NAME_run`, from any state that was copied in the middle."""
    source = networks[1][name][2]
    if not source.one_way:
        assert not hasattr(library[name].functions, f"{name}_step"), "what reads both ways has no step"
        return
    points = np.array([ord(c) for c in "hello é\u0301 中?😀 hello"], dtype=np.uint32)
    logits, labels = library[name].run(points)
    again, labels_again = library[name].steps(points)
    assert logits.tobytes() == again.tobytes()
    assert labels.tolist() == labels_again.tolist()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O2", "-O3", "-Os"])
def test_an_optimising_compiler_is_silent_too(compiler, level, program, networks, tmp_path):
    """It looks further for what is not set, out of bounds or not used; NAME_test.c holds of what it makes."""
    folder, _ = networks
    for name in FORMS[:: len(FORMS) // 5]:
        files = folder / f"{name}.c", folder / f"{name}_test.c"
        compiled(program(compiler), *STRICT, level, *files, "-lm", "-o", tmp_path / "test")
        assert "all as PyTorch's" in ran(tmp_path / "test")


@pytest.mark.parametrize("standard", ["-std=c++98", "-std=c++17"])
def test_from_cpp_and_from_two_files(standard, cc, program, networks, tmp_path):
    """The header is C++ too, and may be included where the tables are not."""
    folder, found = networks
    one, other = "tag_gru_one_2_embedding_linear_float32", "classify_lstm_both_2_embedding_linear_int8"
    points = np.array([0x68, 0x65, 0xFFFD], dtype=np.uint32)
    uses = "#include <stdio.h>\n" + "".join(
        f'#include "{name}.h"\n#include "{name}.h"\n' for name in (one, other)
    )
    (tmp_path / "main.cpp").write_text(
        uses
        + f"""
int second(const uint32_t *codepoints, size_t n);
int main() {{
    const uint32_t codepoints[] = {{ 0x68, 0x65, 0xFFFD }};
    float work[{one.upper()}_WORK(3)], logits[3 * {one.upper()}_CLASSES];
    int labels[3];
    {one}_run(codepoints, 3, work, logits, labels);
    printf("%d %d %d %d\\n", labels[0], labels[1], labels[2], second(codepoints, 3));
    return 0;
}}
"""
    )
    (tmp_path / "second.cpp").write_text(
        uses
        + f"""
int second(const uint32_t *codepoints, size_t n);
int second(const uint32_t *codepoints, size_t n) {{
    float work[{other.upper()}_WORK(3)], logits[{other.upper()}_CLASSES];
    int label;
    {other}_run(codepoints, n, work, logits, &label);
    return label;
}}
"""
    )
    objects = []
    for name in (one, other):
        objects.append(tmp_path / f"{name}.o")
        compiled(cc, *STRICT, "-c", folder / f"{name}.c", "-o", objects[-1])
    flags = (standard, "-Wall", "-Wextra", "-Werror", "-Wno-long-long", f"-I{folder}")
    sources = (tmp_path / "main.cpp", tmp_path / "second.cpp")
    compiled(program("g++"), *flags, *sources, *objects, "-lm", "-o", tmp_path / "main")
    expected = []
    for name in (one, other):
        _, manifest, _, oracle, _ = found[name]
        case = proof.Case("", points.view(np.int32)[None], np.array([3], dtype=np.int32))
        expected += proof.expected_outputs(oracle, manifest.alphabet, case)["label_ids"].ravel().tolist()
    assert expected == [int(word) for word in ran(tmp_path / "main").split()]


def proved(make, described, compiler, **more):
    """The rows that fail of source written while something is broken, of a network that is whole."""
    _, manifest, source, oracle, files = made(make, "broken", described, alphabet=Alphabet("ehlo"), **more)
    cases = proof.draw_cases(Alphabet("ehlo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "require", lambda found: None)
        table = c._proved(source, files, compiler, oracle, manifest, cases)
    return {row.case for row in table.rows if not row.passed}


BROKEN = ("tag", "lstm", True, 2, "embedding", "linear", "float32")


@pytest.mark.parametrize("gates", ["INPUT_GATES", "STATE_GATES"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_swapped_gates_are_caught(cell, gates, cc, monkeypatch, make):
    """PyTorch's order and that of the sums are not the same; the same weights in another order are another network."""
    described = ("tag", cell, True, 2, "embedding", "linear", "float32")
    assert proved(make, described, cc) == set(), "the proof holds of what is whole"
    order = getattr(c_tables, gates)[cell]
    monkeypatch.setitem(getattr(c_tables, gates), cell, (order[1], order[0], *order[2:]))
    assert len(proved(make, described, cc)) >= 8


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        pytest.param("n - 1 - k", "k", id="the second way reads forwards"),
        pytest.param("{{ name }}_row(codepoint)", "0", id="every character is unknown"),
        pytest.param("+ way * {{ NAME }}_HIDDEN, state", ", state", id="both ways answer in one place"),
        pytest.param("{{ name }}_sigmoid(f[k]) * c[k]", "c[k]", id="nothing is forgotten"),
        pytest.param("- 2 / (1 +", "- 2.001f / (1 +", id="tanh is a little off"),
        pytest.param("return best;", "return 0;", id="the label is not the likeliest"),
        pytest.param("logits[k] /= sum;", "logits[k] /= sum + 1e-3f;", id="probabilities do not sum to one"),
        pytest.param("layer->bias,", "{{ name }}_layers[0][0].bias,", id="the biases of another layer"),
        pytest.param("memset(state, 0,", "memset(state, 62,", id="a state that is not zero at first"),
    ],
)
def test_code_that_is_wrong_is_caught(found, broken, cc, monkeypatch, make):
    """Each of these compiles; the proof sees it, and so does NAME_test.c on the user's machine."""
    real = Path.read_text

    def changed(path, *given, **more):
        text = real(path, *given, **more)
        if path.name == "c_model.c.jinja":
            assert found in text
            return text.replace(found, broken)
        return text

    monkeypatch.setattr(c_source, "_template", c_source._template.__wrapped__)
    monkeypatch.setattr(Path, "read_text", changed)
    assert len(proved(make, BROKEN, cc)) >= 3


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_weights_that_are_wrong_are_caught_where_they_run(weights, cc, networks, tmp_path):
    """NAME_test.c exits with 1 beside a NAME.c with one number changed."""
    _, found = networks
    name = f"tag_rnn_one_2_embedding_linear_{weights}"
    for file, content in found[name][-1].items():
        (tmp_path / file).write_bytes(content)
    text = (tmp_path / f"{name}.c").read_text()
    start = text.index(f"{name}_layer1_own[6 * 6] = {{\n") + len(f"{name}_layer1_own[6 * 6] = {{\n    ")
    end = text.index(",", start)
    (tmp_path / f"{name}.c").write_text(
        text[:start] + ("1.5f" if weights == "float32" else "-99") + text[end:]
    )
    compiled(cc, *STRICT, tmp_path / f"{name}.c", tmp_path / f"{name}_test.c", "-lm", "-o", tmp_path / "test")
    assert "DIFFER" in ran(tmp_path / "test", code=1)


def test_rounding_that_is_too_coarse_is_caught(monkeypatch, make):
    """Source and oracle round by the same function, so that function is held apart from both."""
    real = c_tables.quantised
    monkeypatch.setattr(c_tables, "quantised", lambda rows: (real(rows)[0] // 2 * 2, real(rows)[1]))
    with pytest.raises(ProofError, match="a weight is rounded further than int8 has to"):
        made(make, "coarse", (*BROKEN[:-1], "int8"))


def test_any_alphabet_is_looked_up(cc, make, tmp_path):
    """Of the characters of a page, of many, of the last plane, of none at all; and beside each the unknown ones."""
    alphabets = ["", "a", "\x01", "\U0010ffff", "aé中😀", "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))]
    lines, checks = [], ""
    for number, characters in enumerate(alphabets):
        name = f"alphabet{number}"
        described = ("tag", "rnn", False, 1, "embedding", "linear", "int8")
        *_, files = made(make, name, described, alphabet=Alphabet(characters))
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        known = [ord(c) for c in characters]
        near = sorted({p + d for p in [*known, 0, 2**31, 2**32 - 2] for d in (-1, 0, 1)} - {-1})
        rows = [known.index(p) + 1 if p in known else 0 for p in near]
        pairs = ", ".join(f"{{0x{p:x}u, {row}}}" for p, row in zip(near, rows, strict=True))
        lines += [f'#include "{name}.c"', f"static const uint32_t expected{number}[][2] = {{ {pairs} }};"]
        checks += (
            f"for (k = 0; k < {len(near)}; k++) "
            f"wrong += {name}_row(expected{number}[k][0]) != expected{number}[k][1];\n"
        )
    lines.append(f"int main(void) {{ size_t k; int wrong = 0; {checks} return wrong > 0; }}\n")
    (tmp_path / "rows.c").write_text("\n".join(lines))
    compiled(cc, "-std=c99", *SANITIZED, tmp_path / "rows.c", "-lm", "-o", tmp_path / "rows")
    ran(tmp_path / "rows")


@pytest.fixture(scope="module")
def utf8(library):
    """`NAME_utf8` over whole bytes: the code points, and how many bytes each took."""
    name = FORMS[0]
    function = getattr(library[name].functions, f"{name}_utf8")
    function.restype = ctypes.c_uint32

    def decode(data):
        buffer = ctypes.create_string_buffer(data, len(data))
        start = ctypes.addressof(buffer)
        at, end = ctypes.c_void_p(start), ctypes.c_void_p(start + len(data))
        points, sizes = [], []
        while at.value < end.value:
            before = at.value
            points.append(function(ctypes.byref(at), end))
            sizes.append(at.value - before)
        return points, sizes

    return decode


@given(st.one_of(st.binary(), st.lists(st.sampled_from(
    [b"a", b"\x00", b"\xc3", b"\xa9", b"\xe4\xb8\xad", b"\xe4\xb8", b"\xf0\x9f\x98\x80", b"\xf0\x9f\x98", b"\xed\xa0\x80",
     b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xff", b"\xf8", b"\xf4\x8f\xbf\xbf", b"\xef\xbb\xbf"]
)).map(b"".join)))  # fmt: skip
@example(bytes(range(256)) * 2)
def test_utf8_is_read_as_python_reads_it(utf8, data):
    """Every ill-formed part, as Unicode recommends to cut them, is one U+FFFD; no byte is read twice or left out."""
    points, sizes = utf8(data)
    expected = data.decode("utf-8", "replace")
    assert [ord(c) for c in expected] == points
    assert len(data) == sum(sizes)
    for point, size in zip(points, sizes, strict=True):
        if point != 0xFFFD:
            assert len(chr(point).encode()) == size


LABELS = (
    "",
    '"',
    "\\",
    "??/",
    "*/",
    "/*",
    "é",
    "中 文",
    "😀",
    "\n\t\x7f",
    "%d",
    "\u202e",
    "0\x011",
    "a" * 4000,
)


def test_labels_are_strings_of_c(cc, make, tmp_path, monkeypatch):
    """Quotes, trigraphs, what would end a comment, digits after an escape: each label reads back as it was."""
    network, manifest = make("tag", "rnn", False, 1, hidden_size=len(LABELS), head="linear")
    network.head = torch.nn.Linear(network.head.in_features, len(LABELS))
    manifest = dataclasses.replace(manifest, labels=LABELS, provenance={"checkpoint": CHECKPOINT})
    _, oracle, tables = c.prepared(network, "float32")
    source = c_source.described("labels", manifest, tables)
    for file, content in c.written(
        source, manifest, tables, oracle, proof.draw_cases(manifest.alphabet)
    ).items():
        (tmp_path / file).write_bytes(content)
        assert content.isascii()
    compiled(
        cc, *STRICT, "-O1", "-fPIC", "-shared", tmp_path / "labels.c", "-lm", "-o", tmp_path / "labels.so"
    )
    found = (ctypes.c_char_p * len(LABELS)).in_dll(ctypes.CDLL(str(tmp_path / "labels.so")), "labels_labels")
    assert list(LABELS) == [label.decode() for label in found]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a\0b", "a NUL or a lone surrogate"),
        ("\ud800", "a NUL or a lone surrogate"),
        ("é" * 3000, "more than 4,095 bytes"),
    ],
)
def test_a_label_that_no_string_of_c_holds(label, message):
    with pytest.raises(OhlolError, match=message):
        c_source.literal(label)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello", "hello"),
        ("my-model.v2", "my_model_v2"),
        ("18 names", "model_18_names"),
        ("模型", "model"),
        ("_A", "A"),
        ("", "model"),
        ("int", "int"),
        ("main", "main"),
        ("tanhf", "tanhf"),
        ("size", "size"),
        ("math", "model_math"),
        ("String", "model_String"),
        ("stdint", "model_stdint"),
        ("setjmp", "model_setjmp"),
    ],
)
def test_a_name_becomes_an_identifier(name, expected):
    assert expected == c_source.identifier(name)


def test_a_name_too_long_for_c():
    """It is refused before anything is written."""
    with pytest.raises(OhlolError, match="300 characters, expected at most 48 for C"):
        c_source.identifier("a" * 300)


def test_names_that_c_has_for_itself(cc, make, tmp_path):
    """Keywords, functions, prefixes of its macros and its headers: the source compiles where they are searched for, too."""
    names = [
        *(
            "int",
            "main",
            "tanhf",
            "size",
            "SIZE",
            "int8",
            "uint32",
            "wchar",
            "flt",
            "dbl",
            "char",
            "ptrdiff",
            "intmax",
        ),
        *(
            "math",
            "string",
            "stdint",
            "stddef",
            "stdio",
            "limits",
            "float",
            "assert",
            "time",
            "NULL",
            "restrict",
            "E",
        ),
    ]
    for name in map(c_source.identifier, names):
        folder = tmp_path / name
        folder.mkdir()
        *_, files = made(make, name, ("classify", "lstm", True, 2, "embedding", "linear", "int8"))
        for file, content in files.items():
            (folder / file).write_bytes(content)
        (folder / "all.c").write_text(
            "#include <limits.h>\n#include <float.h>\n#include <wchar.h>\n#include <inttypes.h>\n"
            f'#include "{name}.c"\n#include "{name}_test.c"\n'
        )
        compiled(
            cc, "-std=c2x", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{folder}", folder / "all.c"
        )


def test_a_compiler_of_cpp_is_told(program, networks, tmp_path):
    """In one line that says what to do, not by all that C++ does not have."""
    folder, _ = networks
    file = folder / f"{FORMS[0]}.c"
    done = subprocess.run(
        [program("g++"), "-c", file, "-o", tmp_path / "o"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "compile this file as C; its header is C++ too" in done.stderr
    assert done.stderr.count("error") <= 3


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(1e-45)
@example(-0.0)
@example(16777216.0)
def test_numbers_read_back_bit_for_bit(number):
    """As C reads them: a decimal float32 with a point or an exponent, and an f."""
    printed = c_source.numbers(np.array([number], dtype=np.float32)).strip()
    assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", printed)
    assert re.search(r"[.e]", printed)
    assert np.float32(printed[:-1]).tobytes() == np.float32(number).tobytes()


# By the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small network that learns something, with data to measure on."""
    folder = tmp_path_factory.mktemp("run")
    lines = "".join(
        f"{word}\t{label}\n"
        for word, label in (("kato", "a"), ("smith", "b"), ("novak", "c"))
        for _ in range(20)
    )
    for name in ("train", "test"):
        (folder / f"{name}.tsv").write_text(lines, encoding="utf-8")
    recipe = Recipe.parse(
        {
            "task": {"kind": "classify"},
            "data": {"format": "tsv", "train": "train.tsv", "test": "test.tsv"},
            "model": {"cell": "gru", "hidden_size": 8, "embedding_size": 4, "bidirectional": True},
            "train": {"epochs": 3, "learning_rate": 0.02},
        },
        "a recipe",
    )
    data = load(recipe, folder)
    finish(train(recipe, data, folder / "small"), data)
    return folder / "small"


def exported(run, tmp_path, *options):
    fixed = ("export", run, "-o", tmp_path / "bundle", "--formats", "onnx", "--name", "small")
    done = CliRunner().invoke(main, [*map(str, fixed), *map(str, options)])
    assert "Traceback" not in done.output
    return done


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_becomes_c(cc, run, tmp_path):
    """Three files named after the run, and what ohlol wrote; the proof of both functions is shown; nothing is of this machine."""
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert re.search(r"small_run +cc +10 .* equal +1e-05  ok", done.output)
    assert f"{tmp_path / 'c'} holds small.h, small.c, small_test.c" in done.output
    files = contents(tmp_path / "c")
    assert {"small.h", "small.c", "small_test.c", "written-by-ohlol.json"} == set(files)
    sha256 = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())["provenance"]["checkpoint"][
        "sha256"
    ]
    for fact in (sha256, "normal form NFC", '"a", "b", "c"', "small_run("):
        assert fact in files["small.h"].decode()
    assert str(tmp_path.parent).encode() not in b"".join(files.values())
    compiled(
        cc,
        *STRICT,
        tmp_path / "c" / "small.c",
        tmp_path / "c" / "small_test.c",
        "-lm",
        "-o",
        tmp_path / "test",
    )
    assert re.fullmatch(
        r"small: \d+ texts, \d+ answers, largest error \S+: all as PyTorch's\n", ran(tmp_path / "test")
    )


def test_exporting_again_gives_the_same_bytes_and_replaces_only_its_own(cc, run, tmp_path):
    """No date, no random name; and nobody's work is taken for an old export."""
    out = tmp_path / "c"
    assert exported(run, tmp_path, "--c", out).exit_code == 0
    first = contents(out)
    assert exported(run, tmp_path, "--c", out).exit_code == 0
    assert first == contents(out)
    (out / "small.c").write_bytes(first["small.c"] + b"/* mine */\n")
    done = exported(run, tmp_path, "--c", out)
    assert done.exit_code == 1
    assert "small.c was added or changed since ohlol wrote the folder" in done.output
    assert (out / "small.c").read_bytes().endswith(b"mine */\n")
    other = tmp_path / "src"
    other.mkdir()
    (other / "main.c").write_text("int main(void) { return 0; }\n")
    done = exported(run, tmp_path, "--c", other)
    assert done.exit_code == 1
    assert "is there already, and not as ohlol writes it" in done.output
    assert [file.name for file in other.iterdir()] == ["main.c"]


def test_int8_says_what_it_cost(cc, run, tmp_path):
    """In the header: how far probabilities move, and the metrics before and after; where there is no data, that."""
    done = exported(run, tmp_path, "--c", tmp_path / "c", "--c-weights", "int8", "--name", "my-names")
    assert done.exit_code == 0, done.output
    header = contents(tmp_path / "c")["my_names.h"].decode()
    assert re.search(
        r"changes a probability by up to [\d.e-]+ in the texts of the proof; on test: accuracy 1\.0000 -> 1\.0000,",
        header,
    )
    assert "int8, a scale for each row" in header
    compiled(cc, *STRICT, tmp_path / "c" / "my_names.c", "-c", "-o", tmp_path / "my_names.o")
    (tmp_path / "moved").mkdir()
    shutil.copytree(run, tmp_path / "moved" / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            c, "split_to_measure", lambda *given: (_ for _ in ()).throw(c.DataError("no such file"))
        )
        assert exported(run, tmp_path, "--c", tmp_path / "c2", "--c-weights", "int8").exit_code == 0
    assert "no data was there to measure more" in contents(tmp_path / "c2")["small.h"].decode()


def test_a_failed_proof_leaves_nothing(cc, run, tmp_path, monkeypatch):
    """Neither C nor a bundle: what is wrong is worse than what is not there."""
    monkeypatch.setitem(c_tables.STATE_GATES, "gru", (1, 0, 2))
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 1
    assert "FAILED: small_run in cc" in done.output
    assert list(tmp_path.iterdir()) == []


def test_source_that_does_not_compile_leaves_nothing(cc, run, tmp_path, monkeypatch):
    """With what the compiler says."""
    monkeypatch.setattr(c_source, "numbers", lambda array: "{")
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 1
    assert "does not compile what was written" in done.output
    assert "error:" in done.output
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_it_is_written_and_said_to_be_unproved(cc, run, tmp_path, monkeypatch):
    """The same bytes; the proof goes along, to be run where there is one."""
    assert exported(run, tmp_path, "--c", tmp_path / "proved").exit_code == 0
    monkeypatch.setattr(c.shutil, "which", lambda name: None)
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "not proved: no C compiler (cc) is on this machine; small_test.c proves it" in done.output
    assert contents(tmp_path / "proved") == contents(tmp_path / "c")


def test_what_does_not_run_here_is_said_to_be_unproved(cc, run, tmp_path, monkeypatch):
    """A compiler for another machine, or a temporary folder from which nothing may be loaded."""

    def refused(path):
        raise OSError(f"{Path(path).name}: wrong ELF class")

    monkeypatch.setattr(c.ctypes, "CDLL", refused)
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "makes does not run here (small.so: wrong ELF class)" in done.output


def test_a_compiler_that_hangs_is_given_up(run, tmp_path, monkeypatch):
    """With the command, so that it can be tried by hand."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cc").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(c_proof, "PATIENCE", 0.2)
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 1
    assert re.search(r"cc -std=c99 -O2 -fPIC -c small\.c: not done after 0\.2 seconds, given up", done.output)
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("place", ["bundle", "bundle/c", "RUN", "RUN/c"])
def test_c_in_a_folder_that_is_the_exports_own(place, run, tmp_path):
    """A bundle is written whole, and a run is what training left: neither has room for C. Refused before the work."""
    folder = tmp_path / place if place.startswith("bundle") else Path(place.replace("RUN", str(run)))
    done = exported(run, tmp_path, "--c", folder)
    assert done.exit_code == 2
    assert f"--c {folder} lies in" in done.output
    assert "name a folder outside of it" in done.output
    assert list(tmp_path.iterdir()) == []
    assert not (run / "c").exists()


def test_a_large_network_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    """With what to do instead."""
    monkeypatch.setattr(c, "MOST_WEIGHTS", 100)
    done = exported(run, tmp_path, "--c", tmp_path / "c")
    assert done.exit_code == 1
    assert re.search(
        r"\d,?\d+ weights are too many for C source, which is for at most 100; run the bundle's", done.output
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hello", "--c", "DIR"], "--c needs the RUN that hello was made of"),
        (["RUN", "--c-weights", "int8"], "--c-weights goes with --c DIR"),
        (["RUN", "--c-weights", "float32"], "--c-weights goes with --c DIR"),
        (["hello", "--triton", "DIR", "--c-weights", "int8"], "--c-weights goes with --c DIR"),
        (["RUN", "--name", "x"], "--name goes with --triton, --hf, --mlflow or --c"),
        (["RUN", "--c", "DIR", "--c-weights", "int4"], "'int4' is not one of 'float32', 'int8'"),
    ],
)
def test_usage_that_is_wrong(options, message, run, tmp_path):
    """One message, and nothing written."""
    given = [str(run) if o == "RUN" else str(tmp_path / "c") if o == "DIR" else o for o in options]
    done = CliRunner().invoke(main, ["export", *given])
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_docs_does_as_it_says(cc, tmp_path, recipes, make):
    """docs/c.md from its first command to its last: what it prints, the page shows."""
    page = (ROOT / "docs" / "c.md").read_text(encoding="utf-8")
    (tmp_path / "recipes").symlink_to(recipes, target_is_directory=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed, shown = "", 0
    for language, code in re.findall(r"^```(bash|c|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "c":
            (tmp_path / re.match(r"/\* (\S+) \*/", code)[1]).write_text(code, encoding="utf-8")
        elif language == "bash":
            done = subprocess.run(
                ["bash", "-euc", code],
                cwd=tmp_path,
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout + done.stderr
        else:
            for line in code.splitlines():
                pattern = re.sub(r"…", ".*", re.sub(r"(\\ )+", " +", re.escape(line)))
                assert re.search(f"^{pattern}$", printed, re.MULTILINE), f"{line!r} is not in {printed}"
                shown += 1
    assert shown == 5
    compiled(cc, *STRICT, "-c", f"-I{tmp_path / 'hello_c'}", tmp_path / "label.c", "-o", tmp_path / "label.o")
    *_, files = made(make, "names", ("classify", "lstm", True, 2, "embedding", "linear", "float32"))
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    program = tmp_path / "classify"
    compiled(cc, *STRICT, tmp_path / "classify.c", tmp_path / "names.c", "-lm", "-o", program)
    for words, answer in ((["hello"], r"\S+ [01]\.\d\d\n"), (["e" * 100], r"\S+ [01]\.\d\d\n"), ([], "")):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)
        assert re.fullmatch(answer, done.stdout)
        assert done.returncode == (not words)

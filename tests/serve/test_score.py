"""`ohlol score`: the odd lines of a log, by what a language model expects."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.errors import InputError
from ohlol.cli import main
from ohlol.serve.score import Line, Scorer, _number, oddest
from ohlol.serve.stream import load

TEXTS = st.text(st.sampled_from("ehlo .👋é\u0301\u1100\u1161\0\ud800"), max_size=40)
USUAL = "hello 👋 ohlol."


@pytest.fixture(scope="module")
def model(golden):
    return ohlol.load(golden / "files")


@pytest.fixture(scope="module")
def file(golden):
    return load(golden / "files")


def near(expected, found):
    """Bits of each, equal within what two files of a bundle may differ by; None where there are none."""
    assert [bits is None for bits in expected] == [bits is None for bits in found]
    numbers = [[bits for bits in side if bits is not None] for side in (expected, found)]
    np.testing.assert_allclose(*numbers, atol=2e-4)


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, max_size=30))
def test_a_line_is_scored_as_the_model_scores_it(model, file, texts):
    """Ragged batches on stream.onnx give what model.onnx gives for each text alone."""
    near([model(text).bits_per_character for text in texts], Scorer(file)(texts))


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, max_size=20), cuts=st.lists(st.integers(0, 20), max_size=4))
def test_carried_lines_are_scored_as_one_text(model, file, texts, cuts):
    """Each character of the running text, line breaks included, by the text before it: from model.onnx at once, line by
    line with the state carried, however many lines come together."""
    alphabet = model.manifest.alphabet
    lines = [alphabet.normalise(text) + "\n" for text in texts]
    expected = []
    if lines:
        points = codepoints("".join(lines))
        logits = model.outputs(points[None], np.array([len(points)], dtype=np.int32))["logits"][0].astype(
            np.longdouble
        )
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        bits = -log_p[np.arange(len(points) - 1), alphabet.ids(points)[1:]] / np.log(np.longdouble(2))
        ends = np.cumsum([len(line) for line in lines]) - 1  # the first character has no score
        parts = np.split(bits, ends[:-1])
        expected = [float(part.mean()) if len(part) else None for part in parts]
    scorer, found = Scorer(file, carry=True), []
    places = [0, *sorted(cut % (len(texts) + 1) for cut in cuts), len(texts)]
    for start, stop in pairwise(places):
        found += scorer(texts[start:stop])
    near(expected, found)


def test_long_lines_run_in_parts(model, file, monkeypatch):
    """Lines of 50,000 characters among short ones: the same scores, and no call is larger than a batch."""
    sizes, run = [], file.run
    monkeypatch.setattr(
        file, "run", lambda names, points, hidden: sizes.append(points.size) or run(names, points, hidden)
    )
    texts = [USUAL, USUAL * 3_500, "h", "", "olhol" * 10_000, USUAL[:4]] * 2
    expected = [model(text).bits_per_character for text in texts]
    near(expected, Scorer(file)(texts))
    Scorer(file, carry=True)(texts)
    assert max(sizes) <= file.most == 8_192


# The log: usual lines, and three that are not.


@pytest.fixture(scope="module")
def log():
    lines = [USUAL[k % 5 :] for k in range(3_000)]
    lines[1_234] = "hello 👋 olhol."
    lines[77] = "hello hello hello"
    lines[2_999] = "ERROR 0x7f: ohlol"
    return lines


def run(*arguments, stdin=b""):
    return CliRunner().invoke(main, ["score", *map(str, arguments)], input=stdin)


def answers(*arguments, stdin=b""):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_line_in_order(golden, log, model):
    """Bits and text, divided by a tab; as many lines out as in."""
    stdin = "\n".join(log).encode()
    rows = [row.split("\t") for row in answers(golden / "files", stdin=stdin).splitlines()]
    assert [text for _, text in rows] == log
    near([model(text).bits_per_character for text in log[:100]], [float(bits) for bits, _ in rows[:100]])


def test_the_oddest_lines(golden, log):
    """The three that are not as the others, with their numbers, the oddest first."""
    stdin = "\n".join(log).encode()
    rows = [row.split("\t") for row in answers(golden / "files", "--top", 3, stdin=stdin).splitlines()]
    assert rows[0][::2] == ["3000", "ERROR 0x7f: ohlol"]
    assert {number for number, _, _ in rows} == {"3000", "1235", "78"}
    bits = [float(bits) for _, bits, _ in rows]
    assert bits == sorted(bits, reverse=True)


def test_a_line_in_the_wrong_place(golden, file):
    """What is usual by itself can be odd after what came before: only with --carry."""
    usual = ["hello 👋 ohlol. " * 2] * 20
    usual[10] = "👋 ohlol. hello " * 2
    alone, carried = Scorer(file)(usual), Scorer(file, carry=True)(usual)
    assert alone[10] < 0.2
    assert int(np.argmax(carried[1:])) + 1 == 10


def test_the_oddest_are_kept_and_nothing_else():
    """Ties by their order, lines without a score left out, in the memory of as many."""
    read = []

    def lines():
        for number, bits in enumerate([1.0, None, 3.0, 1.0, 3.0, 0.5] * 1_000, start=1):
            read.append(number)
            yield Line(number, "", {}, bits)

    found = oddest(lines(), 4)
    assert [line.number for line in found] == [3, 5, 9, 11]
    assert len(read) == 6_000
    assert [line.number for line in oddest(lines(), 10_000)][-1] == 6_000
    assert oddest(iter([]), 5) == []


def test_formats(golden, tmp_path):
    """Fields of a line are kept, the score is added; in and out, every format."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"id": 1, "line": "hello"}\n{"id": 2, "line": "h\\tl\\r\\nl"}\n{"id": 3, "line": ""}\n'
    )
    rows = [
        json.loads(row)
        for row in answers(
            golden / "files", "-i", source, "--field", "line", "--format", "jsonl"
        ).splitlines()
    ]
    assert [list(row) for row in rows] == [["id", "line", "bits_per_character"]] * 3
    assert [row["bits_per_character"] is None for row in rows] == [False, False, True]
    text = answers(golden / "files", "-i", source, "--field", "line").splitlines()
    assert text == [
        f"{rows[0]['bits_per_character']:.4f}\thello",
        f"{rows[1]['bits_per_character']:.4f}\th\tl l",
        "\t",
    ]
    out = tmp_path / "out.csv"
    assert answers(golden / "files", "-i", source, "--field", "line", "-o", out, "--top", 5) == ""
    with out.open(newline="", encoding="utf-8") as opened:
        table = list(csv.DictReader(opened))
    assert list(table[0]) == ["id", "line", "number", "bits_per_character"]
    assert [(row["id"], row["number"]) for row in table] == [("2", "2"), ("1", "1")]
    assert table[0]["line"] == "h\tl\r\nl"
    message = run(golden / "files", "-i", out, "--field", "line", "--format", "csv").stderr
    assert "has a field 'bits_per_character'" in message
    again = run(
        golden / "files", "-i", out, "--field", "line", "--format", "csv", "--prefix", "odd_"
    ).stdout_bytes
    assert again.startswith(b'id,line,number,bits_per_character,odd_bits_per_character\n2,"h\tl\r\nl",2,')


def test_arguments(golden):
    """Texts of the command line, each a line."""
    assert len(answers(golden / "files", "hello", "ohlol").splitlines()) == 2


def test_lone_surrogates_stay_in_json(golden):
    """What JSON can hold and UTF-8 cannot stays an escape."""
    row = answers(
        golden / "files", "--input-format", "jsonl", "--format", "jsonl", stdin=b'{"text": "\\ud800h"}'
    )
    assert json.loads(row)["text"] == "\ud800h"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (("hello", "h"), b"", 1, "Error: scoring needs a language model (task lm), this one is for tag"),
        (("lm", "h"), b"", 1, "holds no stream.onnx"),
        (("words", "h"), b"", 1, "reads both ways"),
        (("files", "h", "-i", "x"), b"", 2, "not both"),
        (("files", "--top", "0"), b"", 2, "--top"),
        (("files", "-i", "nothing.txt"), b"", 1, "nothing.txt"),
        (("files",), b"a\n\xff\n", 1, "stdin:2: not UTF-8"),
        (("files", "--input-format", "jsonl"), b'{"txt": 1}', 1, 'a string "text", found txt'),
        (
            ("files", "--input-format", "jsonl", "--format", "jsonl"),
            b'{"text": "h", "bits_per_character": 1}',
            1,
            "has a field 'bits_per_character'",
        ),
        (
            ("files", "--input-format", "jsonl", "--format", "csv"),
            b'{"text": "h"}\n{"text": "h", "b": 2}',
            1,
            "are not: b; use --format jsonl",
        ),
    ],
)
def test_mistakes(golden, arguments, stdin, code, message):
    """One message each; exit 1 where the work fails, 2 where the words are wrong."""
    bundle, *options = arguments
    result = run(bundle if bundle == "hello" else golden / bundle, *options, stdin=stdin)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_lines_that_cannot_be_read_keep_their_numbers(golden, tmp_path):
    """Logs hold bytes that are no text; the numbers are still those of the file."""
    lines = [USUAL.encode(), b"\xff\xfe", USUAL.encode(), b"\x80", b"ohohoho ohoho", USUAL.encode()]
    result = run(golden / "files", "--on-error", "skip", "--top", 1, stdin=b"\n".join(lines))
    assert result.exit_code == 0
    assert result.stdout.split("\t")[::2] == ["5", "ohohoho ohoho\n"]
    assert "stdin:2: not UTF-8" in result.stderr
    assert "2 line(s) could not be read" in result.stderr
    whole = run(golden / "files", "-i", "-", "-o", tmp_path / "out", stdin=b"\xff")
    assert whole.exit_code == 1
    assert "stdin:1: not UTF-8" in whole.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "number"), [("a.txt:3", 3), ("a2:3 to 5", 3), ("f.parquet: row 1,234", 1234), ("argument 2", 2)]
)
def test_the_number_of_a_line(where, number):
    """It is told from where a message says that the text stands."""
    assert number == _number(where)


def test_line_ends_of_windows(golden):
    """A log from there has the scores that it has with plain line ends, by themselves and as one text."""
    lines = [USUAL, "ohohoho", "", USUAL, "hello"]
    for options in ((), ("--carry",)):
        plain, windows = (
            answers(golden / "files", *options, stdin=end.join(lines).encode() + end.encode())
            for end in ("\n", "\r\n")
        )
        assert windows == plain


def test_dashes_and_parquet(golden):
    """`-` is stdin and stdout; what stdin cannot be is told."""
    assert answers(golden / "files", "-i", "-", "-o", "-", stdin=USUAL.encode()) == answers(
        golden / "files", USUAL
    )
    assert "Parquet needs a file" in run(golden / "files", "--input-format", "parquet").stderr


def test_empty_input(golden):
    """Nothing in, nothing out."""
    for options in ((), ("--carry",), ("--top", 3), ("--format", "csv")):
        assert answers(golden / "files", *options) == ""


def process(*arguments, **options):
    code = "from ohlol.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "score", *map(str, arguments)], **options)


def test_a_closed_pipe(golden, tmp_path):
    """`| head -1` ends it with one line on stderr."""
    (tmp_path / "in.txt").write_text((USUAL + "\n") * 50_000)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with process(golden / "files", "-i", tmp_path / "in.txt", **pipes) as running:
        running.stdout.close()
        message = running.stderr.read().decode()
    assert (running.returncode, message) == (1, "stdout was closed by its reader: stopped\n")


def test_lines_typed_by_hand_are_answered_at_once(golden):
    """At a terminal, each line before the next one is read."""
    above, below = pty.openpty()
    pipes = {"stdin": below, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with process(golden / "files", "--carry", **pipes) as running:
        os.close(below)
        for text in ("hello", "ohlol"):
            os.write(above, f"{text}\n".encode())
            assert select.select([running.stdout], [], [], 60)[0]
            assert running.stdout.readline().decode().split("\t")[1] == f"{text}\n"
        os.write(above, b"\x04")
        assert running.stdout.read() == b""
    os.close(above)
    assert running.returncode == 0


def test_only_language_models_score():
    """The message says what the model is for."""
    with pytest.raises(InputError, match="this one is for tag"):
        Scorer(load("hello"))

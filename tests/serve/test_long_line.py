"""A line in parts: the answers are those of the same line read whole."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.cli import main
from ohlol.serve import blocks, cut, long_line, runner
from ohlol.serve.answers import TagAnswers
from ohlol.serve.long_line import Answering, Joined
from ohlol.serve.results import Labels, Tagged, line
from ohlol.serve.rows import Rows


@pytest.fixture
def short(monkeypatch):
    """Blocks, parts and pieces so small that a line of a few hundred characters is a long one."""
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(long_line, "PART", 64)
    for name, value in (("LONG", 64), ("STRETCH", 32), ("CONTEXT", 16)):
        monkeypatch.setattr(runner, name, value)


def answer(bundle, text, *options, code=0):
    result = CliRunner().invoke(main, ["predict", str(bundle), *options], input=text.encode())
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def in_parts(model, text, cut=7, **look):
    """The line of a text that comes in parts of `cut` characters."""
    parts = (text[k : k + cut] for k in range(0, len(text), cut))
    return "".join(Answering(model, **look).lines(parts))


BUNDLES = [
    ("hello", "labels"),
    ("files", "labels"),
    ("words", "labels"),
    ("words", "words"),
    ("words", "sentences"),
    ("lm", "labels"),
]
TEXT = "xin chào bạn. đi New York nhé. hello 👋 ohlol  "


@pytest.mark.parametrize(("bundle", "as_"), BUNDLES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 95, 96, 97, 160, 161, 700])
def test_parts_answer_as_the_whole(short, golden, bundle, as_, length):
    """One way with the state carried, both ways and without stream.onnx in windows: as the runner reads it at once."""
    model = ohlol.load(bundle if bundle == "hello" else golden / bundle)
    text = (TEXT * 20)[:length]
    whole = model([text])[0]
    if model.manifest.task == "lm":
        bits, following = in_parts(model, text).rstrip("\n").split("\t")
        assert bits == "" if length == 1 else float(bits) == pytest.approx(whole.bits_per_character, abs=1e-3)
        assert following == str(whole).split("\t")[1]
    else:
        assert in_parts(model, text, as_=as_) == line(whole, as_=as_) + "\n"


@given(
    labels=st.lists(st.sampled_from("BISO"), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 9), max_size=12),
    as_=st.sampled_from(["labels", "words", "sentences"]),
)
def test_words_and_sentences_over_cuts(labels, cuts, as_):
    """A cut inside a word, between two, or among what is outside: the line is that of the whole."""
    names = Labels(("B", "I", "O", "S"), "words")
    ids = np.array(["BIOS".index(label) for label in labels], dtype=np.int32)
    text = "".join(chr(ord("a") + k % 26) if k % 5 else "\t" for k in range(len(ids)))
    joined, made, begin = Joined(names, as_), "", 0
    for size in [*cuts, len(ids)]:
        end = min(begin + size, len(ids))
        if begin < end:
            made += joined.part(_answers(text[begin:end], ids[begin:end], names))
        begin = end
    assert made == line(Tagged(text, ids, np.zeros((0, 4)), names), as_=as_)


def _answers(text, ids, names):
    answers = object.__new__(TagAnswers)
    points = np.array([*map(ord, text), 10], dtype=np.int32)
    answers.rows = Rows(points, np.array([0]), np.array([len(text)]))
    answers.label_ids = np.append(ids, np.int32(-1))
    answers.labels = names
    return answers


@pytest.mark.parametrize("skip", [(), ("--on-error", "skip")])
def test_lines_before_and_after(short, golden, skip):
    """Long and short lines mixed, with CRLF and a mark at the cut: each is one line of the output, in order."""
    texts = ["hello", "he\u0301" * 200, "", "x" * 63, "x" * 64, "x" * 65, "hello" * 100, "oleh"]
    for bundle in ("hello", golden / "files"):
        model = ohlol.load(bundle)
        out = answer(bundle, "".join(text + "\r\n" for text in texts), *skip).split("\n")[:-1]
        if model.manifest.task == "tag":
            assert out == [str(result) for result in model(texts)]
        else:
            assert [row.split("\t")[1] for row in out] == [str(r).split("\t")[1] for r in model(texts)]


def test_a_label_of_several_characters(short):
    """The separator stands between the labels of two parts too."""
    joined = Joined(Labels(("ab", "c")), "labels")
    names = Labels(("ab", "c"))
    made = "".join(joined.part(_answers("xy", np.array([0, 1], dtype=np.int32), names)) for _ in range(3))
    assert made == "ab c ab c ab c"


def test_a_long_line_that_cannot_be_read(short, tmp_path):
    """Nothing of it is answered where it can be left out; else the run stops, and no file is left."""
    bad = b"hello\n" + b"x" * 500 + b"\xff\nhello\n"
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bad)
    run = CliRunner().invoke(
        main, ["predict", "hello", "-i", str(source), "-o", str(out), "--on-error", "skip"]
    )
    assert (run.exit_code, out.read_text()) == (0, "ohlol\nohlol\n")
    assert f"{source}:2: not UTF-8: byte 0xff at column 501" in run.stderr
    out.unlink()
    run = CliRunner().invoke(main, ["predict", "hello", "-i", str(source), "-o", str(out)])
    assert (run.exit_code, [path.name for path in tmp_path.iterdir()]) == (1, ["in"])


@pytest.mark.parametrize("form", ["NFC", "none"])
def test_a_line_of_marks_takes_no_more_than_its_length(monkeypatch, form):
    """Each character is looked at a few times, however the pieces fall; beyond 4,096 in a row the line is refused by name."""
    looked = 0

    def counting(character):
        nonlocal looked
        looked += 1
        return begins(character)

    begins = cut.begins
    monkeypatch.setattr(cut, "begins", counting)
    pieces = 400
    alphabet = Alphabet("e", form)
    good = [("e" + "\u0301" * 999).encode()] * pieces
    assert pieces * len(alphabet.normalise("e" + "\u0301" * 999)) == sum(
        map(len, long_line.parts_of(iter([*good, b"\r\n"]), alphabet, "in:7"))
    )
    marks = ["\u0301".encode() * 1_000] * pieces
    if form == "none":  # nothing joins, so nothing is held
        parts = list(long_line.parts_of(iter(marks), alphabet, "in:7"))
        assert [1_000] * pieces == [len(part) for part in parts if part]
    else:
        with pytest.raises(InputError, match=r"^in:7: 5,000 combining characters in a row.*--on-error skip"):
            list(long_line.parts_of(iter(marks), alphabet, "in:7"))
    assert looked < 2 * 1_000 * pieces


@pytest.mark.parametrize("skip", [False, True])
def test_a_long_line_of_marks(short, tmp_path, skip):
    """By the command: one message with its line, or the other lines answered."""
    source = tmp_path / "in.txt"
    source.write_text("hello\n" + "e" + "\u0301" * 9_000 + "\nhello\n")
    options = ["--on-error", "skip"] if skip else []
    run = CliRunner().invoke(main, ["predict", "hello", "-i", str(source), *options])
    assert (run.exit_code, run.stdout.count("ohlol\n")) == ((0, 2) if skip else (1, 1))
    assert re.search(rf"{re.escape(str(source))}:2: 4,\d\d\d combining characters in a row", run.stderr)
    assert run.stderr.count("\n") == 1 + skip


def test_max_length(short, golden):
    """Text that is too long is refused with its line, both lengths and what to do; never cut."""
    text = "hello\n" + "x" * 500 + "\nhello\n"
    message = answer("hello", text, "--max-length", "100", code=1)
    assert message == (
        "Error: stdin:2: a text of 500 characters, expected at most 100; cut it into shorter ones, or leave such texts "
        "out with --on-error skip\n"
    )
    assert answer("hello", text, "--max-length", "100", "--on-error", "skip") == "ohlol\nohlol\n"
    assert answer("hello", "e\u0301" * 50, "--max-length", "50") == answer("hello", "é" * 50)
    message = answer("hello", '{"text": "hello"}', "--max-length", "4", "--input-format", "jsonl", code=1)
    assert "stdin:1: a text of 5 characters" in message


def test_a_classifier_that_reads_both_ways(golden):
    """What it can only read whole has a limit of its own, which is told, and can be left out."""
    text = "Rossi\n" + "x" * 70_000 + "\n田中\n"
    assert "stdin:2: a text of 70,000 characters, expected at most 65,536" in answer(
        golden / "classify", text, code=1
    )
    assert answer(golden / "classify", text, "--on-error", "skip") == "it\nja\n"
    huge = "x" * 1_500_000 + "\nRossi\n"
    assert answer(golden / "classify", huge, "--on-error", "skip") == "it\n"


def test_windows_are_told_of(golden):
    """Once, with the line and the margin; a network that reads one way has nothing to tell."""
    text = "hi\n" + "x" * 9_000 + "\n" + "x" * 9_000 + "\n"
    run = CliRunner().invoke(main, ["predict", str(golden / "words")], input=text.encode())
    assert run.stderr.count("note:") == 1
    assert (
        "note: stdin:2: a text of 9,000 characters is read 4,096 characters at a time, with 256 more"
        in run.stderr
    )
    run = CliRunner().invoke(main, ["predict", "hello"], input=text.encode())
    assert run.stderr == ""


@pytest.mark.parametrize(("bundle", "as_"), BUNDLES)
def test_no_more_than_a_part_is_held(short, golden, monkeypatch, tmp_path, bundle, as_):
    """However long a line is, what is read, answered and written at a time is no longer than a part and its context."""
    held = []

    class Watched(Rows):
        def __init__(self, points, *rest):
            held.append(len(points))
            super().__init__(points, *rest)

    monkeypatch.setattr(long_line, "Rows", Watched)
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_text(TEXT * 100)
    model = bundle if bundle == "hello" else str(golden / bundle)
    run = CliRunner().invoke(main, ["predict", model, "-i", str(source), "-o", str(out), "--as", as_])
    assert (run.exit_code, out.read_text().count("\n")) == (0, 1)
    assert len(held) > 100
    assert max(held) <= 64 + 3 * 32

"""`ohlol predict --follow`: a pipe that never ends, each line answered as soon as it is there."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.cli import main
from ohlol.serve import blocks
from ohlol.serve.blocks import Blocks, Place
from ohlol.serve.inputs import opened
from ohlol.serve.readers import windows
from ohlol.serve.windows import Reading

CODE = "from ohlol.cli import main; main()"


def follow(*arguments, model="hello"):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "predict", model, "--follow", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


@pytest.mark.parametrize("first", [b"\n", b"h\n", b"he\n", b"\xef\xbb\xbfh\n", b"\xef\xbb\xbf\n"])
def test_a_short_first_line(first):
    """Looking for a byte order mark keeps no line waiting."""
    with follow() as process:
        process.stdin.write(first)
        assert len(process.stdout.readline().decode()) == len(first.decode("utf-8-sig"))
        process.stdin.close()


def test_each_line_is_answered_before_the_next_comes():
    """A conversation: nothing waits for a block to be full, nor for another line."""
    with follow() as process:
        for line, answer in [
            (b"h\n", b"o\n"),
            (b"hello\n", b"ohlol\n"),
            (b"\n", b"\n"),
            (b"he\r\n", b"oh\n"),
        ]:
            process.stdin.write(line)
            assert process.stdout.readline() == answer
        process.stdin.write(b"hel")  # a part of a line waits for the rest
        process.stdin.write(b"lo\nhello\nhe")
        assert [process.stdout.readline() for _ in range(2)] == [b"ohlol\n", b"ohlol\n"]
        process.stdin.close()
        assert process.stdout.read() == b"oh\n"  # the end is a line's end
    assert (process.returncode, process.stderr.read() if not process.stderr.closed else b"") == (0, b"")


@pytest.mark.parametrize(
    ("form", "lines", "answers"),
    [
        ("jsonl", [b'{"text": "hello"}\n'] * 2, [b'{"text": "hello", "labels": ["o", "h", "l", "o", "l"]}\n'] * 2),
        ("csv", [b'n,text\n1,"hello"\n', b'2,"he\nl', b'lo"\n'], [b"n,text,labels\n1,hello,ohlol\n", b"", b'2,"he\nllo",ohloll\n']),
    ],
)  # fmt: skip
def test_other_formats(form, lines, answers):
    """Objects and records too; a record of several lines waits for its last."""
    with follow("--input-format", form, "--format", form) as process:
        for line, answer in zip(lines, answers, strict=True):
            process.stdin.write(line)
            got = b"".join(process.stdout.readline() for _ in range(answer.count(b"\n")))
            if form == "csv":
                assert got == answer
            else:
                assert json.loads(got) == json.loads(answer)
        process.stdin.close()
        assert process.stdout.read() == b""


def test_a_named_pipe_whose_writers_come_and_go(tmp_path):
    """The reader waits for the next one, loses nothing between two, and ends by SIGTERM, which is no failure."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with follow("-i", pipe) as process:
        for line in ("hello\n", "hello", "hello\nhello\n"):  # a writer that goes ends its line
            pipe.write_text(line)
            for _ in range(max(1, line.count("\n"))):
                assert process.stdout.readline() == b"ohlol\n"
        process.send_signal(signal.SIGTERM)
        out, message = process.communicate()
    assert (process.returncode, out, message) == (0, b"", b"")


def test_a_line_that_cannot_be_read_is_left_out():
    """The others go on being answered."""
    with follow("--on-error", "skip") as process:
        process.stdin.write(b"hello\n\xff\nhello\n")
        assert [process.stdout.readline() for _ in range(2)] == [b"ohlol\n"] * 2
        assert b"stdin:2: not UTF-8" in process.stderr.readline()
        process.stdin.close()


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
@pytest.mark.parametrize("before", [b"text\n", b""])
def test_a_line_without_an_end(monkeypatch, form, before):
    """Memory is bounded: it is refused by name, once more than the limit of it is there."""
    given = 0

    class Endless:
        def read(self, size):
            nonlocal given
            data = before[given : given + size] or b"x" * min(size, 1_000)
            given += len(data)
            return data

    monkeypatch.setattr(blocks, "LONGEST", 10_000)
    seen = []
    how = Reading("in", form, Alphabet("x"), lambda error: seen.append(str(error)))
    line = 1 + len(before.splitlines())
    with pytest.raises(InputError, match=f"^in:{line}: no line's end in "):
        for _ in windows(Blocks(Endless(), arriving=True, name="in"), how):
            pass
    assert given < 10_000 + 2_000 + len(before)


def test_a_record_without_an_end(monkeypatch):
    """A quote that nobody closes: its field is no longer than a line may be, and what follows is read again."""
    monkeypatch.setattr(blocks, "LONGEST", 10_000)
    rest = [b"text\nhello\n", b'"', *[b"xxxx\n"] * 3_000, b""]
    file = SimpleNamespace(read=lambda size: rest.pop(0) if rest else b"")
    seen = []
    how = Reading("in", "csv", Alphabet("x"), lambda error: seen.append(str(error)))
    read = [
        text
        for window in windows(Blocks(file, arriving=True, name="in"), how)
        for text in window.rows.texts()
    ]
    assert read[0] == "hello"
    assert "in:3 to " in seen[0]
    assert "not CSV: field larger than field limit (10000)" in seen[0]


@pytest.mark.parametrize("arriving", [True, False])
def test_a_pipe_that_does_not_wait(monkeypatch, arriving):
    """`O_NONBLOCK`, as Node and some shells leave it: waited for, and not taken for an error or an end."""
    reading, writing = os.pipe()

    class Shy(io.FileIO):
        turns = 0

        def read(self, size=-1):
            self.turns += 1
            return super().read(size) if self.turns % 2 == 0 else None

        raw = property(lambda self: self)

    with Shy(reading) as given:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=given))
        os.write(writing, b"hello\nhe\n")
        os.close(writing)
        how = Reading("stdin", "text", Alphabet("helo"), pytest.fail)
        with opened((), None, how, follow=arriving) as found:
            read = [text for window in found.read(Place()) for text in window.rows.texts()]
    assert read == ["hello", "he"]


def test_a_conversation_over_a_pipe_that_does_not_wait():
    """The real thing: the reader's end is set so by another process, before anything is there."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [sys.executable, "-c", CODE, "predict", "hello", "--follow"]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, bufsize=0) as process:
        os.close(reading)
        try:
            for _ in range(3):
                os.write(writing, b"hello\n")
                assert process.stdout.readline() == b"ohlol\n"
        finally:
            os.close(writing)
    assert process.returncode == 0


def test_a_reader_that_goes_away():
    """One line on stderr, exit code 1, as without --follow."""
    with follow() as process:
        process.stdout.close()
        process.stdin.write(b"hello\n")
        message = process.stderr.read()
    assert (process.returncode, message) == (1, b"stdout was closed by its reader: stopped\n")


def test_what_is_no_pipe(tmp_path):
    """A file that grows is for `tail -f`; an output that is there only at the end never is."""
    (tmp_path / "in.txt").write_text("hello\n")
    for arguments, message in (
        (["-i", str(tmp_path / "in.txt")], "tail -f FILE"),
        (["hello"], "--follow reads a pipe"),
        (["-o", str(tmp_path / "out.txt")], "write > FILE"),
    ):
        run = CliRunner().invoke(main, ["predict", "hello", "--follow", *arguments])
        assert (run.exit_code, message in run.stderr) == (2, True)

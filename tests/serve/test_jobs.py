"""Runs from file to file: interrupted anywhere and gone on with, to the same bytes; never two at once; OUT whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

import ohlol
from ohlol.artifacts.errors import InputError
from ohlol.cli import main
from ohlol.serve import blocks, jobs, long_line, model, output
from ohlol.serve.jobs import Options, Tally, Watch, predict
from ohlol.serve.progress import status

WORDS = ("hello", "oleh", "", "he\u0301llo", "lol " * 9, "x" * 90, "héllo 👋")
FORMS = ["text", "jsonl", "csv", "tsv", *(["parquet"] if find_spec("pyarrow") else [])]
SUFFIX = {"text": ".txt", "jsonl": ".jsonl", "csv": ".csv", "tsv": ".tsv", "parquet": ".parquet"}


def texts(count, seed=0):
    draw = random.Random(seed)
    return [draw.choice(WORDS) for _ in range(count)]


def write_input(path, form, count=36):
    """A file of a form, with a line that cannot be read in the middle."""
    rows = texts(count)
    if form == "text":
        lines = [row.encode() + b"\n" for row in rows]
        lines.insert(count // 2, b"\xff\n")
        data = b"".join(lines)
    elif form == "jsonl":
        lines = [json.dumps({"n": k, "text": row}) + "\n" for k, row in enumerate(rows)]
        lines.insert(count // 2, "{\n")
        data = "".join(lines).encode()
    elif form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        cells = [row.encode() for row in rows]
        cells[3], cells[count // 2] = None, b"\xff"
        column = pa.array(cells, pa.binary()).view(pa.string())
        pq.write_table(pa.table({"n": range(count), "text": column}), path, row_group_size=15)
        return
    else:
        comma = "," if form == "csv" else "\t"
        lines = [f'{k}{comma}"{row}\n{row}"\n' for k, row in enumerate(rows)]
        lines.insert(count // 2, "1\n")
        data = f"n{comma}text\n{''.join(lines)}".encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def short(monkeypatch):
    """Windows of a few lines, a place to go on from after each second, and no waiting for a disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(long_line, "PART", 64)
    monkeypatch.setattr(jobs, "EVERY", 2)
    if find_spec("pyarrow"):
        from ohlol.serve import parquet

        monkeypatch.setattr(parquet, "WINDOW_CHARACTERS", 60)


@pytest.fixture(scope="module")
def hello():
    return ohlol.load("hello")


class Notes(Watch):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it, and nothing is cleaned up after it."""


def killed_at(step, monkeypatch, run):
    """Run until the `step`-th time that anything is put on the disk; whether it ended before."""
    done = 0

    def counting(original):
        def counted(*arguments, **options):
            nonlocal done
            done += 1
            if done > step:
                raise Killed
            return original(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, counting(getattr(os, name)))
        patch.setattr(output.Path, "replace", counting(output.Path.replace))
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with suppress(Killed):
            run()
            return True
    return False


@pytest.mark.parametrize(
    ("form", "to"),
    [
        (form, SUFFIX[form] + packed)
        for form in FORMS
        for packed in (("", ".gz") if form != "parquet" else ("",))
    ]
    + [("text", ".jsonl"), ("jsonl", ".csv"), ("csv", ".txt")],
)
def test_killed_at_every_step(short, hello, monkeypatch, tmp_path, form, to):
    """Whatever a run had put on the disk when it was killed, the next goes on to the same bytes, and cleans up."""
    source = tmp_path / f"in{SUFFIX[form]}{'.gz' if to.endswith('.gz') else ''}"
    write_input(source, form)
    options = Options(skip=True)
    whole = tmp_path / f"whole{to}"
    expected = predict(hello, source=source, output=whole, options=options)
    assert expected.skipped == 1
    steps = 0
    for step in range(1_000):
        out = tmp_path / f"out{to}"
        out.write_text("old")

        def run(out=out):
            predict(hello, source=source, output=out, options=options)

        ended = killed_at(step, monkeypatch, run)
        watch = Notes()
        before = out.read_bytes()
        assert before in (b"old", whole.read_bytes())  # whole or not at all
        tally = predict(hello, source=source, output=out, options=options, resume=True, watch=watch)
        assert out.read_bytes() == whole.read_bytes()
        assert tally.skipped == 1 or before != b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, whole.name, out.name])
        steps = step
        if ended:
            break
    assert steps > 8  # several places were gone on from


def test_a_long_line_that_was_skipped_is_counted_once(short, hello, monkeypatch, tmp_path):
    """Wherever a run is gone on from, what it left out before is in its tally, and in the journal."""
    monkeypatch.setattr(jobs, "EVERY", 1)
    source = tmp_path / "in.txt"
    good, bad = b"x" * 200 + b"\n", b"x" * 100 + b"\xff\n"
    source.write_bytes(good + bad + good * 3 + bad)
    options = Options(skip=True)
    found = []
    for step in range(1_000):
        out = tmp_path / f"{step}.txt"

        def run(out=out):
            found.append(predict(hello, source=source, output=out, options=options, resume=True))

        if killed_at(step, monkeypatch, run):
            break
        if not out.exists():
            run()
    assert step > 8
    assert {2} == {tally.skipped for tally in found}


def test_killed_many_times_in_a_row(short, hello, monkeypatch, tmp_path):
    """Each run gets a little further; at the end no line is lost or doubled."""
    source, out, whole = tmp_path / "in.txt", tmp_path / "out.txt", tmp_path / "whole.txt"
    write_input(source, "text", 200)
    predict(hello, source=source, output=whole, options=Options(skip=True))
    runs = 0
    while not killed_at(
        7,
        monkeypatch,
        lambda: predict(hello, source=source, output=out, options=Options(skip=True), resume=True),
    ):
        runs += 1
        assert runs < 100
    assert runs > 3
    assert out.read_bytes() == whole.read_bytes()


SLOW = """
import sys, time
from pathlib import Path
import ohlol
from ohlol.serve import blocks, jobs, writers
blocks.BLOCK, jobs.EVERY = 2_000, 1
write = writers.TextWriter.window
def slow(self, *given):
    write(self, *given)
    print("window", flush=True)
    sys.stdin.readline()
writers.TextWriter.window = slow
from ohlol.cli import main
main(["predict", "hello", "-i", sys.argv[1], "-o", sys.argv[2], *sys.argv[3:]])
"""


def started(source, out, *options):
    """A run that says when it has written a window, and waits for a line before it goes on; or for stdin's end."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(source), str(out), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def led(process, windows):
    """Let it write so many windows, and wait after the next."""
    for _ in range(windows):
        assert process.stdout.readline() == b"window\n"
        process.stdin.write(b"\n")
        process.stdin.flush()


@pytest.mark.parametrize("windows", [0, 1, 3, 9])
def test_sigkill(tmp_path, windows):
    """A process killed after so many windows; the next one ends it."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(text + "\n" for text in texts(3_000)))
    with started(source, out) as process:
        led(process, windows)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    with started(source, out, "--resume") as process:
        process.communicate()
    assert process.returncode == 0
    assert out.read_text().count("\n") == 3_000
    assert [len(line) for line in out.read_text().split("\n")] == [
        len(text) - text.count("\u0301") for text in [*texts(3_000), ""]
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c(tmp_path, number):
    """One line that says how to go on, exit code 1, the old file untouched."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(text + "\n" for text in texts(20_000)))
    out.write_text("old")
    with started(source, out) as process:
        led(process, 3)
        process.send_signal(number)
        _, message = process.communicate()
    assert (process.returncode, out.read_text()) == (1, "old")
    assert (
        message.decode()
        == f"stopped; what is done is kept: the same command with --resume goes on to {out}\n"
    )


def interrupted(hello, tmp_path, monkeypatch, **options):
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    write_input(source, "text")
    assert not killed_at(
        9,
        monkeypatch,
        lambda: predict(hello, source=source, output=out, options=Options(skip=True, **options)),
    )
    return source, out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda source: source.write_bytes(source.read_bytes() + b"x\n"), "the input is not what"),
        (lambda source: os.utime(source, (1, 1)), "the input is not what"),
        ({"probabilities": True}, "probabilities was False, now it is True"),
        ({"max_length": 9}, "max_length was None, now it is 9"),
        ({"format": "jsonl"}, "format was 'text', now it is 'jsonl'"),
    ],
)
def test_nothing_is_gone_on_with_that_has_changed(short, hello, tmp_path, monkeypatch, change, message):
    """Another input or other options would make a file that is half of each: refused, and what is kept stays."""
    source, out = interrupted(hello, tmp_path, monkeypatch)
    options = Options(skip=True, **(change if isinstance(change, dict) else {}))
    if callable(change):
        change(source)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            predict(hello, source=source, output=out, options=options, resume=True)
    assert jobs.kept(out)
    watch = Notes()
    predict(hello, source=source, output=out, options=options, watch=watch)
    assert "--resume would have gone on" in watch.notes[0]
    assert not jobs.kept(out)


def test_what_is_kept_stays_where_a_command_is_wrong(short, hello, tmp_path, monkeypatch):
    """Other options, or an input that is not there: hours of work are not dropped for it."""
    source, out = interrupted(hello, tmp_path, monkeypatch)
    for arguments in (["-i", str(source), "--resume", "--probabilities"], ["-i", str(tmp_path / "inn.txt")]):
        run = CliRunner().invoke(main, ["predict", "hello", "-o", str(out), *arguments])
        assert (run.exit_code, "goes on to" in run.stderr, jobs.kept(out)) == (1, False, True)


def test_another_model_does_not_go_on(short, hello, golden, tmp_path, monkeypatch):
    source, out = interrupted(hello, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="the model is not what"):
        predict(
            ohlol.load(golden / "words"), source=source, output=out, options=Options(skip=True), resume=True
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "journal.json").write_text("{"), "journal.json: damaged"),
        (
            lambda folder: (folder / "journal.json").write_text('{"facts": 1, "x": 2}'),
            "journal.json: damaged",
        ),
        (lambda folder: (folder / "journal.json").write_text("[]"), "journal.json: damaged"),
        (lambda folder: (folder / "output").write_text(""), "output: shorter than its journal says"),
        (lambda folder: (folder / "output").unlink(), "output: shorter than its journal says"),
    ],
)
def test_a_damaged_journal(short, hello, tmp_path, monkeypatch, damage, message):
    """One message; starting anew is always possible."""
    source, out = interrupted(hello, tmp_path, monkeypatch)
    damage(tmp_path / ".out.txt.ohlol-part")
    with pytest.raises(InputError, match=message):
        predict(hello, source=source, output=out, options=Options(skip=True), resume=True)
    assert predict(hello, source=source, output=out, options=Options(skip=True)).skipped == 1


def test_a_bad_line_loses_nothing_that_is_done(short, tmp_path):
    """A run that stops there is gone on with past it: --on-error may change."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    write_input(source, "text")
    arguments = ["predict", "hello", "-i", str(source), "-o", str(out)]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1
    assert f"{source}:19: not UTF-8" in run.stderr
    assert f"the same command with --resume --on-error skip goes on to {out}" in run.stderr
    assert not out.exists()
    run = CliRunner().invoke(main, [*arguments, "--resume", "--on-error", "skip"])
    assert (run.exit_code, out.read_text().count("\n")) == (0, 36)
    assert "going on after line " in run.stderr


def test_an_output_that_was_removed_is_made_anew(short, hello, tmp_path, monkeypatch):
    """Killed after OUT had its name and before the journal went; OUT was removed then: no success without a file."""
    source, out, watch = tmp_path / "in.txt", tmp_path / "out.txt", Notes()
    write_input(source, "text")
    options = Options(skip=True)
    expected = predict(hello, source=source, output=out, options=options)
    whole = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        predict(hello, source=source, output=out, options=options)
    assert jobs.kept(out)
    out.unlink()
    assert expected == predict(hello, source=source, output=out, options=options, resume=True, watch=watch)
    assert whole == out.read_bytes()
    assert "begun from the start" in watch.notes[0]
    assert not jobs.kept(out)


def test_two_runs_never_write_one_file(hello, tmp_path):
    """The second is told so, and spoils nothing; the lock goes with the process that holds it."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("hello\n")
    with output.beside(out) as made:
        (made.folder / "output").write_text("first")
        with pytest.raises(InputError, match="another run is writing it"):
            predict(hello, source=source, output=out)
        assert (made.folder / "output").read_text() == "first"
    predict(hello, source=source, output=out)
    assert out.read_text() == "ohlol\n"


def test_resume_without_an_interrupted_run(hello, tmp_path):
    """Begun from the start, which is said; so a script may always resume."""
    source, out, watch = tmp_path / "in.txt", tmp_path / "out.txt", Notes()
    source.write_text("hello\n")
    predict(hello, source=source, output=out, resume=True, watch=watch)
    assert (out.read_text(), len(watch.notes)) == ("ohlol\n", 1)
    assert "begun from the start" in watch.notes[0]


def test_resume_is_from_file_to_file(tmp_path):
    """A pipe cannot be read again: said before anything is done."""
    (tmp_path / "in").write_text("hello\n")
    for arguments in (
        ["-i", str(tmp_path / "in")],
        ["-o", str(tmp_path / "out")],
        ["hello"],
        ["-i", "-", "-o", "x"],
    ):
        run = CliRunner().invoke(main, ["predict", "hello", "--resume", *arguments])
        assert (run.exit_code, "--resume goes from" in run.stderr) == (2, True)


def test_gzip_of_a_run_is_gzip(short, hello, tmp_path):
    """Read by others as one file, an empty one too; the same bytes at every run."""
    source, out = tmp_path / "in.txt.gz", tmp_path / "out.txt.gz"
    for lines in (0, 500):
        source.write_bytes(gzip.compress(b"hello\n" * lines))
        written = []
        for _ in range(2):
            predict(hello, source=source, output=out)
            written.append(out.read_bytes())
        assert gzip.decompress(written[0]) == b"ohlol\n" * lines
        assert written[0] == written[1]


def test_a_tally(short, hello, tmp_path):
    """Texts and characters as they are answered: normalised, in parts or not."""
    source = tmp_path / "in.txt"
    source.write_text("he\u0301llo\n\n" + "x" * 500 + "\n")
    assert predict(hello, source=source, output=tmp_path / "out") == Tally(3, 505, 0)


def test_the_line_of_progress():
    """Part, rates and time left; of a run that went on, of what is left to it."""
    tally = Tally(1_000, 50_000, 0)
    assert status(0.5, 0.0, tally, 10.0) == " 50%  5,000 characters/s  100 lines/s  0:10 left"
    assert status(0.5, 0.25, tally, 3600.0).endswith("2:00:00 left")
    assert status(0.25, 0.25, tally, 1.0) == " 25%  50,000 characters/s  1,000 lines/s"
    assert status(None, None, tally, 1.0) == "1,000 texts  50,000 characters/s  1,000 lines/s"


def test_progress_is_asked_for_or_on_a_terminal(tmp_path):
    """Scripts that read stderr see nothing new."""
    source = tmp_path / "in.txt"
    source.write_text("hello\n")
    run = CliRunner().invoke(main, ["predict", "hello", "-i", str(source)])
    assert (run.stdout, run.stderr) == ("ohlol\n", "")
    run = CliRunner().invoke(main, ["predict", "hello", "-i", str(source), "--progress"])
    assert run.stderr.startswith("1 texts, 5 characters in ")


def test_windows_are_bounded():
    """A window of the file readers is as long as the model's own."""
    assert blocks.BLOCK == long_line.PART == model.WINDOW_CHARACTERS


def test_another_single_file_does_not_go_on(short, golden, tmp_path, monkeypatch):
    """Nothing inside a single file tells its weights; its bytes do."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("hello ohlol hello\n" * 4_000)
    copies = [tmp_path / name for name in ("one.onnx", "two.onnx")]
    for copy, name in zip(copies, ("model.onnx", "model.int8.onnx"), strict=True):
        copy.write_bytes((golden / "files" / name).read_bytes())
    one, two = map(ohlol.load, copies)
    assert one.digest == ohlol.load(copies[0]).digest
    assert one.digest != two.digest

    class Killed(BaseException):
        pass

    saved = output.Beside.save

    def save(self, journal):
        saved(self, journal)
        raise Killed

    monkeypatch.setattr(output.Beside, "save", save)
    with pytest.raises(Killed):
        predict(one, source=source, output=out)
    monkeypatch.setattr(output.Beside, "save", saved)
    with pytest.raises(InputError, match="the model is not what the interrupted run had"):
        predict(two, source=source, output=out, resume=True)


def test_an_input_that_changes_while_it_is_read(short, hello, tmp_path):
    """The answers of a part of it would look like those of the whole; a log may grow, which is told."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("hello\n" * 4_000)

    class Changing(Watch):
        notes, size = (), 12_000

        def note(self, message):
            self.notes += (message,)

        def advance(self, part, tally):
            if tally.texts:
                os.truncate(source, self.size)

    with pytest.raises(InputError, match=r"in\.txt: was cut while it was read, to 12,000 bytes"):
        predict(hello, source=source, output=out, watch=Changing())
    assert not out.exists()
    source.write_text("hello\n" * 4_000)
    growing = Changing()
    growing.size = 24_001
    predict(hello, source=source, output=out, watch=growing)
    assert out.read_text().startswith("ohlol\n" * 4_000)
    assert (
        growing.notes[-1]
        == f"note: {source} changed while it was read; the answers are of what was there then"
    )


def test_the_input_is_not_replaced(hello, tmp_path):
    """`-o` on the file that is read, by whatever name, would leave nothing to answer again."""
    source = tmp_path / "in.txt"
    source.write_text("hello\n")
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link"):
        with pytest.raises(InputError, match="is the input too"):
            predict(hello, source=source, output=out)
    assert source.read_text() == "hello\n"

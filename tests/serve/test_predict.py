"""`ohlol predict`: arguments, stdin and files in, answers out, every mistake one message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ohlol.artifacts.bundle import shipped
from ohlol.cli import main


def predict(*arguments, stdin=b""):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], input=stdin)


def answers(*arguments, stdin=b""):
    result = predict(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments, stdin=b"", code=1):
    """The message of a run that fails; no traceback, and one line but for the usage."""
    result = predict(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr


def test_arguments():
    """One line for each, in their order."""
    assert answers("hello", "hello", "l", "hello").splitlines()[::2] == ["ohlol", "ohlol"]


def test_stdin_keeps_every_line():
    """Lines in, lines out: empty ones, CRLF, U+2028 inside a line, no newline at the end."""
    out = answers("hello", stdin="hello\n\nhello\r\nhel\u2028lo\n\nhello".encode())
    assert [len(line) for line in out.split("\n")] == [5, 0, 5, 6, 0, 5, 0]
    assert out.split("\n")[0] == out.split("\n")[5] == "ohlol"


def test_order_is_kept_over_many_lines(tmp_path):
    """Texts of like length share batches inside; outside nothing moves."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    lines = ["hello"[: n % 6] * (n % 17) for n in range(5_000)]
    source.write_text("\n".join(lines) + "\n")
    assert answers("hello", "-i", source, "-o", out) == ""
    assert [len(line) for line in out.read_text().splitlines()] == [len(line) for line in lines]


def test_jsonl_keeps_the_other_fields(tmp_path):
    """An answer is added to each object; which field is the text can be said."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "name": "hello"}\n\n{"name": "", "id": 2}\n')
    rows = [
        json.loads(line)
        for line in answers("hello", "-i", source, "--field", "name", "--format", "jsonl").splitlines()
    ]
    assert rows == [{"id": 1, "name": "hello", "labels": list("ohlol")}, {"id": 2, "name": "", "labels": []}]


def test_csv_in_and_out(tmp_path, golden):
    """Quoted commas and newlines survive; columns are kept and the answers added."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,text,note\n1,Rossi,"a, b"\n2,田中,"two\nlines"\n', encoding="utf-8")
    answers(golden / "classify", "-i", source, "-o", out, "--probabilities")
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [(r["id"], r["text"], r["note"], r["label"]) for r in rows] == [
        ("1", "Rossi", "a, b", "it"),
        ("2", "田中", "two\nlines", "ja"),
    ]
    assert float(rows[0]["probability"]) == max(json.loads(rows[0]["probabilities"]).values())


def test_words(golden):
    """Words are divided by tabs, since Vietnamese words hold spaces; sentences likewise."""
    words = golden / "words"
    assert answers(words, "xin chào bạn. đi nhé", "--as", "words") == "xin chào\tbạn\t.\tđi\tnhé\n"
    assert answers(words, "xin chào bạn. đi nhé", "--as", "sentences") == "xin chào bạn.\tđi nhé\n"
    row = json.loads(answers(words, "xin chào", "--as", "words", "--format", "jsonl"))
    assert row == {"text": "xin chào", "words": ["xin chào"], "spans": [[0, 8]]}
    assert "do not mark words" in refused("hello", "hello", "--as", "words", code=2)


def test_probabilities(golden):
    """Each task says how sure it is, in text and in JSON."""
    label, *others = answers(golden / "classify", "林", "--probabilities").rstrip("\n").split("\t")
    assert (label, others[0].split("=")[0], len(others)) == ("ja", "ja", 3)
    labels, sure = answers("hello", "hello", "--probabilities").rstrip("\n").split("\t")
    assert (labels, len(sure.split(" "))) == ("ohlol", 5)
    bits, following, probability = answers(golden / "lm", "hello 👋 ohl", "--probabilities").split("\t")
    assert (round(float(bits), 3), following, float(probability) > 0.9) == (0.078, '"o"', True)
    row = json.loads(answers(golden / "lm", "hello 👋 ohl", "--format", "jsonl"))
    assert (row["next"], sorted(row)) == ("o", ["bits_per_character", "next", "text"])


def test_unknown_characters_have_answers():
    """A character the model has never seen is unknown, not an error."""
    assert len(answers("hello", "héllo 👋🏽").rstrip("\n")) == 8


BAD = b"hello\nhe\xffllo\nhello\n"


def test_invalid_utf8_stops_with_its_line(tmp_path):
    """The line and the byte are named, and no half output is left."""
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(BAD)
    message = refused("hello", "-i", source, "-o", out)
    assert f"{source}:2: not UTF-8: byte 0xff at column 3" in message
    assert "--on-error skip" in message
    assert [p.name for p in tmp_path.iterdir()] == ["in.txt"]


def test_invalid_utf8_can_be_skipped():
    """The other lines are answered, and stderr says which one was not."""
    result = predict("hello", "--on-error", "skip", stdin=BAD)
    assert (result.exit_code, result.stdout) == (0, "ohlol\nohlol\n")
    assert "stdin:2: not UTF-8" in result.stderr
    assert "1 line(s)" in result.stderr


@pytest.mark.parametrize(
    ("form", "data", "message"),
    [
        ("jsonl", b'{"text": "a"}\n{"text": \n', "stdin:2: not JSON"),
        ("jsonl", b'{"txt": "a"}\n', 'stdin:1: expected an object with a string "text", found txt'),
        ("jsonl", b'["a"]\n', "stdin:1: expected an object"),
        ("jsonl", b"[" * 100_000 + b"\n", "stdin:1: not JSON"),
        ("csv", b"id,txt\n1,a\n", "stdin:1: no column 'text'; the header has id, txt"),
        ("csv", b"id,text\n1,a,b\n", "stdin:2: 3 fields, the header has 2"),
        ("csv", b'id,text\n1,"a\n', "not CSV"),
    ],
)
def test_malformed_input(form, data, message):
    """Line and reason, and what to do."""
    assert message in refused("hello", "--input-format", form, stdin=data)


def test_empty_inputs(tmp_path):
    """Nothing in, nothing out."""
    for form in ("text", "jsonl", "csv"):
        assert answers("hello", "--input-format", form) == ""


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: path.mkdir(), "has no manifest.json"),
    ],
)
def test_what_is_no_bundle(tmp_path, prepare, message):
    """One message that names the path."""
    prepare(tmp_path / "b")
    assert message in refused(tmp_path / "b", "hello")


def test_missing_files_and_wrong_usage(tmp_path):
    """Exit 1 where the work fails, 2 where the words are wrong."""
    assert "nothing.txt" in refused("hello", "-i", tmp_path / "nothing.txt")
    assert "not both" in refused("hello", "hello", "-i", tmp_path / "x", code=2)
    assert "No such option" in refused("hello", "--formt", "csv", code=2)
    (tmp_path / "file").write_text("")
    assert "file" in refused("hello", "hello", "-o", tmp_path / "file" / "out.txt")


def process(*arguments, **options):
    code = "from ohlol.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **options)


def test_a_closed_pipe(tmp_path):
    """`| head -1` ends the run with one line on stderr and no traceback."""
    (tmp_path / "in.txt").write_text("hello\n" * 100_000)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with process("predict", "hello", "-i", tmp_path / "in.txt", **pipes) as running:
        running.stdout.close()
        message = running.stderr.read().decode()
    assert (running.returncode, message) == (1, "stdout was closed by its reader: stopped\n")


def test_an_argument_that_is_not_utf8():
    """Bytes that are no text are named by their argument."""
    with process("predict", "hello", b"he\xffllo", stderr=subprocess.PIPE) as running:
        message = running.stderr.read().decode()
    assert (running.returncode, message) == (1, "Error: argument 1: not UTF-8\n")


def test_lone_surrogates_in_json(tmp_path):
    """What JSON can hold and UTF-8 cannot stays an escape; in text output it is a `?`."""
    row = json.loads(
        answers("hello", "--input-format", "jsonl", "--format", "jsonl", stdin=b'{"text": "\\ud800h"}')
    )
    assert (row["text"], len(row["labels"])) == ("\ud800h", 2)


def test_the_command_line_starts_without_torch(tmp_path):
    """`--help` and `predict` import neither torch nor onnx, nor what trains: they must start at once."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "onnx", "onnxscript", "pydantic", "rich", "safetensors", "tomli_w"}}:
            raise AssertionError(name)
sys.meta_path.insert(0, Refuse())
from click.testing import CliRunner
from ohlol.cli import main
for arguments in (["--help"], ["train", "--help"], ["predict", "hello", "hello"], ["verify", "hello"], ["inspect", {str(shipped())!r}]):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
import ohlol
assert str(ohlol.load("hello")("hello")) == "ohlol"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_telemetry(tmp_path):
    """Neither a file in the home folder nor a socket: onnxruntime's wheels report home unless told not to."""
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event.startswith("socket.") else None)
from ohlol.cli import main
try:
    main(["predict", "hello", "hello"])
except SystemExit as ended:
    assert ended.code == 0
assert opened == [], opened
"""
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    home.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=home)
    assert list(tmp_path.rglob("*")) == []


def test_telemetry_stays_as_the_user_set_it():
    """Whoever sets the variable has the last word."""
    code = "import os, ohlol; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"},
    )
    assert out.stdout == "0\n"


def test_output_through_links_and_into_pipes(tmp_path):
    """What is no regular file is written to, never replaced; behind a link, its file is exchanged."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    answers("hello", "hello", "-o", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "ohlol\n"
    os.mkfifo(tmp_path / "pipe")
    with process("predict", "hello", "hello", "-o", tmp_path / "pipe") as running:
        assert (tmp_path / "pipe").read_text() == "ohlol\n"
    assert (running.returncode, (tmp_path / "pipe").is_fifo()) == (0, True)


def test_no_field_is_lost_to_an_answer(golden, tmp_path):
    """A column called like an added one is refused, or kept beside it with --prefix."""
    source = tmp_path / "in.csv"
    source.write_text("text,label\nRossi,gold\n")
    message = refused(golden / "classify", "-i", source, "--format", "csv")
    assert "has a field 'label'" in message
    out = answers(golden / "classify", "-i", source, "--format", "csv", "--prefix", "predicted_")
    assert out == "text,label,predicted_label\nRossi,gold,it\n"


def test_rows_with_other_fields_are_refused_in_csv(tmp_path):
    """JSON lines may differ in their fields, the rows of a CSV may not: nothing is dropped in silence."""
    data = b'{"text": "h", "a": 1}\n{"text": "h", "b": 2}\n'
    assert "a, b; use --format jsonl" in refused(
        "hello", "--input-format", "jsonl", "--format", "csv", stdin=data
    )
    assert "column 'id' is there twice" in refused(
        "hello", "--input-format", "csv", stdin=b"text,id,id\nh,1,2\n"
    )


def test_a_record_that_cannot_be_read_is_skipped_whole():
    """Half a record is a text that nobody wrote; the lines lost are named."""
    data = b'text,n\nhello,1\n"he\n\xff\nllo",2\nhello,3\n'
    result = predict("hello", "--input-format", "csv", "--on-error", "skip", stdin=data)
    assert (result.exit_code, result.stdout) == (0, "ohlol\nohlol\n")
    assert "stdin:3 to 5: not UTF-8" in result.stderr
    assert "stdin:1: not UTF-8" in refused(
        "hello", "--input-format", "csv", "--on-error", "skip", stdin=b"text,\xff\nh,1\n"
    )
    unclosed = predict(
        "hello", "--input-format", "csv", "--on-error", "skip", stdin=b'text\nhello\n"h\nhello\nhello\n'
    )
    assert unclosed.stdout == "ohlol\n"
    assert "stdin:3 to 5: not CSV" in unclosed.stderr


def test_csv_round_trips(tmp_path, golden):
    """What is written as CSV is read back as it was, carriage returns and all; words are always JSON."""
    notes = ["a\rb", "a\r\nb", 'q"q', "", "x,y", "é\u2028"]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text("".join(json.dumps({"text": "xin chào", "note": note}) + "\n" for note in notes))
    answers(golden / "words", "-i", source, "-o", out, "--as", "words")
    again = [
        json.loads(line) for line in answers(golden / "lm", "-i", out, "--format", "jsonl").split("\n")[:-1]
    ]
    assert [row["note"] for row in again] == notes
    assert {row["words"] for row in again} == {'["xin chào"]'}


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_streams(closed):
    """A daemon has no stdin: texts that are arguments do not need one. A closed stdout gets one message."""
    command = f"{sys.executable} -c 'from ohlol.cli import main; main()' predict hello hello {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    if closed == "<&-":
        assert (done.returncode, done.stdout, done.stderr) == (0, "ohlol\n", "")
    else:
        assert (done.returncode, done.stderr) == (
            1,
            "Error: stdout is closed; write to a file with -o FILE\n",
        )


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    """Which extra brings it, in one line."""
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "ohlol.serve.parquet", raising=False)
    monkeypatch.delattr("ohlol.serve.parquet", raising=False)
    message = refused("hello", "-i", tmp_path / "in.parquet")
    assert message == "Error: `ohlol predict` needs pyarrow: pip install 'ohlol[parquet]'\n"


def test_tab_separated(tmp_path):
    """By the name, or by the option; quoted as a CSV is."""
    source, out = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text('id\ttext\n1\t"he\tl"\n2\thello\n')
    answers("hello", "-i", source, "-o", out)
    rows = out.read_text().split("\n")
    assert (rows[0], rows[2]) == ("id\ttext\tlabels", "2\thello\tohlol")
    assert rows[1].startswith('1\t"he\tl"\t')
    assert answers("hello", "--input-format", "tsv", stdin=b"text\nhello\n") == "ohlol\n"


def test_dashes_are_the_standard_streams():
    """As other commands have it."""
    assert answers("hello", "-i", "-", "-o", "-", stdin=b"hello\n") == "ohlol\n"


def test_compressed_files(tmp_path):
    """Unpacked and packed by the last suffix; the one before it says the format. Damage is one message."""
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.csv.gz"
    source.write_bytes(gzip.compress(b'{"text": "hello"}\n') + gzip.compress(b'{"text": "he"}\n'))
    answers("hello", "-i", source, "-o", out)
    assert gzip.decompress(out.read_bytes()).startswith(b"text,labels\nhello,ohlol\nhe,")
    source.write_bytes(source.read_bytes()[:-5])
    message = refused("hello", "-i", source, "-o", out)
    assert f"{source}: cannot be unpacked as gzip (it ends too early)" in message
    source.write_bytes(b"hello\n")
    assert f"{source}: cannot be unpacked as gzip" in refused("hello", "-i", source)


def test_what_is_wrong_is_told_in_the_order_of_the_lines():
    """Whatever is wrong with them."""
    result = predict(
        "hello", "--input-format", "jsonl", "--on-error", "skip", stdin=b'{\n\xff\n{"text": "hello"}\n[]\n'
    )
    assert [line.split(":")[2] for line in result.stderr.splitlines()[:3]] == ["1", "2", "4"]
    assert result.stdout == "ohlol\n"


@pytest.mark.parametrize("workers", ["1", "3"])
def test_workers(workers):
    """However many batches run at once, the answers and their order are the same."""
    lines = ["hello"[: k % 6] * (k % 9) for k in range(2_000)]
    text = "".join(line + "\n" for line in lines).encode()
    assert answers("hello", "--workers", workers, stdin=text) == answers("hello", stdin=text)
    assert "Invalid value for '--workers'" in refused("hello", "hello", "--workers", "0", code=2)


def test_mistakes_with_files(tmp_path):
    """Two inputs, an empty name, a file's name as text: each is told."""
    (tmp_path / "a.txt").write_text("hello\n")
    source = str(tmp_path / "a.txt")
    assert "give one -i FILE" in refused("hello", "-i", source, "-i", source, code=2)
    assert "it is empty" in refused("hello", "-i", "", code=2)
    assert "it is empty" in refused("hello", "hello", "-o", "", code=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        told = predict("hello", "a.txt")
    assert (told.exit_code, len(told.stdout)) == (0, 6)
    assert "note: a.txt is a file" in told.stderr
    assert "found one that is int" in refused("hello", "--input-format", "jsonl", stdin=b'{"text": 3}\n')


def test_objects_that_are_too_deep_to_write():
    """What can just be read may not be written again: one message, whatever the depth."""
    for depth in (900, 970, 981, 2_000):
        line = b'{"text": "hello", "x": ' + b"[" * depth + b"]" * depth + b"}\n"
        told = predict("hello", "--input-format", "jsonl", "--format", "jsonl", stdin=line)
        assert told.exit_code in (0, 1)
        assert told.exception is None or isinstance(told.exception, SystemExit)

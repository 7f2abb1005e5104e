"""`ohlol predict` on bytes of any kind: every record is answered or refused by name, and no other error comes out."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.alphabet import normalise
from ohlol.cli import main

FORMS = ("text", "jsonl", "csv")
QUIET = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
hostile = st.sampled_from(
    [
        *(
            b"\xff",
            b"\xc3",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc0\x80",
            b"\x00",
            b"\xef\xbb\xbf",
            b"\x1a",
        ),
        *(
            b"\r",
            b"\r\r\n",
            b"\n",
            b'"',
            b'""',
            b",",
            b"\xe2\x80\xa8",
            b"\x85",
            b"\x0c",
            b"{",
            b"}",
            b"[",
            b"\\",
        ),
        *(
            b'{"text": "a"}',
            b'{"text": 1}',
            b'{"text": "\\ud800"}',
            b'{"text": "a", "text": "b"}',
            b"NaN",
            b"1e999",
        ),
        *(b'{"text": "a", "n": 1e999}\n', b'{"text": "a", "n": [NaN]}\n'),
        *(
            b'{"text": "a", "n": %s}' % (b"9" * 5_000),
            b"[" * 5_000,
            b'{"text":' * 2_000,
            b"text",
            b"text\n",
            b"x" * 70_000,
        ),
    ]
)
anything = st.lists(st.binary(max_size=12) | hostile | texts.map(str.encode), max_size=10).map(b"".join)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """One model for all examples: what is read is looked at here, not what loads."""
    model = ohlol.load("hello")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ohlol, "load", lambda path, **options: model)
        yield


def predict(data, *arguments):
    ran = CliRunner().invoke(main, ["predict", "hello", *arguments], input=data)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)
    assert "Traceback" not in ran.stderr
    assert ran.exit_code in (0, 1)
    return ran


def answers(ran):
    """Lines end at a newline alone."""
    return ran.stdout.split("\n")[:-1]


def skipped(ran):
    return sum(line.startswith("skipped: ") for line in ran.stderr.split("\n"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("out", FORMS)
@QUIET
@given(data=anything)
@example(data=b"text,text\na,b\n")
@example(data=b'text\n"a\n')
@example(data=b'\xef\xbb\xbf{"text": "hello"}\n')
def test_any_bytes(form, out, data):
    """Answers, or one message: to stop is exit 1 and names the place, to skip is exit 0 and counts."""
    stopped = predict(data, "--input-format", form, "--format", out)
    skipping = predict(data, "--input-format", form, "--format", out, "--on-error", "skip")
    if stopped.exit_code == 1:
        assert stopped.stderr.startswith("Error: ")
        assert stopped.stderr.count("\n") == 1
        assert skipping.exit_code == 1 or skipped(skipping) > 0
    else:
        assert stopped.stdout == skipping.stdout
        assert skipped(skipping) == 0


@QUIET
@given(anything)
def test_every_line_of_text_has_an_answer(data):
    """As many answers as lines, but for those that are no UTF-8, each of which is named."""
    ran = predict(data, "--on-error", "skip")
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    assert ran.exit_code == 0
    assert len(lines) == ran.stdout.count("\n") + skipped(ran)


@QUIET
@given(
    st.lists(texts | st.binary(min_size=1, max_size=9).filter(lambda line: not valid(line)), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_lines_of_text(lines, end, last):
    """The good lines have their answers in order; the bad ones are named by their numbers."""
    raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
    raw = [line.replace(b"\n", b"\xff").replace(b"\r", b"\xff") for line in raw]
    if raw:
        raw[0] = raw[0].removeprefix(b"\xef\xbb\xbf")
    data = end.encode().join(raw) + (end.encode() if last and raw else b"")
    if not last and raw and not raw[-1]:
        raw.pop()  # nothing after the last newline is no line
    ran = predict(data, "--on-error", "skip", "--format", "jsonl")
    good = [line.decode() for line in raw if valid(line)]
    assert [json.loads(line)["text"] for line in answers(ran)] == good
    assert [len(json.loads(line)["labels"]) for line in answers(ran)] == [
        len(normalise(t, "NFC")) for t in good
    ]
    bad = [number for number, line in enumerate(raw, start=1) if not valid(line)]
    assert [f"stdin:{number}: not UTF-8" in ran.stderr for number in bad] == [True] * len(bad)
    assert skipped(ran) == len(bad)


def valid(line):
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
rows = st.dictionaries(
    st.text(max_size=3).filter(lambda key: key not in ("text", "labels")), values, max_size=3
)
broken = st.sampled_from(
    [
        '{"text": ',
        "[]",
        "7",
        '"text"',
        "{}",
        '{"text": null}',
        '{"Text": "a"}',
        "{'text': 'a'}",
        "[" * 9_999,
        "\0",
        "9" * 5_000,
    ]
)


@QUIET
@given(st.lists(st.tuples(rows, st.text(st.characters(codec=None), max_size=6)) | broken, max_size=10))
def test_lines_of_json(lines):
    """Every object comes back with all of its fields as they were and one more, whatever they are called."""
    written = [line if isinstance(line, str) else json.dumps({**line[0], "text": line[1]}) for line in lines]
    ran = predict(
        "\n".join(written).encode(), "--input-format", "jsonl", "--format", "jsonl", "--on-error", "skip"
    )
    good = [{**line[0], "text": line[1]} for line in lines if not isinstance(line, str)]
    found = [json.loads(line) for line in answers(ran)]
    assert [len(row.pop("labels")) for row in found] == [len(normalise(row["text"], "NFC")) for row in good]
    assert found == good
    assert skipped(ran) == len(lines) - len(good)


cells = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\r", " a ", "'", "=1+1", ";", "\t"]
)
columns = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), unique=True, max_size=3
).map(lambda names: [name for name in names if name not in ("text", "labels")])


@QUIET
@given(
    columns, st.lists(st.lists(cells, min_size=4, max_size=4), max_size=8), st.sampled_from(["\n", "\r\n"])
)
def test_rows_of_csv(names, table, end):
    """Quotes, commas and newlines inside of cells: every row comes back as it was, and one column more."""
    header = [*names, "text"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([header, *(row[: len(header)] for row in table)])
    ran = predict(out.getvalue().encode(), "--input-format", "csv", "--format", "csv")
    found = list(csv.reader(io.StringIO(ran.stdout_bytes.decode(), newline=""), strict=True))
    assert ran.exit_code == 0, ran.stderr
    assert [row[:-1] for row in found] == ([header, *(row[: len(header)] for row in table)] if table else [])


@pytest.mark.parametrize("form", FORMS)
@QUIET
@given(data=anything)
def test_a_file_is_written_whole_or_not_at_all(form, data, tmp_path_factory):
    """A run that stops leaves no half of an output behind, nor anything else."""
    folder = tmp_path_factory.mktemp("out", numbered=True)
    ran = predict(data, "--input-format", form, "-o", str(folder / "a.txt"))
    assert [path.name for path in folder.iterdir()] == ([] if ran.exit_code else ["a.txt"])

"""Readers of text, JSON lines, CSV and TSV, held to naive ones of the whole file, with blocks so short that their ends fall anywhere."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import InputError
from ohlol.serve import blocks as sizes
from ohlol.serve.blocks import Blocks, Place
from ohlol.serve.long_line import LongLine, parts_of
from ohlol.serve.packed import format_of, unpacked
from ohlol.serve.readers import windows
from ohlol.serve.windows import Reading

PIECES = [
    *(b"a", b"hello", b" ", b"\n", b"\r\n", b"\r", b"\n\n", b"\0", b"\xff", b"\xc3", "é".encode()),
    *("e\u0301".encode(), "\u2028".encode(), "👋".encode(), b"\xef\xbb\xbf", b"\xed\xa0\x80", "각".encode()),
    *(b"\xe1\x84\x80", "\u1161".encode(), b"\xef", b"\xbb", b"x" * 30),
]
OF_FORMAT = {
    "text": PIECES,
    "csv": [*PIECES, b'"', b",", b'""', b"text", b"text,n\n", b'"a\n', b'b",', b"a,1\n"],
    "tsv": [*PIECES, b'"', b"\t", b"text", b"text\tn\n", b'"a\r\n', b'b"\t', b"a\t1\n"],
    "jsonl": [
        *PIECES,
        b'{"text": "',
        b'"}\n',
        b'{"text": "a"}\n',
        b'{"text": 1}\n',
        b"[1]",
        b"1e999\n",
        b"\\ud800",
    ],
}
DATA = {form: st.lists(st.sampled_from(some), max_size=40).map(b"".join) for form, some in OF_FORMAT.items()}
BLOCKS = st.integers(4, 60)
ALPHABET = Alphabet("helo")


def read(data, form, block, start=Place(), arriving=False, **options):  # noqa: B008
    """What the reader gives from a place on: the texts and the end of each window, and what it skipped."""
    skipped = []
    how = Reading("in", form, ALPHABET, lambda error: skipped.append(str(error)), **options)
    before, sizes.BLOCK = sizes.BLOCK, block
    try:
        given = []
        for item in windows(Blocks(io.BytesIO(data), start, arriving=arriving), how):
            if isinstance(item, LongLine):
                given.append((["".join(item.parts)], item.end(), [item.where]))
            else:
                wheres = [item.wheres(k) for k in range(len(item.rows))]
                assert len(item.records) == len(item.rows)
                for text, record in zip(item.rows.texts(), item.records, strict=True):
                    assert text == ALPHABET.normalise(record[how.field])
                given.append((item.rows.texts(), item.end, wheres))
    finally:
        sizes.BLOCK = before
    return given, skipped


def texts_of(given):
    return [text for texts, _, _ in given for text in texts]


def naive_lines(data):
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    for number, raw in enumerate(lines if lines[-1] else lines[:-1], start=1):
        try:
            yield number, raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            yield number, None


def naive_text(data):
    lines = list(naive_lines(data))
    return [text for _, text in lines if text is not None], [number for number, text in lines if text is None]


def naive_jsonl(data):
    texts, skipped = [], []
    for number, line in naive_lines(data):
        if line is not None and not line.strip():
            continue
        try:
            row = json.loads(line) if line is not None else None
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            texts.append(row["text"])
        else:
            skipped.append(number)
    return texts, skipped


def naive_csv(data, delimiter):
    """Python's own way to read a CSV of a file; None where its header cannot be read."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    file = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    header, texts, skipped = None, [], 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            row = ["bad", "\udcff"]
        if row is None:
            return texts, skipped
        bad = any("\udc80" <= c <= "\udcff" for cell in row for c in cell)
        if header is None and row:
            if bad or "text" not in row or len(set(row)) != len(row):
                return None
            header = row
        elif row and (bad or len(row) != len(header)):
            skipped += 1
        elif row:
            texts.append(row[header.index("text")])


def normal(texts):
    return [unicodedata.normalize("NFC", text) for text in texts]


@given(data=DATA["text"], block=BLOCKS, in_parts=st.booleans(), judged=st.booleans())
@example(data=b"\xef\xbb\xbfh\r\n" + b"x" * 40 + b"\r\n\n", block=5, in_parts=True, judged=True)
@example(data=b"\xef\xbb", block=4, in_parts=True, judged=True)
@example(data=("e" + "\u0301" * 50 + "\nb").encode(), block=7, in_parts=True, judged=True)
def test_lines_of_text(data, block, in_parts, judged):
    """Each line once, in order, wherever blocks end: in a line's end, in a character, in what joins to one."""
    expected, bad = naive_text(data)
    try:
        given, skipped = read(data, "text", block, in_parts=in_parts, judged=judged)
    except InputError:
        assert in_parts  # a part of a line is answered already
        assert not judged
        assert bad
        return
    assert texts_of(given) == normal(expected)
    assert [int(message.split(":")[1]) for message in skipped] == bad


@given(data=DATA["jsonl"], block=BLOCKS)
@example(data=b'{"text": "a"}\r\n\xef\xbb\xbf{"text": "b"}', block=6)
def test_lines_of_json(data, block):
    """Each object once; lines that are none are told by their number."""
    expected, bad = naive_jsonl(data)
    given, skipped = read(data, "jsonl", block)
    assert texts_of(given) == normal(expected)
    assert [int(message.split(":")[1]) for message in skipped] == bad


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '{"a": [1e400]}'])
def test_numbers_that_json_has_not(number):
    """They would be written again as what other readers refuse: refused as any line that is not JSON."""
    lines = ['{"text": "a", "n": 1e308}', f'{{"n": {number}, "text": "b"}}', '{"text": "c"}']
    given, skipped = read("\n".join(lines).encode(), "jsonl", 4_096)
    assert texts_of(given) == ["a", "c"]
    (message,) = skipped
    assert message.startswith("in:2: not JSON: ")


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_records_of_a_table(form, delimiter):
    """Each record once, as csv reads it from a file: quotes over several lines, a lone carriage return, NUL."""

    @given(
        data=st.one_of(DATA[form], DATA[form].map(lambda data: f"n{delimiter}text\n".encode() + data)),
        block=BLOCKS,
    )
    @example(data=b'text\n"a\r\nb"\r\nc\rd\n', block=4)
    @example(data=b"text\na\rb", block=4)
    def holds(data, block):
        expected = naive_csv(data, delimiter)
        if expected is None:
            with pytest.raises(InputError, match=r"^in:\d+( to \d+)?: "):
                read(data, form, block)
            return
        given, skipped = read(data, form, block)
        assert texts_of(given) == normal(expected[0])
        assert len(skipped) == expected[1]

    holds()


def test_where_a_record_ends_that_is_no_csv():
    """With the line of the mistake; what follows is the next record, and nothing is lost in silence."""
    data = b'text,n\n"a\nb"c,1\nd",2\ne,3\n"f\nf",4\n"g\ng",5,6\n'
    given, skipped = read(data, "csv", 4_096)
    assert texts_of(given) == ['d"', "e", "f\nf"]
    assert [message.partition(": ")[0] for message in skipped] == ["in:2 to 3", "in:8 to 9"]
    assert "not CSV" in skipped[0]
    assert "3 fields, the header has 2" in skipped[1]


@pytest.mark.parametrize("form", ["text", "jsonl", "csv", "tsv"])
def test_reading_goes_on_from_the_end_of_any_window(form):
    """From there on, the same windows with the same texts, named by the same lines: what --resume is built on."""

    @given(
        data=DATA[form].map(lambda data: data if form in ("text", "jsonl") else b"text\n" + data),
        block=BLOCKS,
    )
    def holds(data, block):
        given, _ = read(data, form, block, in_parts=True, judged=True)
        for k, (_, end, _) in enumerate(given):
            assert read(data, form, block, start=end, in_parts=True, judged=True)[0] == given[k + 1 :]

    holds()


@given(data=st.binary(max_size=200), form=st.sampled_from(["text", "jsonl", "csv", "tsv"]), block=BLOCKS)
def test_random_bytes_raise_nothing_else(data, form, block):
    """Whatever the bytes are, a reader gives texts, skips, or says in one message why it cannot go on."""
    try:
        read(data, form, block, in_parts=True, judged=True)
    except InputError as error:
        assert "in:" in str(error)


@given(data=DATA["text"], limit=st.integers(0, 40), block=BLOCKS, in_parts=st.booleans())
def test_no_text_is_longer_than_allowed(data, limit, block, in_parts):
    """Longer ones are told with their length, whether they fit a block or not; none is cut."""
    given, skipped = read(data, "text", block, max_length=limit, in_parts=in_parts, judged=True)
    lines = [text if text is None else unicodedata.normalize("NFC", text) for _, text in naive_lines(data)]
    assert texts_of(given) == [text for text in lines if text is not None and len(text) <= limit]
    lengths = [len(text) for text in lines if text is not None and len(text) > limit]
    told = [int(m.split("a text of ")[1].split(" ")[0]) for m in skipped if "a text of " in m]
    assert told == lengths


@given(data=DATA["text"], sizes_=st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_lines_that_arrive(data, sizes_):
    """However a pipe hands the bytes out, each line is given as soon as it is whole."""

    class Pipe:
        def __init__(self):
            self.rest, self.given, self.sizes = data, 0, iter(sizes_)

        def read(self, size):
            assert blocks.end.offset >= data[: self.given].rfind(b"\n") + 1  # no whole line waits for more
            size = min(size, next(self.sizes, 64))
            given, self.rest = self.rest[:size], self.rest[size:]
            self.given += len(given)
            return given

    pipe = Pipe()
    blocks = Blocks(pipe, arriving=True)
    seen = b""
    for block in blocks:
        seen += block
        assert block.endswith(b"\n") or not pipe.rest
    assert seen == data.removeprefix(sizes.BOM)


@given(
    text=st.text(max_size=60),
    form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", "none"]),
    size=st.integers(1, 7),
)
@example(text="ﾊﾞ한국\u1100\u1161\u11a8e\u0301\u0323", form="NFKC", size=1)
def test_the_parts_of_a_line_are_the_whole_normalised(text, form, size):
    """Whatever joins over a cut joins all the same."""
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff").replace("\n", "").replace("\r", "")
    data = text.encode() + b"\r\n"
    pieces = (data[k : k + size] for k in range(0, len(data), size))
    whole = text if form == "none" else unicodedata.normalize(form, text)
    assert "".join(parts_of(pieces, Alphabet("a", form), "in:1")) == whole


def test_what_is_wrong_is_told_with_its_line(tmp_path):
    """Number and column, in a block and in a line of many."""
    bad = b"a\n" * 9 + b"x" * 100 + b"\xff\n"
    for block in (8, 4096):
        _, skipped = read(bad, "text", block, in_parts=True, judged=True)
        assert skipped == [
            "in:10: not UTF-8: byte 0xff at column 101; convert the file to UTF-8, or leave such lines out with "
            "--on-error skip"
        ]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("a.txt", None, "text"), ("a.JSONL", None, "jsonl"), ("a.ndjson.gz", None, "jsonl"), ("a.csv.zst", None, "csv"),
        ("a.tsv", None, "tsv"), ("a.parquet", None, "parquet"), ("a.gz", None, "text"), ("a.csv", "text", "text"),
        (None, None, "text"), (None, "csv", "csv"),
    ],
)  # fmt: skip
def test_the_format_is_in_the_name(tmp_path, name, given, expected):
    assert format_of(tmp_path / name if name else None, given) == expected


def unpack(path):
    with path.open("rb") as file:
        return unpacked(file, path).read()


def test_gzip_of_several_members(tmp_path):
    """What `cat a.gz b.gz` makes, and an empty file, are gzip like others."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"hello\n") + gzip.compress(b"") + gzip.compress(b"x" * 9_999))
    assert unpack(path) == b"hello\n" + b"x" * 9_999
    path.write_bytes(b"")
    assert unpack(path) == b""


@given(data=st.data())
def test_damaged_gzip(tmp_path_factory, data):
    """Cut off or changed anywhere: the right bytes, or one message that names the file; never others in silence."""
    path = tmp_path_factory.mktemp("gzip") / "a.gz"
    original = bytes(k * k % 251 for k in range(400)) + b"a" * 400
    packed = bytearray(gzip.compress(original, mtime=0))
    at = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        packed = packed[:at]
    else:
        packed[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(packed)
    try:
        assert unpack(path) in (original, b"")
    except InputError as error:
        assert str(error).startswith(f"{path}: cannot be unpacked as gzip")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd")
def test_zstd_where_python_has_none(tmp_path):
    """It is said which Python has it, and what to do."""
    (tmp_path / "a.zst").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.zst: zstd is in Python's standard library from 3\.14 on"):
        unpack(tmp_path / "a.zst")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="zstd is in Python from 3.14 on")
def test_zstd(tmp_path):
    """In frames one after another, as a run that was interrupted leaves it; damage is told."""
    from compression import zstd

    path = tmp_path / "a.zst"
    path.write_bytes(zstd.compress(b"hello\n") + zstd.compress(b"oleh\n"))
    assert unpack(path) == b"hello\noleh\n"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="cannot be unpacked as zstd"):
        unpack(path)

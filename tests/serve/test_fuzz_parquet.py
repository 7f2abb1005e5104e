"""`ohlol predict` on Parquet of any shape, whole and damaged: the answers are those of `model(text)`, or one message."""

from __future__ import annotations

import datetime
import decimal
import os

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.cli import main

pa = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra [parquet] is not installed")

QUIET = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.lists(
    st.none() | st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["hello", "", "he\u0301", "x" * 99]),
    max_size=12,
)  # fmt: skip
KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
}
NESTED = pa.list_(pa.struct([("a", pa.list_(pa.int16())), ("b", pa.string())]))
OTHERS = {  # columns that are only kept, by their name: a type, and the values that its rows have in turn
    "number": (pa.uint8(), [1, None, 255]),
    "nested": (NESTED, [[{"a": [1, None], "b": "é"}], None, [], [{"a": None, "b": ""}]]),
    "map": (pa.map_(pa.string(), pa.float32()), [[("k", 0.5)], [], None]),
    "when": (pa.timestamp("us", "UTC"), [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), None]),
    "money": (pa.decimal128(9, 2), [decimal.Decimal("1.50"), None]),
    "bytes": (pa.binary(), [b"\xff\0", None, b""]),
    "kind": (pa.dictionary(pa.int16(), pa.string()), ["a", "b", None, "a"]),
    "nothing": (pa.null(), [None]),
}


@st.composite
def files(draw):
    """A table and the tables that are its row groups, some of which have no rows."""
    texts = draw(TEXTS)
    columns = {"text": pa.array(texts, pa.string()).cast(KINDS[draw(st.sampled_from(sorted(KINDS)))])}
    for name in draw(st.lists(st.sampled_from(sorted(OTHERS)), unique=True, max_size=3)):
        kind, values = OTHERS[name]
        columns[name] = pa.array([values[k % len(values)] for k in range(len(texts))], kind)
    table = pa.table(columns).select(draw(st.permutations(list(columns))))
    cuts = sorted(draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    groups = [
        table.slice(begin, end - begin) for begin, end in zip([0, *cuts], [*cuts, len(texts)], strict=True)
    ]
    return table, groups


def write(path, table, groups, **options):
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for group in groups:
            writer.write_table(group)


@pytest.fixture(scope="module")
def hello():
    return ohlol.load("hello")


@pytest.fixture(scope="module", autouse=True)
def quick(hello):
    """One model for all examples, and no waiting for a disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ohlol, "load", lambda path, **options: hello)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def predict(*arguments):
    ran = CliRunner().invoke(main, ["predict", "hello", *map(str, arguments)])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)
    assert "Traceback" not in ran.stderr
    assert ran.exit_code in (0, 1)
    return ran


@QUIET
@given(file=files(), compression=st.sampled_from(["NONE", "SNAPPY", "ZSTD"]), version=st.sampled_from(["1.0", "2.0"]))  # fmt: skip
def test_any_table(hello, tmp_path_factory, file, compression, version):
    """Every row once, in order, with all of its columns and types; null where its text is null."""
    table, groups = file
    folder = tmp_path_factory.mktemp("any")
    source, out = folder / "in.parquet", folder / "out.parquet"
    write(source, table, groups, compression=compression, data_page_version=version)
    ran = predict("-i", source, "-o", out)
    assert (ran.exit_code, ran.stderr) == (0, "")
    found = pq.read_table(out)
    assert [*table.column_names, "labels"] == found.column_names
    kept = pq.read_table(source)
    assert kept.schema == found.select(table.column_names).schema
    assert kept.to_pylist() == found.select(table.column_names).to_pylist()
    texts = table["text"].to_pylist()
    assert [None if text is None else list(hello(text).labels) for text in texts] == found[
        "labels"
    ].to_pylist()
    lines = predict("-i", source).stdout.split("\n")[:-1]
    assert [str(hello(text or "")) for text in texts] == lines


damage = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "zero", "twice", "ff"]), st.integers(0, 63)),
    min_size=1,
    max_size=3,
)  # fmt: skip


def damaged(data, changes):
    """Bytes with changes at places that are told as parts of the whole; `size` is how much is changed, or which bit."""
    data = bytearray(data)
    for part, kind, size in changes:
        at = int(part * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << size % 8
        elif kind == "cut":
            del data[at:]
        elif kind == "twice":
            data[at:at] = data[at : at + size]
        else:
            end = min(at + size, len(data))
            data[at:end] = (b"\0" if kind == "zero" else b"\xff") * (end - at)
    return bytes(data)


@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl", "out.txt"])
@QUIET
@given(file=files(), changes=damage, checksum=st.booleans())
@example(file=(pa.table({"text": ["a"]}), []), changes=[(0.0, "cut", 0)], checksum=False)
def test_any_damage(to, tmp_path_factory, file, changes, checksum):
    """A file that takes its name once it is whole, or one message that names the input and nothing that is left."""
    table, groups = file
    folder = tmp_path_factory.mktemp("damaged")
    source, out = folder / "in.parquet", folder / to
    write(source, table, groups, write_page_checksum=checksum)
    source.write_bytes(damaged(source.read_bytes(), changes))
    ran = predict("-i", source, "-o", out, "--no-progress")
    if ran.exit_code == 0:
        assert ran.stderr == ""
        assert sorted(path.name for path in folder.iterdir()) == ["in.parquet", to]
        if to == "out.parquet":
            pq.read_table(out)
    else:
        assert ran.stderr.startswith("Error: ")
        assert ran.stderr.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == ["in.parquet"]

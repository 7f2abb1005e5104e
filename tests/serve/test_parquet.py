"""Parquet in and out: columns and types kept, answers with types of their own, bad rows named."""

from __future__ import annotations

import datetime
import json

import pytest
from click.testing import CliRunner

from ohlol.cli import main
from ohlol.serve import blocks, jobs

pa = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
pq = pytest.importorskip("pyarrow.parquet")
parquet_writer = pytest.importorskip("ohlol.serve.parquet_writer")


def run(model, source, out=None, *options, code=0):
    arguments = ["predict", str(model), "-i", str(source), *(["-o", str(out)] if out else []), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_columns_are_kept_with_their_types(tmp_path, kind):
    """Whatever they are; the answers come after them, and the text is as it was given."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.uint8()),
            "text": pa.array(["hello", "", "he\u0301"]).cast(kind) if kind != pa.string_view() else pa.array(["hello", "", "he\u0301"], kind),
            "when": pa.array([datetime.datetime(2026, 1, 1), None, None], pa.timestamp("us")),
            "nested": pa.array([{"a": [1]}, None, {"a": []}]),
        }
    )  # fmt: skip
    pq.write_table(table, source, row_group_size=2)
    run("hello", source, out)
    found = pq.read_table(out)
    assert found.select(table.column_names).cast(pq.read_table(source).schema) == pq.read_table(source)
    assert found.schema.names == [*table.column_names, "labels"]
    assert found["labels"].type == pa.list_(pa.field("element", pa.string()))
    assert [len(labels) for labels in found["labels"].to_pylist()] == [5, 0, 2]
    assert found["labels"][0].as_py() == list("ohlol")


@pytest.mark.parametrize(
    ("bundle", "options", "types"),
    [
        ("classify", [], {"label": "string"}),
        ("classify", ["--probabilities"], {"label": "string", "probability": "float", "probabilities": "map<string, float"}),
        ("lm", ["--probabilities"], {"bits_per_character": "double", "next": "string", "probability": "float"}),
        ("words", ["--as", "words"], {"words": "list<element: string>", "spans": "list<element: list<element: int64>>"}),
        ("words", ["--as", "sentences", "--probabilities"], {"sentences": "list<element: string>", "probabilities": "list<element: float>"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [["xin chào bạn.", "", "Rossi"], ["", ""], []])
def test_answers_have_the_same_types_in_every_file(golden, tmp_path, bundle, options, types, rows):
    """With texts, with empty ones alone, with none: files of one job can be read as one table. The values are those of JSON."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), source)
    run(golden / bundle, source, out, *options, "--prefix", "p_")
    found = pq.read_table(out)
    assert {name: str(found.schema.field(f"p_{name}").type).split(" (")[0] for name in types} == types
    expected = [
        json.loads(line)
        for line in run(golden / bundle, source, None, "--format", "jsonl", *options).splitlines()
    ]
    for name in types:
        values = found[f"p_{name}"].to_pylist()
        if "map" in types[name]:
            values = [dict(value) for value in values]
        assert rounded(values) == rounded([row[name] for row in expected])


def rounded(value):
    """A value with its floats as float32 has them, roughly."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def test_rows_without_a_text(tmp_path):
    """Null texts have null answers, beside their own columns, in every format that has nulls; no row is lost."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3], "text": ["hello", None, "he"]}), source)
    run("hello", source, out)
    answered = [
        {"n": 1, "text": "hello", "labels": list("ohlol")},
        {"n": 2, "text": None, "labels": None},
        {"n": 3, "text": "he", "labels": list("oh")},
    ]
    assert answered == pq.read_table(out).to_pylist()
    lines = run("hello", source, None, "--format", "jsonl").splitlines()
    assert answered == [json.loads(line) for line in lines]
    assert run("hello", source, None, "--format", "csv") == "n,text,labels\n1,hello,ohlol\n2,,\n3,he,oh\n"
    assert run("hello", source) == "ohlol\n\noh\n"
    run("hello", source, out, "--on-error", "skip", "--max-length", "4")
    assert answered[1:] == pq.read_table(out).to_pylist()
    pq.write_table(pq.read_table(source).slice(2).append_column("x", [[1]]), source)
    assert f"{source}: row 1: a text of 2 characters" in run(
        "hello", source, out, "--max-length", "1", code=1
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.null()], ids=str)
@pytest.mark.parametrize("bundle", ["classify", "lm", "words"])
def test_nulls_alone(golden, tmp_path, bundle, kind):
    """A column that holds nothing else, and one of the type null: every answer is null, with its type."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": pa.nulls(3, kind)}), source)
    run(golden / bundle, source, out, "--probabilities")
    found = pq.read_table(out)
    assert len(found.column_names) > 1
    assert [dict.fromkeys(found.column_names)] * 3 == found.to_pylist()
    assert not any(pa.types.is_null(field.type) for field in list(found.schema)[1:])


def test_no_rows_have_the_columns_too(tmp_path):
    """Of an empty file of text too: files of one job can be read as one table."""
    source, out = tmp_path / "in.txt", tmp_path / "out.parquet"
    source.write_text("")
    run("hello", source, out)
    assert (pq.read_table(out).num_rows, pq.read_schema(out).names) == (0, ["text", "labels"])


def test_bytes_that_are_no_utf8(tmp_path):
    """Arrow does not look at what a column of strings holds; the row is named."""
    source = tmp_path / "in.parquet"
    column = pa.array([b"hello", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), source)
    assert f"{source}: row 2: not UTF-8" in run("hello", source, code=1)
    assert run("hello", source, None, "--on-error", "skip") == "ohlol\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"txt": ["a"], "n": [1]}, "no column 'text'; it has txt, n. Name another with --field"),
        ({"text": [1, 2]}, "column 'text' is int64, expected strings"),
        ({"text": ["a"], "labels": ["b"]}, "the input has a field 'labels'"),
    ],
)
def test_wrong_columns(tmp_path, table, message):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(table), source)
    assert message in run("hello", source, tmp_path / "out.parquet", code=1)


@pytest.mark.parametrize("cut", [0, 1, 4, 20, 200, -1, -9])
def test_a_damaged_file(tmp_path, cut):
    """One message that names it, wherever it is cut off."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["hello"] * 99}), source)
    source.write_bytes(source.read_bytes()[:cut])
    assert run("hello", source, code=1).startswith(f"Error: {source}: cannot be read as Parquet: ")


def test_other_formats_into_parquet_and_back(tmp_path):
    """What JSON lines hold has types in Parquet; and back again it is what it was."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    rows = [{"text": "hello", "n": k, "tags": ["a"] * k, "none": None, "f": k / 2} for k in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("hello", source, out)
    again = [
        json.loads(line)
        for line in run("hello", out, None, "--format", "jsonl", "--prefix", "b_").splitlines()
    ]
    assert again == [{**row, "labels": list("ohlol"), "b_labels": list("ohlol")} for row in rows]


def test_rows_that_do_not_fit_one_table(tmp_path):
    """Another column, another type, a lone surrogate: told, never dropped."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    for other, message in (
        ({"text": "a", "n": "x"}, "column 'n' cannot be written as Parquet"),
        ({"text": "\ud800"}, "column 'text' cannot be written as Parquet"),
    ):
        source.write_text("".join(json.dumps(row) + "\n" for row in ({"text": "a", "n": 1}, other)))
        assert message in run("hello", source, out, code=1)


def test_what_json_cannot_hold(tmp_path):
    """Dates and decimals have a plain form; bytes have none, and are told."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["he"], "d": [datetime.date(2026, 1, 2)]}), source)
    assert json.loads(run("hello", source, None, "--format", "jsonl"))["d"] == "2026-01-02"
    pq.write_table(pa.table({"text": ["he"], "b": [b"\0"]}), source)
    assert "holds bytes, which JSON cannot hold" in run("hello", source, None, "--format", "jsonl", code=1)
    pq.write_table(pa.table({"text": ["he"], "s": pa.array([b"\xff"]).view(pa.string())}), source)
    assert f"{source}: row 1 or one soon after: a column holds" in run(
        "hello", source, None, "--format", "jsonl", code=1
    )
    pq.write_table(pa.table({"text": ["he"], "f": [float("nan")]}), source)
    assert "not finite, which JSON cannot hold" in run("hello", source, None, "--format", "jsonl", code=1)
    assert run("hello", source, None, "--format", "csv") == "text,f,labels\nhe,nan,oh\n"


def test_stdin_is_not_held_in_memory(monkeypatch, tmp_path):
    """What cannot be read again has no journal, and yet no more tables are held than those of a few windows."""
    held = []
    write = parquet_writer.ParquetWriter.window

    def window(self, *given):
        write(self, *given)
        held.append(len(self._tables))

    monkeypatch.setattr(parquet_writer.ParquetWriter, "window", window)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    out = tmp_path / "out.parquet"
    result = CliRunner().invoke(main, ["predict", "hello", "-o", str(out)], input="hello\n" * 400)
    assert result.exit_code == 0, result.output
    assert [list("ohlol")] * 400 == pq.read_table(out)["labels"].to_pylist()
    assert len(held) > 3 * jobs.EVERY
    assert max(held) <= jobs.EVERY
    assert [file.name for file in tmp_path.iterdir()] == ["out.parquet"]


def test_parquet_has_no_pipes(tmp_path):
    """Its end says where everything is: a file of its own, said before anything is read."""
    for arguments in (["hello", "--format", "parquet"], ["--input-format", "parquet"]):
        result = CliRunner().invoke(main, ["predict", "hello", *arguments])
        assert (result.exit_code, "Parquet needs a file of its own" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "hello", "x": {}}', "cannot be written as Parquet"),
        ('{"text": "hello", "\\ud800": 1}', "no text that Parquet can hold"),
        ('{"text": "hello", "x": 123456789012345678901234}', "holds what no type of Parquet can"),
    ],
)
def test_what_parquet_cannot_hold(tmp_path, row, message):
    """One message, and no file."""
    (tmp_path / "in.jsonl").write_text(row + "\n")
    told = CliRunner().invoke(
        main, ["predict", "hello", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "o.parquet")]
    )
    assert (told.exit_code, type(told.exception)) == (1, SystemExit)
    assert message in told.stderr
    assert not (tmp_path / "o.parquet").exists()


def test_columns_that_would_be_lost(tmp_path):
    """A name that is there twice, bytes that no text holds: refused, not dropped or spelled as Python has them."""
    twice = pa.Table.from_arrays(
        [pa.array(["hello"]), pa.array([1]), pa.array([3])], names=["text", "x", "x"]
    )
    for name, table, message in (
        ("twice", twice, "column 'x' is there twice"),
        ("bytes", pa.table({"text": ["hello"], "m": [b"\xff"]}), "holds bytes"),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        source, out = str(tmp_path / f"{name}.parquet"), str(tmp_path / "o.csv")
        told = CliRunner().invoke(main, ["predict", "hello", "-i", source, "-o", out])
        assert told.exit_code == 1
        assert message in told.stderr

"""The pieces that shards are cut into, and a worker's part of each, without Ray: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import socket
import stat
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.cli import main
from ohlol.serve import BatchPredictor, ray_engine
from ohlol.serve.jobs import Options, predict
from ohlol.serve.shards import Piece, Worker, check_schemas, cut, shards


def work(worker, piece):
    """What an actor is given and gives back: Ray's numpy batch of one row."""
    back = worker({name: np.array([value]) for name, value in asdict(piece).items()})
    return {name: values[0] for name, values in back.items()}


def by_pieces(predictor, source, folder, size, on_error="stop"):
    """A JSON lines file cut every `size` bytes, answered piece by piece, and the parts put together."""
    folder.mkdir()
    worker = Worker(predictor, str(folder), "jsonl", on_error)
    end = source.stat().st_size
    pieces = [
        Piece(number, str(source), start, min(start + size, end))
        for number, start in enumerate(range(0, end, size))
    ]
    back = [work(worker, piece) for piece in pieces]
    return back, "".join((folder / piece.part("jsonl")).read_text(encoding="utf-8") for piece in pieces)


@settings(max_examples=20)  # each writes, and syncs, a part for every few bytes
@given(
    texts=st.lists(st.text(alphabet="hełl\u2028\r 田", max_size=6), min_size=1, max_size=8),
    size=st.integers(3, 90),
    crlf=st.booleans(),
    last=st.booleans(),
)
def test_however_it_is_cut_the_parts_are_what_one_process_writes(tmp_path_factory, texts, size, crlf, last):
    """A line belongs to the piece in which it begins: short pieces, long lines, CRLF, no newline at the end, U+2028."""
    folder = tmp_path_factory.mktemp("cut")
    source = folder / "in.jsonl"
    lines = [json.dumps({"n": n, "text": text}, ensure_ascii=False) for n, text in enumerate(texts)]
    end = "\r\n" if crlf else "\n"
    source.write_bytes((end.join(lines) + (end if last else "")).encode())
    back, parts = by_pieces(BatchPredictor("hello"), source, folder / "out", size)
    command = ["predict", "hello", "-i", str(source), "--format", "jsonl"]
    assert parts == CliRunner().invoke(main, command).stdout
    assert len(texts) == sum(row["rows"] for row in back)
    assert {""} == {row["error"] for row in back}


def test_a_line_that_cannot_be_read_is_found_by_its_message(tmp_path):
    """Lines are counted from a byte that the message names, since no worker has read what is before."""
    source = tmp_path / "in.jsonl"
    lines = [b'{"text": "hello"}\n'] * 40
    lines[33] = b"oops\n"
    source.write_bytes(b"".join(lines))
    back, _ = by_pieces(BatchPredictor("hello"), source, tmp_path / "skipped", 250, "skip")
    assert [row["skipped"] for row in back] == [0, 0, 1]
    (message,) = json.loads(back[2]["told"])
    where, _, _ = message.partition(": not JSON")
    byte, line = where.rpartition("from byte ")[2].split(":")
    assert source.read_bytes()[int(byte) - 1 :].splitlines()[int(line) - 1] == b"oops"
    assert sum(row["rows"] for row in back) == 39
    worker = Worker(BatchPredictor("hello"), str(tmp_path / "skipped"), "jsonl", "stop")
    assert "not JSON" in work(worker, Piece(9, str(source), 500, 715))["error"]
    assert not (tmp_path / "skipped" / "part-000009.jsonl").exists(), "a part is whole or not there"


def test_a_piece_done_again_is_the_same_part(tmp_path):
    """What happens where a worker was killed: the second one writes over what the first left, and leaves no more files."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "hello"}\n')
    worker = Worker(BatchPredictor("hello"), str(tmp_path), "jsonl", "stop")
    piece = Piece(0, str(source), 0, 18)
    first = [work(worker, piece), (tmp_path / piece.part("jsonl")).read_bytes()]
    assert first == [work(worker, piece), (tmp_path / piece.part("jsonl")).read_bytes()]
    assert sorted(file.name for file in tmp_path.glob("[!.]*")) == ["in.jsonl", "part-000000.jsonl"]


def test_a_piece_that_kills_its_workers_is_given_up(tmp_path):
    """Ray would give it to worker after worker; the sixth one says which piece it is, and does not answer it."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "hello"}\n')
    worker = Worker(BatchPredictor("hello"), str(tmp_path), "jsonl", "stop")
    piece = Piece(3, str(source), 0, 18)
    for _ in range(5):
        worker.count(piece)  # begun, and never ended
    back = work(worker, piece)
    assert back["error"].startswith(f"{source}, 0 to 18: 5 workers ended while they answered this piece")
    assert not (tmp_path / piece.part("jsonl")).exists()


def test_damaged_parquet_is_told(tmp_path):
    """A row group whose bytes are no longer those that were written: one message with the file's name."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [f"hello {n}" for n in range(1_000)]}), source, use_dictionary=False)
    content = bytearray(source.read_bytes())
    content[4:400] = bytes(396)
    source.write_bytes(content)
    worker = Worker(BatchPredictor("hello"), str(tmp_path), "parquet", "stop")
    assert f"{source}: cannot be read as Parquet: " in work(worker, Piece(0, str(source), 0, 1))["error"]
    assert not (tmp_path / "part-000000.parquet").exists()


@given(
    sizes=st.lists(st.integers(0, 5 << 20), min_size=1, max_size=4),
    workers=st.integers(1, 200),
)
def test_the_pieces_cover_every_byte_once(tmp_path_factory, sizes, workers):
    """Numbered in the order of the files and of the bytes; none is empty, but where everything is."""
    folder = tmp_path_factory.mktemp("sizes")
    for number, size in enumerate(sizes):
        with (folder / f"{number}.jsonl").open("wb") as file:
            file.truncate(size)
    files, form = shards(folder)
    pieces = cut(files, form, workers)
    assert list(range(len(pieces))) == [piece.number for piece in pieces]
    if not sum(sizes):
        assert [Piece(0, str(files[0]), 0, 0)] == pieces
        return
    covered = {str(file): 0 for file in files}
    for piece in pieces:
        assert covered[piece.path] == piece.start < piece.stop
        covered[piece.path] = piece.stop
    assert sizes == list(covered.values())
    assert sorted(piece.path for piece in pieces) == [piece.path for piece in pieces]


def test_parquet_in_pieces_of_row_groups(tmp_path, golden):
    """Rows, types and other columns stay; the answers' columns follow, nulls have null answers."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    texts = ["Rossi", None, "", "田中", "Müller"] * 20
    table = pa.table(
        {
            "id": pa.array(range(100), pa.int16()),
            "text": pa.array(texts, pa.large_string()),
            "day": pa.array([None] * 100, pa.date32()),
        }
    )
    source = tmp_path / "in.parquet"
    pq.write_table(table, source, row_group_size=30)
    predictor = BatchPredictor(golden / "classify")
    worker = Worker(predictor, str(tmp_path), "parquet", "stop")
    pieces = [Piece(0, str(source), 0, 1), Piece(1, str(source), 1, 4), Piece(2, str(source), 0, 0)]
    assert [work(worker, piece)["rows"] for piece in pieces] == [30, 70, 0]
    parts = [pq.read_table(tmp_path / piece.part("parquet")) for piece in pieces]
    model = ohlol.load(golden / "classify")
    labels = pa.array([None if text is None else model(text).label for text in texts], pa.string())
    assert pa.concat_tables(parts).equals(table.append_column("label", labels))
    assert [Piece(0, str(source), 0, 4)] == cut([source], "parquet", 2), (
        "row groups of few bytes share a piece"
    )


@pytest.mark.parametrize(
    ("bundle", "options"),
    [
        ("hello", {}),
        ("classify", {"probabilities": True, "prefix": "p_"}),
        ("lm", {"probabilities": True}),
        ("words", {"as_": "words"}),
        ("words", {"as_": "sentences", "probabilities": True}),
    ],
)
@pytest.mark.parametrize("rows", [["xin chào bạn.", None, "", "Rossi"] * 3, [None], []])
def test_a_part_is_what_one_process_writes(golden, tmp_path, bundle, options, rows):
    """Schema, types, nulls and values, to the last digit: the same reader and the same columns."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = pa.table(
        {
            "text": pa.array(rows, pa.large_string()),
            "kind": pa.array(["a"] * len(rows)).dictionary_encode(),
            "nested": pa.array([{"a": [1]}] * len(rows), pa.struct([("a", pa.list_(pa.int32()))])),
        }
    )
    pq.write_table(table.replace_schema_metadata({"mine": "kept"}), source, row_group_size=5)
    model = "hello" if bundle == "hello" else golden / bundle
    predict(ohlol.load(model), source=source, output=out, options=Options(**options))
    worker = Worker(BatchPredictor(model, **options), str(tmp_path), "parquet", "stop")
    groups = pq.read_metadata(source).num_row_groups
    pieces = [Piece(number, str(source), number, number + 1) for number in range(groups)]
    pieces = pieces or [Piece(0, str(source), 0, 0)]
    assert {""} == {work(worker, piece)["error"] for piece in pieces}
    parts = [tmp_path / piece.part("parquet") for piece in pieces]
    for part in parts:
        assert pq.read_schema(out).equals(pq.read_schema(part), check_metadata=True)
    assert pq.read_table(out).to_pylist() == [
        row for part in parts for row in pq.read_table(part).to_pylist()
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_parts_may_be_read_by_whom_the_umask_lets(tmp_path, form):
    """As any file that a program makes, whatever its form."""
    source = tmp_path / f"in.{form}"
    if form == "jsonl":
        source.write_text('{"text": "hello"}\n')
    else:
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        pq.write_table(pa.table({"text": ["hello"]}), source)
    (piece,) = cut([source], form, 1)
    before = os.umask(0o027)
    try:
        assert work(Worker(BatchPredictor("hello"), str(tmp_path), form, "stop"), piece)["error"] == ""
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / piece.part(form)).stat().st_mode) == 0o640


def test_what_cannot_be_read_in_parquet(tmp_path):
    """Rows are named by their number in the file and may be left out; a disk's errors are not called damage."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    source = tmp_path / "in.parquet"
    column = pa.array([b"hello", b"he", b"l", b"\xff", b"o"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), source, row_group_size=2)
    piece = Piece(0, str(source), 1, 3)
    worker = Worker(BatchPredictor("hello"), str(tmp_path), "parquet", "stop")
    assert f"{source}: row 4: not UTF-8" in work(worker, piece)["error"]
    back = work(Worker(BatchPredictor("hello"), str(tmp_path), "parquet", "skip"), piece)
    assert (back["rows"], back["skipped"], back["error"]) == (2, 1, "")
    gone = work(worker, Piece(1, str(tmp_path / "gone.parquet"), 0, 1))["error"]
    assert "No such file" in gone
    assert "cannot be read as Parquet" not in gone


def test_columns_are_looked_at_before_a_worker_starts(tmp_path):
    """A list of strings is no string; a column of an answer's name would be replaced; nulls alone are well."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    source = tmp_path / "in.parquet"
    predictor = BatchPredictor("hello")
    for table, message in (
        ({"text": [["a"]]}, "column 'text' is list<.*>, expected strings"),
        ({"text": [1]}, "column 'text' is int64, expected strings"),
        ({"text": ["a"], "labels": ["a"]}, "the input has a field 'labels'"),
        ({"txt": ["a"]}, "no column 'text'; it has txt"),
    ):
        pq.write_table(pa.table(table), source)
        with pytest.raises(InputError, match=message):
            check_schemas(predictor, [source])
    pq.write_table(pa.table({"text": pa.nulls(2)}), source)
    check_schemas(predictor, [source])


def test_shards_that_are_refused(tmp_path):
    """Nothing is left out in silence: a compressed shard, a folder in the folder, two forms, nothing at all."""
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    for hidden in ("_SUCCESS", ".a.jsonl.crc"):  # what Spark leaves beside
        (tmp_path / hidden).write_text("")
    assert ([tmp_path / "a.jsonl"], "jsonl") == shards(tmp_path)
    assert ([tmp_path / "a.jsonl"], "jsonl") == shards(f"{tmp_path}/*.jsonl")
    with pytest.raises(InputError, match="nothing there"):
        shards(tmp_path / "*.parquet")
    for odd in ("b.jsonl.gz", "README.md"):
        (tmp_path / odd).write_text("")
        with pytest.raises(InputError, match=f"{odd}: expected a file that ends in"):
            shards(tmp_path)
        (tmp_path / odd).unlink()
    (tmp_path / "day=1").mkdir()
    with pytest.raises(InputError, match="day=1: expected a file"):
        shards(tmp_path)
    (tmp_path / "day=1").rmdir()
    (tmp_path / "b.parquet").write_text("")
    with pytest.raises(InputError, match="JSON lines and Parquet"):
        shards(tmp_path)


def test_the_command_says_what_it_needs(tmp_path):
    """Wrong usage is 2, and told before anything starts."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "hello"}\n')
    out = str(tmp_path / "out")
    for arguments, message in (
        (["--engine", "ray", "-i", str(source)], "needs -i SHARDS and -o DIR"),
        (["--engine", "ray", "-o", out], "needs -i SHARDS and -o DIR"),
        (["--engine", "ray", "-i", str(source), "-o", out, "--format", "csv"], "writes the form it reads"),
        (["--engine", "ray", "-i", str(source), "-o", out, "--as", "words"], "do not mark words"),
        (["--engine", "ray", "-i", str(source), "-o", out, "--resume"], "are not for --engine ray"),
    ):
        result = CliRunner().invoke(main, ["predict", "hello", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    result = CliRunner().invoke(main, ["predict", "hello", "--engine", "ray", "-i", str(source), "-o", out])
    assert result.exit_code == 1
    assert "is there already and stays as it is" in result.stderr
    assert [file.name for file in Path(out).iterdir()] == ["mine"]


def test_a_cluster_that_is_not_there():
    """One message at once, before Ray's own minutes of trying."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        with pytest.raises(OhlolError, match=f"RAY_ADDRESS is {address}: no cluster answers there"):
            ray_engine._check_address(address)
        free.listen()
        ray_engine._check_address(address)
    ray_engine._check_address("auto")

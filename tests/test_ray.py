"""`ohlol predict --engine ray` and `BatchPredictor` on real Ray: the answers of one process, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

import ohlol
from ohlol.artifacts.errors import InputError, OhlolError
from ohlol.cli import main
from ohlol.serve import BatchPredictor
from ohlol.serve.ray_engine import Done, predict_shards

ray = pytest.importorskip("ray", reason="ray is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests of this file: starting it takes seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def rows_of(folder):
    """The rows of all parts, in the order of the parts' names."""
    parts = sorted(Path(folder).iterdir())
    if parts[0].suffix == ".parquet":
        return [row for part in parts for row in pq.read_table(part).to_pylist()]
    return [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("cluster")
def test_json_lines_shards_by_two_workers_are_what_one_process_writes(tmp_path):
    """By the command: several shards, pieces of each on two actors; the parts, in order, are the file of one process."""
    shards = tmp_path / "shards"
    shards.mkdir()
    lines = [
        json.dumps(
            {"id": n, "text": "hełlo\u2028"[: n % 7] * (n % 9), "day": "2024-01-01"}, ensure_ascii=False
        )
        for n in range(40_000)
    ]
    (shards / "a.jsonl").write_text("\n".join(lines[:35_000]) + "\n", encoding="utf-8")
    (shards / "b.jsonl").write_text("\n".join(lines[35_000:]), encoding="utf-8")
    out = tmp_path / "out"
    command = ["predict", "hello", "--engine", "ray", "--workers", "2", "-i", str(shards), "-o", str(out)]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert "40,000 rows" in result.stderr
    parts = sorted(out.iterdir())
    assert len(parts) > 2, "one piece would try nothing"
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(lines), encoding="utf-8")
    alone = CliRunner().invoke(main, ["predict", "hello", "-i", str(whole), "--format", "jsonl"])
    assert alone.stdout == "".join(part.read_text(encoding="utf-8") for part in parts)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing(tmp_path, golden):
    """SIGKILL in the midst of a part, after some of its rows were written: every row is there once, in its order."""
    texts = ["Rossi", "田中", None, "Müller", ""] * 16_000
    shards = tmp_path / "shards"
    shards.mkdir()
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    for number in range(4):
        pq.write_table(table.slice(number * 20_000, 20_000), shards / f"{number}.parquet")
    killed = tmp_path / "killed"
    here = os.getpid()

    class Mortal(BatchPredictor):  # in a function, so that it is sent whole: workers cannot import this file
        calls = 0

        @property
        def model(self):
            return super().model if os.getpid() == here else Dying(super().model, self)

    class Dying:
        def __init__(self, model, counter):
            self.model, self.counter = model, counter

        def __getattr__(self, name):
            return getattr(self.model, name)

        def answers(self, windows, **options):
            for answers in self.model.answers(windows, **options):
                yield answers
                self.counter.calls += 1
                if self.counter.calls == 3:  # one part is there, and of the next the first rows are written
                    try:
                        os.close(os.open(killed, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        pass
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)

    out = tmp_path / "out"
    predictor = Mortal(golden / "classify")
    assert Done(4, 80_000, 0) == predict_shards(predictor, shards, out, workers=1)
    assert killed.exists(), "nobody was killed"
    assert [f"part-{n:06}.parquet" for n in range(4)] == sorted(file.name for file in out.iterdir())
    model = ohlol.load(golden / "classify")
    labels = [None if text is None else model(text).label for text in texts[:5]] * 16_000
    assert table.append_column("label", pa.array(labels, pa.string())).to_pylist() == rows_of(out)


@pytest.mark.usefixtures("cluster")
def test_a_line_that_cannot_be_read_stops_all_or_is_skipped(tmp_path):
    """One message, and no folder; or the other rows, and the line named."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"text": "hello"}\n' * 10 + "oops\n" + '{"text": "l"}\n')
    predictor = BatchPredictor("hello")
    with pytest.raises(OhlolError, match=r"in\.jsonl:11: not JSON"):
        predict_shards(predictor, source, out, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]
    told = []
    assert Done(1, 11, 1) == predict_shards(
        predictor, source, out, workers=1, on_error="skip", tell=told.append
    )
    assert "in.jsonl:11: not JSON" in told[0]
    assert len(rows_of(out)) == 11


@pytest.mark.usefixtures("cluster")
def test_parquet_without_rows_and_parquet_that_does_not_fit(tmp_path):
    """No rows give a part with the columns and no rows; another type, another schema and no Parquet are told."""
    schema = pa.schema([("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    predictor = BatchPredictor("hello")
    assert Done(1, 0, 0) == predict_shards(predictor, tmp_path / "a.parquet", tmp_path / "out")
    (part,) = (tmp_path / "out").iterdir()
    assert pq.read_schema(part).names == ["text", "labels"]
    for name, content, message in (
        ("b", pa.table({"text": [1]}), "column 'text' is int64, expected strings"),
        ("c", pa.table({"name": ["a"]}), "no column 'text'"),
        ("d", pa.table({"text": ["a"], "labels": ["a"]}), "has a field 'labels'"),
    ):
        pq.write_table(content, tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match=message):
            predict_shards(predictor, tmp_path / f"{name}.parquet", tmp_path / "none")
    with pytest.raises(InputError, match="its columns are not those of"):
        predict_shards(predictor, f"{tmp_path}/[ab].parquet", tmp_path / "none")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match=r"e\.parquet: cannot be read as Parquet"):
        predict_shards(predictor, tmp_path / "e.parquet", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("form", ["pyarrow", "numpy", "pandas"])
def test_the_way_of_the_documentation(tmp_path, golden, form):
    """`read_parquet`, `map_batches(BatchPredictor, …)`, `write_parquet`, in each of Ray's kinds of batch."""
    if form == "pandas":
        pytest.importorskip("pandas", reason="pandas is not installed")
    texts = ["Rossi", "田中", None, "Müller", ""] * 100
    pq.write_table(
        pa.table({"id": range(500), "text": pa.array(texts, pa.string())}), tmp_path / "in.parquet"
    )
    (
        ray.data.read_parquet(str(tmp_path / "in.parquet"))
        .map_batches(
            BatchPredictor,
            fn_constructor_args=(str(golden / "classify"),),
            batch_format=form,
            batch_size=128,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .write_parquet(str(tmp_path / "out"))
    )
    model = ohlol.load(golden / "classify")
    expected = {n: None if text is None else model(text).label for n, text in enumerate(texts)}
    assert expected == {row["id"]: row["label"] for row in rows_of(tmp_path / "out")}

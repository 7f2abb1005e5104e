"""`BatchPredictor`: whatever an engine hands over comes back with the answers of `model(text)`, wherever it was sent."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.serve import BatchPredictor
from ohlol.serve.results import fields

TEXTS = ["hello", "", "h", "田中", "a\ttab", "hel\u2028lo", "x" * 300, "hello"]


@pytest.fixture(params=["hello", "classify", "lm", "words"])
def model_path(request, golden):
    return "hello" if request.param == "hello" else golden / request.param


def expected(path, texts, prefix="", **options):
    """The answers by the name of their column, a list for each; None for a null text."""
    model = ohlol.load(path)
    rows = [None if text is None else fields(model(text), **options) for text in texts]
    return {prefix + name: [row and row[name] for row in rows] for name in fields(model(""), **options)}


def plain(values):
    """A column's values with None for NaN, as JSON has them."""
    nothing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in values]
    return [None if missing else value for missing, value in zip(nothing, values, strict=True)]


def close(answers):
    """Batches of another size round otherwise in the seventh digit; labels and words are compared exactly."""
    if isinstance(answers, float):
        return pytest.approx(answers, abs=2e-6)
    if isinstance(answers, list):
        return [close(answer) for answer in answers]
    if isinstance(answers, dict):
        return {name: close(answer) for name, answer in answers.items()}
    return answers


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_list_gives_the_answers_of_the_model(model_path, probabilities):
    """Each answer is `fields` of the text alone, whatever stands beside it."""
    predict = BatchPredictor(model_path, probabilities=probabilities)
    columns = expected(model_path, TEXTS, probabilities=probabilities)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert close(rows) == predict(TEXTS)
    assert predict.names == list(columns)


@pytest.mark.parametrize("as_", ["words", "sentences"])
def test_words_and_sentences(golden, as_):
    """The same choice as that of `ohlol predict --as`."""
    texts = ["xin chào bạn. đi nhé", ""]
    predict = BatchPredictor(golden / "words", as_=as_)
    columns = expected(golden / "words", texts, as_=as_)
    assert columns == {name: [row[name] for row in predict(texts)] for name in columns}


@pytest.mark.parametrize("texts", [TEXTS, [None, "hello", None], ["ab", "cd"], []])
def test_arrays(model_path, texts):
    """Ray's numpy batches: other columns stay, numbers are float64, and lists of one length make no second axis."""
    batch = {"id": np.arange(len(texts)), "text": np.array(texts, dtype=object)}
    found = BatchPredictor(model_path, probabilities=True)(batch)
    columns = expected(model_path, texts, probabilities=True)
    assert ["id", "text", *columns] == list(found)
    assert batch["id"] is found["id"]
    for name, values in columns.items():
        assert (len(texts),) == found[name].shape
        number = name in ("bits_per_character", "probability")
        assert (np.float64 if number else object) == found[name].dtype
        assert close(values) == plain(found[name].tolist())


@pytest.mark.parametrize("texts", [TEXTS, [None, "hello", float("nan")], []])
def test_frames_and_series_of_pandas(model_path, texts):
    """The index and the other columns stay, rows of one index too; types do not depend on what is in a batch."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    texts = [*texts]
    index = [7 for _ in texts]
    frame = pandas.DataFrame({"text": pandas.Series(texts, index, dtype=object), "n": 1}, index=index)
    predict = BatchPredictor(model_path, probabilities=True, prefix="p_")
    columns = expected(model_path, plain(texts), prefix="p_", probabilities=True)
    for found, before in ((predict(frame), ["text", "n"]), (predict(frame["text"]), [])):
        assert [*before, *columns] == list(found.columns)
        assert index == list(found.index)
        for name, values in columns.items():
            number = name in ("p_bits_per_character", "p_probability")
            assert (np.float64 if number else object) == found[name].dtype
            assert close(values) == plain(found[name].tolist())
    assert list(frame.columns) == ["text", "n"], "the frame given is not changed"


def test_strings_of_pandas_with_its_own_null():
    """`pandas.NA` and the string types of pandas are what Dask hands over."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"text": pandas.array(["hello", pandas.NA], dtype="string")})
    assert [list("ohlol"), None] == BatchPredictor("hello")(frame)["labels"].tolist()


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_tables_of_arrow(model_path, kind):
    """One schema, whatever a batch holds: of no rows, of nulls, of empty texts, of labels in another order."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    types = {"string": pa.string(), "large_string": pa.large_string()}
    type_ = types.get(kind) or pa.dictionary(pa.int32(), pa.string())
    predict = BatchPredictor(model_path, probabilities=True)
    schemas = []
    for texts in (TEXTS, ["", None], [None], [], ["Rossi", "Müller"]):
        found = predict(pa.table({"text": pa.array(texts, pa.string()).cast(type_), "n": [1] * len(texts)}))
        columns = expected(model_path, texts, probabilities=True)
        assert ["text", "n", *columns] == found.column_names
        for name, values in columns.items():
            rows = found[name].to_pylist()
            if predict.arrow_types()[name] == pa.map_(pa.string(), pa.float32()):
                rows = [None if row is None else dict(row) for row in rows]
                assert [row and list(row) for row in values] == [row and list(row) for row in rows]
            assert close(values) == rows
        schemas.append(found.schema.remove_metadata())
    assert [schemas[0]] * len(schemas[1:4]) == [s.set(1, schemas[0].field(1)) for s in schemas[1:4]]


def test_pickled_it_answers_without_the_folder(golden, tmp_path):
    """The model travels: workers on other machines see no folder. It costs the bytes of the model file, no more."""
    folder = tmp_path / "bundle"
    shutil.copytree(golden / "classify", folder)
    predict = BatchPredictor(folder, probabilities=True)
    size = (folder / Layout.onnx).stat().st_size
    shutil.rmtree(folder)
    sent = pickle.dumps(predict)
    assert len(sent) < size + 8_000
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(['Rossi'])[0]['label'])"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.strip() == b"it"


def test_the_path_alone_travels_and_another_model_there_is_refused(golden, tmp_path):
    """`carry=False`: small to send, and a worker that finds another bundle does not answer by it in silence."""
    folder = tmp_path / "bundle"
    shutil.copytree(shipped(), folder)
    sent = pickle.dumps(BatchPredictor(folder, carry=False))
    assert len(sent) < 1_000
    answer = [{"labels": list("ohlol")}]
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(['hello']))"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert str(answer) == done.stdout.decode().strip()
    shutil.rmtree(folder)
    shutil.copytree(golden / "classify", folder)
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"holds another model here" in done.stderr


def test_a_new_bundle_in_the_same_folder_is_not_the_old_one(golden, tmp_path):
    """A long-lived worker keeps models open by what they are, not by where they lay."""
    folder = tmp_path / "bundle"
    shutil.copytree(golden / "classify", folder)
    first = BatchPredictor(folder)
    shutil.rmtree(folder)
    shutil.copytree(shipped(), folder)
    second = BatchPredictor(folder)
    assert [predict.names for predict in (first, second)] == [["label"], ["labels"]]


def test_copies_in_a_process_share_one_model(golden):
    """Spark sends a copy with every task: the session is opened once."""
    first = BatchPredictor(golden / "classify")
    copies = [pickle.loads(pickle.dumps(first)) for _ in range(3)]
    assert all(copy.model is first.model for copy in copies)
    assert BatchPredictor(golden / "classify", threads=2).model is not first.model


def test_in_processes_that_are_started_anew():
    """Spawned, as on Windows and macOS; the answers are those of this one."""
    predict = BatchPredictor("hello")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(predict, [["hello", "hell"]] * 3))
    assert [predict(["hello", "hell"])] * 3 == found


def test_by_many_threads_at_once():
    """One object, one session; no answer is another's."""
    predict = BatchPredictor("hello")
    batches = [["hello"[: n % 6], "l" * (n % 40)] for n in range(64)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(predict, batches))
    assert [predict(batch) for batch in batches] == found


@given(st.lists(st.text(max_size=20) | st.none(), max_size=12))
def test_any_text_or_null(texts):
    """As many answers as texts, in their order: None for a null, else a label for each character."""
    found = BatchPredictor("hello")(texts)
    model = ohlol.load("hello")
    assert [None if text is None else list(model(text).labels) for text in texts] == [
        row["labels"] for row in found
    ]


def test_it_says_what_it_cannot_use(golden):
    """One message that names the thing and what to do."""
    predict = BatchPredictor("hello")
    for batch, message in (
        ({"name": np.array(["a"])}, "no column 'text' in the batch, found name"),
        ({"text": np.array(["a"]), "labels": np.array([1])}, "has a column 'labels'.*--prefix"),
        ({"text": np.array([b"a"])}, "row 0 of the batch: expected a string or null, found bytes"),
        (["a", 5], "row 1 of the batch: expected a string or null, found int: 5"),
        ("hello", "a batch is a dict of arrays.*found str"),
        (("hello",), "found tuple"),
    ):
        with pytest.raises(InputError, match=message):
            predict(batch)
    with pytest.raises(InputError, match="do not mark words"):
        BatchPredictor("hello", as_="words")
    with pytest.raises(InputError, match="as_ is 'word', expected one of"):
        BatchPredictor("hello", as_="word")
    with pytest.raises(InputError, match="threads is 0"):
        BatchPredictor("hello", threads=0)
    with pytest.raises(BundleError, match="does not exist"):
        BatchPredictor(golden / "nothing")


def test_a_single_file(golden):
    """`model.onnx` alone is enough, as everywhere."""
    alone = BatchPredictor(golden / "classify" / Layout.onnx, probabilities=True)
    assert BatchPredictor(golden / "classify", probabilities=True)(["Rossi"]) == alone(["Rossi"])
    json.dumps(alone(TEXTS))  # plain values, no numpy


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    """A single file is opened as those of a bundle are: what no model can be is refused by its size."""
    file = tmp_path / "huge.onnx"
    with file.open("wb") as made:
        made.truncate(2**31)  # takes no room on the disk
    with pytest.raises(BundleError, match=r"huge\.onnx: has 2,147,483,648 bytes, expected at most"):
        BatchPredictor(file)


def test_importing_serve_stays_light():
    """`import ohlol.serve` loads neither onnxruntime nor numpy; the name is there when it is asked for."""
    code = (
        "import sys, ohlol.serve; light = {'numpy', 'onnxruntime', 'pandas', 'pyarrow', 'ray'} & set(sys.modules); "
        "from ohlol.serve import BatchPredictor; "
        "BatchPredictor('hello')(['hello']); heavy = {'pandas', 'pyarrow', 'ray'} & set(sys.modules); print(light, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"set() set()"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ohlol.serve.Nothing  # noqa: B018

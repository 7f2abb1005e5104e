"""Tensors in and out: what is sent comes back, and what is no request is a 400."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the extra `http` is not installed")
httpx = pytest.importorskip("httpx", reason="httpx, the client of these tests, is not installed")

import ohlol  # noqa: E402
from ohlol.artifacts.alphabet import codepoints  # noqa: E402
from ohlol.artifacts.bundle import Layout, shipped  # noqa: E402
from ohlol.serve.http import protocol  # noqa: E402
from ohlol.serve.http.app import App  # noqa: E402
from ohlol.serve.http.limits import JSON_NUMBERS, Limits, Refused  # noqa: E402
from ohlol.serve.http.models import Models  # noqa: E402
from ohlol.serve.http.protocol import HEADER, Request, Spec  # noqa: E402

NAMES = ("hello", "words", "classify", "lm", "files")
INPUTS = (Spec("codepoints", "INT32", (-1, -1)), Spec("lengths", "INT32", (-1,)))
TEXT = (Spec("text", "BYTES", (-1,)),)
OUTPUTS = (
    Spec("logits", "FP32", (-1, 4)),
    Spec("label_ids", "INT32", (-1,)),
    Spec("labels", "BYTES", (-1, -1)),
)
LENGTHS = {"name": "lengths", "datatype": "INT32", "shape": [1], "data": [2]}
POINTS = {"name": "codepoints", "datatype": "INT32", "shape": [1, 2], "data": [104, 101]}
# What json makes of anything at all; names of the protocol are among the strings, so that some go far.
WORDS = st.sampled_from(
    [
        "inputs",
        "outputs",
        "name",
        "shape",
        "datatype",
        "data",
        "parameters",
        "binary_data_size",
        "codepoints",
        "lengths",
        "text",
        "INT32",
        "BYTES",
        "binary_data_output",
        "labels",
        "texts",
        "model",
        "hello",
        "as",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | WORDS,
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(WORDS | st.text(max_size=4), inside, max_size=5)
    ),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def ask(golden):
    """Post bytes to a path of an application with a model of each task: code, headers, body."""
    paths = {name: "hello" if name == "hello" else str(golden / name) for name in NAMES}
    said = []
    app = App(Models(paths), Limits(workers=1), None, None, said.append)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app.gate, raise_app_exceptions=False), base_url="http://test"
        )

        def post(path, body, header=None):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {} if header is None else {HEADER: str(header)}
            answer = runner.run(client.post(path, content=content, headers=headers))
            return answer.status_code, answer.headers, answer.content

        yield post
        app.batcher.close()
    assert {line for line in said if "loaded anew" not in line} == set(), (
        "no request may be a mistake of ours"
    )


@pytest.fixture(scope="module")
def models(golden):
    return {name: ohlol.load("hello" if name == "hello" else golden / name) for name in NAMES}


def tensors(headers, body):
    """The arrays of an answer, whether they came as JSON or in binary."""
    length = int(headers.get(HEADER, len(body)))
    found, place = {}, length
    for tensor in json.loads(body[:length])["outputs"]:
        if size := tensor.get("parameters", {}).get("binary_data_size"):
            data, place = body[place : place + size], place + size
            if tensor["datatype"] == "BYTES":
                values = []
                while data:
                    end = 4 + int.from_bytes(data[:4], "little")
                    values.append(data[4:end].decode())
                    data = data[end:]
            else:
                values = np.frombuffer(data, {"INT32": "<i4", "FP32": "<f4"}[tensor["datatype"]])
        else:
            values = tensor["data"]
        dtype = {"INT32": np.int32, "FP32": np.float32, "BYTES": object}[tensor["datatype"]]
        found[tensor["name"]] = np.array(values, dtype=dtype).reshape(tensor["shape"])
    assert place == len(body), "every byte belongs to a tensor"
    return found


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_code_points(ask, models, name, binary):
    """The model of the bundle's name has the contract's tensors, as a session would give them, in JSON and binary."""
    texts = ["hello", "xin chào bạn", "田"]
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    points = np.zeros((3, 12), dtype=np.int32)
    for row, text in enumerate(texts):
        points[row, : len(text)] = codepoints(text)
    expected = models[name].outputs(points, lengths)
    inputs = [
        {"name": "codepoints", "datatype": "INT32", "shape": [3, 12]},
        {"name": "lengths", "datatype": "INT32", "shape": [3]},
    ]
    if binary:
        for tensor, array in zip(inputs, (points, lengths), strict=True):
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        request = {"id": "7", "inputs": inputs, "parameters": {"binary_data_output": True}}
        head = json.dumps(request).encode()
        code, headers, body = ask(
            f"/v2/models/{name}/infer", head + points.tobytes() + lengths.tobytes(), len(head)
        )
    else:
        inputs[0]["data"], inputs[1]["data"] = points.tolist(), lengths.tolist()  # nested, which is allowed
        code, headers, body = ask(f"/v2/models/{name}/versions/1/infer", {"id": "7", "inputs": inputs})
    assert code == 200, body
    assert headers["content-type"] == ("application/octet-stream" if binary else "application/json")
    found = tensors(headers, body)
    assert list(expected) == list(found)
    for output, array in expected.items():
        np.testing.assert_array_equal(array, found[output])


TEXTS = ["hello", "", "Scha\u0308fer 👋", "x"]


def strings(texts):
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}


@pytest.mark.parametrize("name", ["hello", "files"])
def test_texts_as_text_onnx_has_them(ask, models, golden, name):
    """NAME-text has the outputs of the bundle's own text.onnx, and normalises, which that file cannot."""
    path = shipped() if name == "hello" else golden / name
    session = onnxruntime.InferenceSession((path / Layout.text).read_bytes())
    normal = [models[name].manifest.alphabet.normalise(text) for text in TEXTS]
    labels, probabilities = session.run(["labels", "probabilities"], {"text": np.array(normal, dtype=object)})
    code, headers, answer = ask(f"/v2/models/{name}-text/infer", strings(TEXTS))
    assert code == 200, answer
    found = tensors(headers, answer)
    assert found["labels"].tolist() == labels.tolist()
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["words", "classify"])
def test_texts_of_a_bundle_without_text_onnx(ask, models, name):
    """Computed through model.onnx, so every bundle has it; rows end where their text ends."""
    model = models[name]
    code, headers, answer = ask(f"/v2/models/{name}-text/infer", strings(TEXTS))
    assert code == 200, answer
    found = tensors(headers, answer)
    for row, result in enumerate(model(TEXTS)):
        labels, probabilities = found["labels"][row], found["probabilities"][row]
        if name == "classify":
            assert labels == (result.label or "")
            by_label = [result.probabilities.get(label, 0.0) for label in model.manifest.labels]
            np.testing.assert_allclose(probabilities, by_label, atol=1e-6)
        else:
            T = len(result.text)
            assert tuple(labels[:T]) == result.labels
            assert set(labels[T:]) <= {""}
            np.testing.assert_allclose(probabilities[:T], result.probabilities, atol=1e-6)
            assert not probabilities[T:].any()


def test_requested_outputs(ask):
    """Only what was asked for comes back, in that order, each in the form that was asked for."""
    request = {
        "inputs": [POINTS, LENGTHS],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "label_ids", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
    }
    code, headers, body = ask("/v2/models/hello/infer", request)
    assert code == 200
    head = json.loads(body[: int(headers[HEADER])])
    assert [(one["name"], "data" in one) for one in head["outputs"]] == [
        ("label_ids", True),
        ("probabilities", False),
    ]
    assert tensors(headers, body)["label_ids"].tolist() == [[3, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, '"inputs": expected a list'),
        ({"inputs": [3]}, '"inputs": expected a list of objects'),
        ({"inputs": [POINTS]}, "input `lengths` is missing"),
        ({"inputs": [POINTS, POINTS, LENGTHS]}, "there twice"),
        ({"inputs": [POINTS, LENGTHS | {"name": "length"}]}, "no input is called 'length'"),
        ({"inputs": [POINTS, LENGTHS | {"datatype": "INT64"}]}, "datatype 'INT64', expected INT32"),
        ({"inputs": [POINTS, LENGTHS | {"shape": [1, 1]}]}, "has shape [1, 1], expected [-1]"),
        ({"inputs": [POINTS, LENGTHS | {"shape": [-1]}]}, "has shape [-1]"),
        ({"inputs": [POINTS, LENGTHS | {"shape": [True]}]}, "has shape [True]"),
        ({"inputs": [POINTS, LENGTHS | {"shape": [2]}]}, "1 elements, expected 2"),
        (
            {"inputs": [POINTS, LENGTHS | {"shape": [2], "data": [1, 1]}]},
            "expected [1], as `codepoints` has rows",
        ),
        ({"inputs": [POINTS, LENGTHS | {"data": [0]}]}, "found 0 to 0, expected 1 to 2"),
        ({"inputs": [POINTS, LENGTHS | {"data": [3]}]}, "found 3 to 3, expected 1 to 2"),
        ({"inputs": [POINTS, LENGTHS | {"data": [1.0]}]}, "1.0 is no INT32"),
        ({"inputs": [POINTS, LENGTHS | {"data": [2**31]}]}, "2147483648 is no INT32"),
        ({"inputs": [POINTS, LENGTHS | {"data": ["1"]}]}, "'1' is no INT32"),
        ({"inputs": [POINTS | {"data": [[1], [2]]}, LENGTHS]}, "not nested as its shape [1, 2]"),
        ({"inputs": [POINTS | {"shape": [0, 2], "data": []}, LENGTHS]}, "at least 1 row"),
        ({"inputs": [POINTS | {"shape": [1, 0], "data": []}, LENGTHS]}, "at least 1 row and 1 character"),
        ({"inputs": [POINTS | {"shape": [2**31 - 1, 2**31 - 1]}, LENGTHS]}, "2 elements, expected 46116860"),
        ({"inputs": [POINTS | {"shape": [2**31, 1]}, LENGTHS]}, "has shape"),
        ({"inputs": [POINTS | {"parameters": {"shared_memory_region": "x"}}, LENGTHS]}, "shared memory"),
        ({"inputs": [POINTS | {"parameters": {"binary_data_size": 4}}, LENGTHS]}, "send one of them"),
        (
            {"outputs": [{"name": "nope"}]},
            "no output is called 'nope'; there are: logits, probabilities, label_ids",
        ),
        ({"outputs": [{"name": "logits"}] * 2}, "there twice"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, "classification"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output is 1"),
        ({"id": 7}, '"id": expected a string'),
    ],
)
def test_what_is_no_request(ask, change, message):
    """Names, shapes, types, sizes and lengths are all told before anything reaches the runtime, which B = 0 would kill."""
    code, _, body = ask("/v2/models/hello/infer", {"inputs": [POINTS, LENGTHS]} | change)
    assert code == 400
    assert message in json.loads(body)["error"]


def test_an_empty_text_tensor(ask):
    """No strings are no request; empty strings are answered without the model."""
    code, _, body = ask("/v2/models/hello-text/infer", strings([]))
    assert (code, "at least 1" in json.loads(body)["error"]) == (400, True)
    for name, shape in (("hello", [2, 0]), ("classify", [2]), ("lm", [2, 0])):
        answer = ask(f"/v2/models/{name}-text/infer", strings(["", ""]))
        assert list(tensors(*answer[1:])["labels"].shape) == shape


@given(
    texts=st.lists(st.text(max_size=5), min_size=1, max_size=6),
    rows=st.integers(1, 4),
    id_=st.none() | st.text(min_size=1, max_size=5),
)
def test_what_is_written_is_read_back(texts, rows, id_):
    """Binary and JSON carry the same arrays: any int32, any float32, any string of UTF-8."""
    random = np.random.default_rng(rows)
    answer = {
        "logits": random.normal(size=(rows, 4)).astype(np.float32),
        "label_ids": random.integers(-(2**31), 2**31, size=rows).astype(np.int32),
        "labels": np.array([texts] * rows, dtype=object),
    }
    for binary in (True, False):
        request = Request(id_, {}, dict.fromkeys(answer, binary))
        body, headers = protocol.encode("m", "1", request, OUTPUTS, answer)
        found = tensors(headers, body)
        for name, array in answer.items():
            np.testing.assert_array_equal(array, found[name])
        assert json.loads(body[: int(headers.get(HEADER, len(body)))]).get("id") == id_


def test_too_much_for_json():
    """A wide answer in JSON would hold up the server for seconds: in binary it is taken."""
    answer = {"logits": np.zeros((JSON_NUMBERS // 4 + 1, 4), dtype=np.float32)}
    with pytest.raises(Refused, match="ask for it in binary"):
        protocol.encode("m", "1", Request(None, {}, {"logits": False}), OUTPUTS, answer)
    body, _ = protocol.encode("m", "1", Request(None, {}, {"logits": True}), OUTPUTS, answer)
    assert len(body) > 4 * JSON_NUMBERS


def whole(texts):
    """A whole binary request of texts: head and tensor."""
    data = b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in texts)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)]}
    return json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode(), data


@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (b"{}", "x", HEADER),
        (b"{}", "-1", HEADER),
        (b"{}", "3", "the body has 2 bytes"),
        (b"{}", "٣", HEADER),
        (b"{}", "9" * 5_000, HEADER),
        (b"{}", "0" * 5_000, HEADER),
        (b"abc", "0", "a request without JSON"),
        (b"".join(whole(["hello"])) + b"x", str(len(whole(["hello"])[0])), "belong to none"),
        (whole(["hello"])[0], None, "0 bytes are left"),
        (whole(["hello"])[0] + b"\x05\0\0\0hell\xff", str(len(whole(["hello"])[0])), "not UTF-8"),
        (
            whole(["hello"])[0] + b"\xff\xff\xff\xffhello",
            str(len(whole(["hello"])[0])),
            "bytes after the data",
        ),
        (
            whole(["hello"])[0].replace(b"[1]", b"[2]") + b"\x05\0\0\0hello",
            str(len(whole(["hello"])[0])),
            "1 elements",
        ),
    ],
)
def test_broken_binary(body, header, message):
    """Lengths that lie are told; nothing is read beyond the body."""
    with pytest.raises(Refused, match=message) as raised:
        protocol.parse(body, header, TEXT, OUTPUTS)
    assert raised.value.status == 400


@pytest.mark.parametrize("place", ["inputs", "name", "shape", "datatype", "data", "parameters", "id"])
def test_deep_nesting(ask, place):
    """Lists within lists, as deep as json reads them and deeper: told, and never too deep for the message itself."""
    codes = set()
    for depth in (*range(900, 1_000), 100_000):
        deep = "[" * depth + "]" * depth
        tensor = LENGTHS | {place: "DEEP"}
        request = {"inputs": [POINTS, tensor]} if place not in ("inputs", "id") else {place: "DEEP"}
        code, _, body = ask("/v2/models/hello/infer", json.dumps(request).replace('"DEEP"', deep).encode())
        codes.add(code)
        assert list(json.loads(body)) == ["error"]
    assert codes == {400}


PATHS = st.sampled_from(
    [
        "/predict",
        "/v2/models/hello/infer",
        "/v2/models/words-text/infer",
        "/v2/models/lm-text/infer",
        "/v2/repository/models/hello/load",
    ]
)


@settings(max_examples=150)
@given(path=PATHS, value=VALUES)
def test_any_json_is_answered(ask, path, value):
    """Whatever JSON comes, the answer is JSON with 200 or a 4xx that says what is wrong; never a 500."""
    code, _, body = ask(path, value)
    assert code == 200 or (400 <= code < 500 and list(json.loads(body)) == ["error"])


@settings(max_examples=150)
@given(
    path=PATHS,
    body=st.binary(max_size=60),
    header=st.none() | st.integers(-3, 80) | st.text("0123x", max_size=3),
)
def test_any_bytes_are_answered(ask, path, body, header):
    """The same for bytes that are nothing at all."""
    code, _, answer = ask(path, body, header)
    assert code == 200 or (400 <= code < 500 and list(json.loads(answer)) == ["error"])


@settings(max_examples=150)
@given(data=st.data(), texts=st.lists(st.text("helo", max_size=4), min_size=1, max_size=4))
def test_a_whole_request_that_is_damaged(ask, models, data, texts):
    """A request cut short, or with one byte changed, is refused or answered; afterwards the server answers right."""
    head, tensor = whole(texts)
    good = head + tensor
    place = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.booleans())
    bad = good[:place] if cut else good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :]
    code, _, body = ask("/v2/models/hello-text/infer", bad, min(len(head), len(bad)))
    assert code == 200 or (400 <= code < 500 and list(json.loads(body)) == ["error"])
    code, headers, body = ask("/v2/models/hello-text/infer", good, len(head))
    labels = tensors(headers, body)["labels"]
    assert ["".join(row) for row in labels.tolist()] == list(map(str, models["hello"](texts)))

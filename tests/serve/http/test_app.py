"""Every route, every limit and every refusal, without a network."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from dataclasses import replace

import pytest

pytest.importorskip("starlette", reason="the extra `http` is not installed")
httpx = pytest.importorskip("httpx", reason="httpx, the client of these tests, is not installed")

import ohlol  # noqa: E402
from ohlol.artifacts.bundle import Layout, shipped  # noqa: E402
from ohlol.serve.http.app import App  # noqa: E402
from ohlol.serve.http.gate import to_json  # noqa: E402
from ohlol.serve.http.limits import NUMBERS, Limits, Refused  # noqa: E402
from ohlol.serve.http.models import Models, named  # noqa: E402
from ohlol.serve.http.protocol import encode  # noqa: E402
from ohlol.serve.results import fields  # noqa: E402

TEXTS = {
    "hello": ["hello", "", "hell", "Ωλ\ud800\0x"],
    "words": ["xin chào bạn.", "New York", ""],
    "classify": ["Rossi", "田中", "", "Scha\u0308fer"],
    "lm": ["hello 👋 ohl", "h", ""],
}


class Caller:
    """An application in an event loop of its own; what it says is in `said`."""

    def __init__(self, paths, limits=Limits(workers=2), token=None, hosts=None):  # noqa: B008  (frozen)
        self.said = []
        self.app = App(Models(paths), limits, token, hosts, self.said.append)
        self.runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app.gate, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def __call__(self, method, path, **options):
        return self.runner.run(self.client.request(method, path, **options))

    def post(self, path, value, **headers):
        """Code and JSON of the answer."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        answer = self("POST", path, content=content, headers=headers)
        return answer.status_code, answer.json()

    def close(self):
        self.app.batcher.close()
        self.runner.close()


@pytest.fixture(scope="module")
def paths(golden):
    return {"hello": "hello", **{name: str(golden / name) for name in ("words", "classify", "lm")}}


@pytest.fixture(scope="module")
def models(paths):
    return {name: ohlol.load(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def call(paths):
    caller = Caller(paths)
    yield caller
    caller.close()


@pytest.fixture
def caller():
    """Make callers with other limits, models or a token."""
    made = []

    def make(*arguments, **options):
        made.append(Caller(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_predict_answers_as_the_model_does(call, models, name, probabilities):
    """The same fields as `ohlol predict` writes, in order, with the text that they are about."""
    model, texts = models[name], TEXTS[name]
    expected = [
        {"text": result.text, **fields(result, probabilities=probabilities)} for result in map(model, texts)
    ]
    code, found = call.post("/predict", {"texts": texts, "model": name, "probabilities": probabilities})
    assert (200, name) == (code, found["model"])
    assert len(expected) == len(found["results"])
    for want, have in zip(expected, found["results"], strict=True):
        assert list(want) == list(have)
        for key, value in want.items():
            assert have[key] == (pytest.approx(value, abs=1e-5) if "prob" in key or "bits" in key else value)


def test_words_and_sentences(call, models):
    """`as` gives what a person wants of a model whose labels mark words."""
    text = "chào bạn. xin chào New York"
    _, words = call.post("/predict", {"texts": [text], "model": "words", "as": "words"})
    _, sentences = call.post("/predict", {"texts": [text], "model": "words", "as": "sentences"})
    assert words["results"][0]["words"] == ["chào", "bạn", ".", "xin chào", "New York"]
    assert sentences["results"][0]["sentences"] == ["chào bạn.", "xin chào New York"]


def test_one_model_needs_no_name(caller):
    """With one model served, a request is as short as it can be; no texts have no answers."""
    call = caller({"hello": "hello"})
    assert ((found := call.post("/predict", {"texts": ["hello"]}))[0], found[1]["model"]) == (200, "hello")
    assert call.post("/predict", {"texts": []}) == (200, {"model": "hello", "results": []})


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", 400, "not JSON"),
        (b"\xff{}", 400, "not JSON"),
        (b'{"texts": ["a"], "x": NaN}', 400, "NaN is no JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"texts": [' + b"9" * 5_000 + b"]}", 400, "not JSON"),
        ([], 400, "expected a JSON object"),
        ({}, 400, '"texts": expected a list of strings'),
        ({"texts": "hello"}, 400, '"texts": expected a list of strings'),
        ({"texts": ["hello", 3]}, 400, '"texts": expected a list of strings'),
        ({"texts": [], "text": ""}, 400, "unknown: 'text'"),
        ({"texts": ["hello"]}, 400, "several models are served"),
        ({"texts": ["hello"], "model": 3}, 400, '"model"'),
        ({"texts": ["hello"], "model": "nope"}, 404, "no model 'nope' here; there are: hello, words"),
        ({"texts": ["hello"], "model": "hello", "as": "words"}, 400, "do not mark words"),
        ({"texts": ["hello"], "model": "words", "as": ["words"]}, 400, '"as"'),
        ({"texts": ["hello"], "model": "hello", "probabilities": 1}, 400, '"probabilities"'),
    ],
)
def test_what_predict_refuses(call, body, code, message):
    """One clear message each, and none of them reaches a model."""
    found, answer = call.post("/predict", body)
    assert (code, ["error"]) == (found, list(answer))
    assert message in answer["error"]


def test_limits(caller):
    """Each limit has a code and names its option; what is just within it passes."""
    limits = Limits(body=200, texts=2, characters=10, workers=1)
    call = caller({"hello": "hello"}, limits)

    def chunks():
        for _ in range(30):
            yield b'{"texts":'

    async def chunked():
        for chunk in chunks():
            yield chunk

    assert call.post("/predict", {"texts": ["hello", "hello"]})[0] == 200
    for value, code, option in [
        ({"texts": ["a", "b", "c"]}, 422, "--max-texts"),
        ({"texts": ["hello", "hello!"]}, 422, "--max-characters"),
        ({"texts": ["x" * 200]}, 413, "--max-body"),
    ]:
        found, answer = call.post("/predict", value)
        assert code == found
        assert option in answer["error"]
    answer = call("POST", "/predict", content=chunked())  # with no length said, it is counted while it comes
    assert (answer.status_code, "--max-body" in answer.text) == (413, True)
    infer = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["hellohell", ""]}]}
    found, answer = call.post("/v2/models/hello-text/infer", infer)
    assert (found, "--max-characters" in answer["error"]) == (422, True), "padding is computed, so it counts"


def test_a_limit_on_numbers():
    """A wide answer (an lm model of a large alphabet) has its own limit: memory, not time, is what it costs."""
    limits = Limits(characters=100_000)
    limits.check_characters(100_000, "", 80)
    with pytest.raises(Refused, match="each is answered by 5,000 numbers"):
        limits.check_characters(NUMBERS // 5_000 + 1, "", 5_000)


def test_normalising_is_bounded_and_beside_the_event_loop(caller):
    """A text that is too long is never normalised, and one that is long not in the thread that serves everyone."""
    call = caller({"hello": "hello"}, Limits(characters=5_000, workers=1))
    model = call.app.models.loaded["hello"].model
    normalised = []

    class Alphabet(type(model.manifest.alphabet)):
        def normalise(self, text):
            normalised.append((len(text), threading.current_thread() is threading.main_thread()))
            return super().normalise(text)

    alphabet = model.manifest.alphabet
    model.manifest = replace(model.manifest, alphabet=Alphabet(alphabet.characters, alphabet.normalisation))
    marks = "e" + "\u0301\u0323" * 2_000

    def ask(*texts):
        infer = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        yield call.post("/predict", {"texts": texts})
        yield call.post("/v2/models/hello-text/infer", {"inputs": [infer]})

    for code, answer in ask(marks, marks):
        assert (code, "--max-characters" in answer["error"]) == (422, True)
    assert normalised == []
    assert [code for code, _ in ask(marks)] == [200, 200]
    assert {where for length, where in normalised if length > 2_000} == {False}
    for code, answer in ask("\u0958" * 3_000):  # two characters each once it is normalised
        assert (code, "6,000 characters" in answer["error"]) == (422, True)


def test_a_long_answer_is_written_by_its_worker(call, monkeypatch):
    """Neither in the thread that serves everyone, nor in one more, before which answers could pile up."""
    threads = []

    def noted(function):
        def noting(*arguments, **options):
            threads.append(threading.current_thread().name.partition("_")[0])
            return function(*arguments, **options)

        return noting

    monkeypatch.setattr("ohlol.serve.http.app.to_json", noted(to_json))
    monkeypatch.setattr("ohlol.serve.http.protocol.encode", noted(encode))
    text = "hello" * 2_000
    infer = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    code, answer = call.post("/predict", {"texts": [text], "model": "hello"})
    assert (code, "".join(answer["results"][0]["labels"])) == (200, str(ohlol.load("hello")(text)))
    assert call.post("/v2/models/hello-text/infer", {"inputs": [infer]})[0] == 200
    points = [
        {"name": "codepoints", "datatype": "INT32", "shape": [1, 10_000], "data": list(map(ord, text))},
        {"name": "lengths", "datatype": "INT32", "shape": [1], "data": [10_000]},
    ]
    assert call.post("/v2/models/hello/infer", {"inputs": points})[0] == 200
    assert threads == ["model"] * 3


def test_a_compressed_body_is_refused(call):
    """What a body unpacks to has no limit that a server could check beforehand."""
    assert call.post("/predict", {"texts": []}, **{"content-encoding": "gzip"})[0] == 415


def test_a_token(caller):
    """Without it only the page and the health checks answer; it stands in no answer and no message."""
    call = caller({"hello": "hello"}, token="s3cret-token")
    wrong = [{}, {"authorization": "Bearer s3cret"}, {"authorization": "s3cret-token"}]
    wrong += [{"authorization": "Bearer s3cret-token2"}, {"authorization": b"Bearer \xff\xfe"}]
    for headers in wrong:
        for method, path in (("POST", "/predict"), ("GET", "/models"), ("GET", "/metrics"), ("GET", "/nope")):
            answer = call(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "s3cret" not in answer.text
    for path in ("/", "/health", "/v2/health/live", "/v2/health/ready"):
        assert call("GET", path).status_code == 200
    right = {"authorization": "Bearer s3cret-token"}
    assert call.post("/predict", {"texts": ["hello"]}, **right)[0] == 200
    assert call.said == []


def test_pages_of_other_sites_are_refused(call):
    """A page anywhere can make a browser post to a server on this machine; the browser says where the page is from."""
    texts = {"texts": ["hello"], "model": "hello"}
    for site in ("cross-site", "same-site"):
        assert call.post("/predict", texts, **{"sec-fetch-site": site})[0] == 403
        assert call.post("/v2/repository/models/hello/unload", {}, **{"sec-fetch-site": site})[0] == 403
    for site in ("same-origin", "none"):
        assert call.post("/predict", texts, **{"sec-fetch-site": site})[0] == 200


def test_other_names_are_refused(caller):
    """A page whose name leads to this machine is its own site to a browser: only the Host says that it is not."""
    call = caller({"hello": "hello"}, hosts=frozenset({"localhost", "box"}))
    texts = {"texts": ["hello"]}
    for host in (
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[::1]",
        "192.0.2.7",
        "Box:80",
    ):
        assert call.post("/predict", texts, host=host)[0] == 200, host
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "box2",
    ):
        code, answer = call.post("/predict", texts, host=host)
        assert (code, repr(host) in answer["error"], "--token-file" in answer["error"]) == (403, True, True)
        assert call.post("/v2/repository/models/hello/unload", {}, host=host)[0] == 403
        assert call("GET", "/models", headers={"host": host}).status_code == 403
        assert call("GET", "/health", headers={"host": host}).status_code == 200


def test_what_is_no_route(call):
    """404 and 405 are JSON like every other error."""
    assert ((found := call("GET", "/nope")).status_code, "error" in found.json()) == (404, True)
    answer = call("GET", "/predict")
    assert (answer.status_code, answer.headers["allow"], "error" in answer.json()) == (405, "POST", True)
    assert call("GET", "/v2/models/hello/versions/2").status_code == 404
    assert call("GET", "/v2/models/nope-text/ready").status_code == 404


def test_a_mistake_of_ours_is_a_500(caller):
    """The client learns that it was not its fault, and nothing else; the server's log has the rest."""
    call = caller({"hello": "hello"})
    served = call.app.models.loaded["hello"]

    class Broken:
        manifest = served.manifest

        def __call__(self, texts):
            raise ZeroDivisionError

    call.app.models.loaded["hello"] = replace(served, model=Broken())
    code, answer = call.post("/predict", {"texts": ["what nobody may read"]})
    assert (code, list(answer)) == (500, ["error"])
    assert "ZeroDivisionError" not in answer["error"]
    (said,) = call.said
    assert "ZeroDivisionError" in said
    assert "what nobody may read" not in said


def test_health_says_when_a_model_is_gone(caller):
    """Unloaded, a model answers 404 and the server is not ready; loaded again, all is well."""
    call = caller({"hello": "hello", "other": "hello"})
    assert ((found := call("GET", "/health")).status_code, found.json()["status"]) == (200, "ready")
    assert call.post("/v2/repository/models/hello/unload", b"") == (200, {})
    assert call.post("/predict", {"texts": ["hello"], "model": "hello"})[0] == 404
    assert 503 == call("GET", "/health").status_code == call("GET", "/v2/health/ready").status_code
    states = {one["name"]: one["state"] for one in call("POST", "/v2/repository/index").json()}
    gone = dict.fromkeys(("hello", "hello-text"), "UNAVAILABLE")
    assert gone | dict.fromkeys(("other", "other-text"), "READY") == states
    assert call.post("/v2/repository/models/hello-text/load", {})[0] == 200
    assert call.post("/predict", {"texts": ["hello"], "model": "hello"})[0] == 200
    assert call.post("/v2/repository/models/nope/load", {})[0] == 404
    code, answer = call.post("/v2/repository/models/hello/load", {"parameters": {"config": "{}"}})
    assert (code, "config" in answer["error"]) == (400, True)


def test_a_bundle_is_loaded_anew(caller, golden, tmp_path):
    """The path's new content answers after it is loaded; a broken one leaves the old model where it is."""
    shutil.copytree(shipped(), tmp_path / "b")
    call = caller({"b": str(tmp_path / "b")})
    digest = call("GET", "/models").json()["models"][0]["sha256"]
    shutil.rmtree(tmp_path / "b")
    shutil.copytree(golden / "classify", tmp_path / "b")
    assert list(call.post("/predict", {"texts": ["Rossi"]})[1]["results"][0])[1:] == ["labels"]
    code, about = call.post("/v2/repository/models/b/load", b"")
    assert (code, about["task"], about["sha256"] != digest) == (200, "classify", True)
    assert call.post("/predict", {"texts": ["Rossi"]})[1]["results"][0]["label"] == "it"
    (tmp_path / "b" / Layout.onnx).write_bytes(b"broken")
    code, answer = call.post("/v2/repository/models/b/load", b"")
    assert code == 409
    assert "damaged or changed" in answer["error"]
    assert "the one loaded before goes on" in answer["error"]
    assert call.post("/predict", {"texts": ["Rossi"]})[1]["results"][0]["label"] == "it"
    assert [re.search("loaded anew|cannot be loaded", line)[0] for line in call.said] == [
        "loaded anew",
        "cannot be loaded",
    ]


def test_the_description_has_every_route_and_no_other(call):
    """The routes of the server and the paths of /openapi.json are the same, method by method."""
    described = {
        (path, method.upper())
        for path, operations in call("GET", "/openapi.json").json()["paths"].items()
        for method in operations
    }
    routes = {
        (route.path, method) for route in call.app.gate.router.routes for method in route.methods - {"HEAD"}
    }
    assert routes == described


def test_the_description_fits_what_is_sent_and_answered(call, models):
    """Requests and answers of every route are what /openapi.json says, errors too."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    document = call("GET", "/openapi.json").json()
    validator = jsonschema.Draft202012Validator

    def check(schema, value):
        validator.check_schema(schema)
        validator({**schema, "components": document["components"]}).validate(value)

    asked = []
    for name, texts in TEXTS.items():
        asked.append(("/predict", "post", "/predict", {"texts": texts, "model": name, "probabilities": True}))
        asked.append(("/predict", "post", "/predict", {"texts": texts, "model": name}))
        asked += [("/v2/models/{name}", "get", f"/v2/models/{name}{kind}", None) for kind in ("", "-text")]
        infer = {
            "id": "1",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}],
        }
        asked.append(("/v2/models/{name}/infer", "post", f"/v2/models/{name}-text/infer", infer))
    asked.append(("/predict", "post", "/predict", {"texts": ["xin"], "model": "words", "as": "words"}))
    asked.append(("/v2/models/{name}/infer", "post", "/v2/models/hello/infer", {"inputs": []}))
    asked.append(("/v2/models/{name}/ready", "get", "/v2/models/hello/ready", None))
    asked.append(("/v2/repository/index", "post", "/v2/repository/index", {}))
    asked.append(("/v2/repository/models/{name}/load", "post", "/v2/repository/models/hello/load", {}))
    asked += [(path, "get", path, None) for path in ("/health", "/models", "/v2", "/v2/health/live")]
    asked += [(path, "get", path, None) for path in ("/v2/health/ready", "/openapi.json")]
    asked.append(("/predict", "post", "/predict", {"texts": []}))
    for template, method, path, value in asked:
        operation = document["paths"][template][method]
        content = None if value is None else json.dumps(value).encode()
        answer = call(method, path, content=content)
        described = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        check(described, answer.json())
        if value is not None and answer.status_code == 200:
            check(operation["requestBody"]["content"]["application/json"]["schema"], value)


def test_metrics(caller):
    """Counters by route and code, never by path; a text that a Prometheus server reads."""
    call = caller({"hello": "hello"})
    for _ in range(3):
        call.post("/predict", {"texts": ["hello", "hell"]})
    call.post("/predict", {"texts": [3]})
    call("GET", "/some/path")
    call("BREW", "/predict")
    answer = call("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("\n")
    sample = re.compile(r'([a-z_]+)(?:\{((?:[a-z0-9_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
    values, types = {}, {}
    for line in answer.text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("#"):
            name, labels, value = sample.fullmatch(line).groups()
            family = re.sub("_(bucket|sum|count)$", "", name)
            assert types[name if name in types else family] in ("counter", "gauge", "histogram")
            values[name, labels] = float(value)
    assert values["ohlol_requests_total", 'route="/predict",method="POST",code="200"'] == 3
    assert values["ohlol_requests_total", 'route="/predict",method="POST",code="400"'] == 1
    assert values["ohlol_requests_total", 'route="none",method="GET",code="404"'] == 1
    assert values["ohlol_requests_total", 'route="/predict",method="other",code="405"'] == 1
    assert (values["ohlol_batch_texts_count", None], values["ohlol_batch_texts_sum", None]) == (3, 6)
    assert values["ohlol_characters_total", None] == 27
    assert values["ohlol_request_seconds_bucket", 'route="/predict",le="+Inf"'] == 5
    assert values["ohlol_request_seconds_count", 'route="/predict"'] == 5
    assert any(name == "ohlol_model_info" and 'model="hello",task="tag"' in labels for name, labels in values)


def test_too_many_connections(caller):
    """Beyond the limit a request is told so, but whether the server lives can still be asked."""
    call = caller({"hello": "hello"}, replace(Limits(), connections=3))
    call.app.gate.connections = lambda: 4
    answer = call("GET", "/models")
    assert (
        answer.status_code,
        answer.headers["connection"],
        answer.headers["retry-after"],
    ) == (503, "close", "1")
    assert "--connections" in answer.json()["error"]
    assert call("GET", "/health").status_code == 200


def test_names(golden, tmp_path, monkeypatch):
    """A model is called as its folder is, or as one says; two of a name are refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "names18" / "bundle").mkdir(parents=True)
    (tmp_path / "a=b").mkdir()
    expected = {"hello": "hello", "words": f"{golden}/words", "x": "hello", "names18": "runs/names18/bundle"}
    assert expected == named(["hello", f"{golden}/words", "x=hello", "runs/names18/bundle"])
    assert named(["a/m.onnx"]) == {"m": "a/m.onnx"}
    for wrong, message in [
        (["hello", "hello"], "would both be called 'hello'; choose another: NAME=hello"),
        (["hello", "hello-text=x"], "would both be called"),
        (["hello-text=x", "hello"], "would both be called"),
        (["a b=hello"], "cannot be a model's name"),
        (["a=b"], "cannot be a model's name"),
    ]:
        with pytest.raises(ohlol.artifacts.errors.OhlolError, match=re.escape(message)):
            named(wrong)

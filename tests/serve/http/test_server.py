"""The server as a process: real clients, clients that misbehave, load, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from urllib.request import urlopen

import click
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `http` is not installed")
pytest.importorskip("uvicorn", reason="the extra `http` is not installed")

import ohlol
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import Layout
from ohlol.cli import main as cli

HANGUP = getattr(signal, "SIGHUP", None)


def words(seed):
    """Texts without end, others for each seed."""
    drawn = random.Random(seed)
    while True:
        yield "".join(drawn.choices("helo ", k=drawn.randint(0, 40)))


def labels(answer):
    return ["".join(result["labels"]) for result in json.loads(answer)["results"]]


# The protocol, with the client that Triton's users have.


@pytest.fixture(scope="module")
def triton(shared):
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    opened = client.InferenceServerClient(f"127.0.0.1:{shared.port}", concurrency=4)
    yield client, opened
    opened.close()


def test_triton_reads_what_is_served(triton):
    """Health, metadata and index, as the client asks for them."""
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("hello-text", "1")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "ohlol"
    metadata = client.get_model_metadata("classify")
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("logits", "FP32", [-1, 3]),
        ("probabilities", "FP32", [-1, 3]),
        ("label_ids", "INT32", [-1]),
    ]
    index = {one["name"] for one in client.get_model_repository_index()}
    assert index == {name + kind for name in ("hello", "words", "classify", "lm") for kind in ("", "-text")}
    client.load_model("lm")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["hello", "words", "classify", "lm"])
def test_triton_infers_from_code_points(triton, golden, name, binary):
    """The arrays of a session, bit for bit, in JSON and binary, with outputs chosen or all of them."""
    library, client = triton
    text = "xin chào hello"
    points, lengths = codepoints(text)[None], np.array([len(text)], dtype=np.int32)
    model = ohlol.load("hello" if name == "hello" else golden / name)
    expected = model.outputs(points, lengths)
    inputs = [
        library.InferInput("codepoints", points.shape, "INT32"),
        library.InferInput("lengths", lengths.shape, "INT32"),
    ]
    inputs[0].set_data_from_numpy(points, binary_data=binary)
    inputs[1].set_data_from_numpy(lengths, binary_data=binary)
    chosen = [library.InferRequestedOutput("probabilities", binary_data=binary)]
    for outputs in (None, chosen):
        result = client.infer(name, inputs, outputs=outputs, request_id="42")
        assert result.get_response()["id"] == "42"
        for output, array in expected.items():
            found = result.as_numpy(output)
            if outputs is None or output == "probabilities":
                np.testing.assert_array_equal(array, found)
            else:
                assert found is None


@pytest.mark.parametrize("binary", [False, True])
def test_triton_infers_from_texts(triton, golden, binary):
    """Strings in, strings out, several clients at once."""
    library, client = triton
    model = ohlol.load(golden / "words")
    texts = ["xin chào bạn.", "New York", "", "hello"]
    tensor = library.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    asked = [client.async_infer("words-text", [tensor]) for _ in range(4)]
    asked.append(
        client.async_infer("words-text", [tensor], outputs=[library.InferRequestedOutput("labels", binary)])
    )
    for one in asked:
        rows = one.get_result().as_numpy("labels")
        found = [[cell.decode() if isinstance(cell, bytes) else cell for cell in row] for row in rows]
        for text, row in zip(texts, found, strict=True):
            assert tuple(row[: len(text)]) == model(text).labels
            assert set(row[len(text) :]) <= {""}


def test_triton_is_told_what_is_wrong(triton):
    """The client raises with the server's own words."""
    library, client = triton
    tensor = library.InferInput("codepoints", [0, 3], "INT32")
    tensor.set_data_from_numpy(np.zeros((0, 3), dtype=np.int32))
    lengths = library.InferInput("lengths", [0], "INT32")
    lengths.set_data_from_numpy(np.zeros(0, dtype=np.int32))
    error = sys.modules["tritonclient.utils"].InferenceServerException
    with pytest.raises(error, match="at least 1 row"):
        client.infer("classify", [tensor, lengths])
    with pytest.raises(error, match="no model 'nope' here"):
        client.get_model_metadata("nope")


def test_the_page_of_the_docs(triton, shared):
    """docs/http.md: its Python prints what it shows; the options and metrics it names are there, with those defaults."""
    path = Path(__file__).parents[3] / "docs" / "http.md"
    if not path.is_file():
        pytest.skip("the documentation is not beside these tests")
    page = path.read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    code = code.replace("localhost:8000", f"127.0.0.1:{shared.port}")
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == shown, ran.stderr
    options = {
        name: option for option in cli.get_command(click.Context(cli), "serve").params for name in option.opts
    }
    named = set(re.findall(r"(?<![-\w])--[a-z]+(?:-[a-z]+)*", page)) - {
        "--as",
        "--format",
    }  # those of predict
    assert named - options.keys() == set()
    rows = re.findall(r"^\| `(--[a-z-]+)`.*?\| ([\d,]+) ?(MiB|s)? ?\|", page, re.MULTILINE)
    units = {"MiB": 2**20, "s": 1, "": 1}
    assert len(rows) >= 7
    for name, value, unit in rows:
        assert options[name].default == int(value.replace(",", "")) * units[unit], name
    with urlopen(f"{shared.url}/metrics", timeout=60) as answer:
        metrics = answer.read().decode()
    assert [name for name in re.findall(r"`(ohlol_[a-z_]+)`", page) if f"# TYPE {name} " not in metrics] == []


# Clients that misbehave.


def test_clients_that_misbehave(serve, connect, run):
    """Connections that stop or drop anywhere, what is not HTTP, bodies too large: each gets an answer of its own, and
    the others are answered all the while."""
    server = serve("hello", "--max-body", "100000")
    request = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: "
    right = b'20\r\n\r\n{"texts": ["hello"]}'

    async def too_large():
        client = await connect(server.port)
        return await client.post("/predict", b" " * 5_000_000)

    async def too_large_in_chunks():
        client = await connect(server.port)
        await client.send(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(200):
            await client.send(b"400\r\n" + b" " * 1024 + b"\r\n")
        return await client.answer()

    async def no_http(data):
        client = await connect(server.port)
        await client.send(data)
        return await client.answer()

    async def stopped(size):
        client = await connect(server.port)
        await client.send((request + right)[:size])
        return client

    async def dropped(size):
        (await stopped(size)).abort()

    async def well_behaved():
        client = await connect(server.port)
        for _ in range(300):
            code, _, body = await client.post("/predict", {"texts": ["hello"]})
            assert (code, labels(body)) == (200, ["ohlol"])
            await asyncio.sleep(0.005)

    async def main():
        async with asyncio.TaskGroup() as group:
            for size in range(1, len(request + right), 7):
                await stopped(size)
            tasks = {
                name: group.create_task(one)
                for name, one in {
                    "too large": too_large(),
                    "chunks": too_large_in_chunks(),
                    "no http": no_http(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
                    "bad chunk": no_http(
                        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
                    ),
                    "large header": no_http(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000),
                }.items()
            }
            for size in range(1, len(request + right) + 1, 3):
                group.create_task(dropped(size))
            group.create_task(well_behaved())
        return {name: task.result() for name, task in tasks.items()}

    found = run(main())
    codes = {name: code for name, (code, _, _) in found.items()}
    assert codes == {
        "too large": 413,
        "chunks": 413,
        "no http": 400,
        "bad chunk": 400,
        "large header": 400,
    }
    for name, (_, _, body) in found.items():
        assert list(json.loads(body)) == ["error"], name
    server.tell(signal.SIGTERM)
    code, out, said = server.end()
    assert (code, out) == (0, "")
    assert "Traceback" not in said


def test_who_sends_no_header_is_hung_up_on(serve, connect, run):
    """A connection without a whole header lives for --read-timeout, no longer."""
    server = serve("hello", "--read-timeout", "1")

    async def main():
        client = await connect(server.port)
        await client.send(b"POST /predict HTTP/1.1\r\n")
        return await client.answer()

    assert run(main())[0] == 0


def test_who_takes_no_answer_is_hung_up_on(serve):
    """A client that asks for megabytes and never reads them holds its connection for --read-timeout, no longer."""
    server = serve("hello", "--read-timeout", "1", "--grace", "600")
    body = json.dumps({"texts": ["hello" * 20_000], "probabilities": True}).encode()
    request = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.sendall(request)  # one answer alone might fit into the buffers on the way
        server.tell(signal.SIGTERM)
        code, _, said = server.end()  # or else it would wait for --grace
    assert (code, "Traceback" in said) == (0, False), said


def test_connections_without_end(serve, connect, run):
    """Beyond the limit requests are told so; far beyond it connections are closed; then all is as before."""
    server = serve("hello", "--connections", "4", "--read-timeout", "600")  # or else that would end them

    async def main():
        first = [await connect(server.port) for _ in range(4)]
        assert (await first[0].post("/predict", {"texts": ["hello"]}))[0] == 200
        fifth = await connect(server.port)
        code, headers, body = await fifth.post("/predict", {"texts": ["hello"]})
        assert (code, headers["connection"]) == (503, "close")
        assert "--connections" in json.loads(body)["error"]
        many = [await connect(server.port) for _ in range(120)]
        ends = [asyncio.create_task(ended(client)) for client in many]
        for end in islice(asyncio.as_completed(ends), 120 - 64):
            await end
        for client in (*first, *many):
            client.abort()
        while True:  # until the server has noticed
            client = await connect(server.port)
            with contextlib.suppress(ConnectionError):
                if (await client.post("/predict", {"texts": ["hello"]}))[0] == 200:
                    return

    async def ended(client):
        with contextlib.suppress(ConnectionError):
            assert await client.reader.read() == b""

    run(main())


# Load.


@pytest.mark.parametrize("options", [[], ["--queue", "4", "--workers", "1"]])
def test_no_answer_is_wrong_or_lost(serve, connect, run, golden, options):
    """Many clients, each with texts of its own, on two models: every request has its own right answer, or at saturation
    a 503 that says so; none hangs."""
    server = serve("hello", golden / "words", *options)
    models = {"hello": ohlol.load("hello"), "words": ohlol.load(golden / "words")}
    codes = []

    async def one(number):
        client = await connect(server.port)
        for turn, text in zip(range(25), words(number), strict=False):
            name = ("hello", "words")[(number + turn) % 2]
            texts = [text, f"{number} {turn}"]
            code, headers, body = await client.post("/predict", {"texts": texts, "model": name})
            codes.append(code)
            if code == 200:
                assert labels(body) == [str(models[name](text)) for text in texts]
            else:
                assert (code, headers["retry-after"]) == (503, "1")
                assert "--queue" in json.loads(body)["error"]
        client.close()

    async def main():
        await asyncio.gather(*map(one, range(40)))

    run(main())
    assert len(codes) == 40 * 25
    assert (503 in codes) == bool(options), "saturation is what the second case is for"
    assert 200 in codes


def test_what_was_begun_is_finished(serve, connect, run):
    """SIGTERM under load: every request that was sent has its whole right answer, then the connections end, code 0."""
    server = serve("hello")
    model = ohlol.load("hello")
    counts = []

    async def one(number, started):
        client = await connect(server.port)
        answered = 0
        for text in words(number):
            code, headers, body = await client.post("/predict", {"texts": [text] * 20})
            assert code == 200, "a request that was sent and lost"
            assert labels(body) == [str(model(text))] * 20
            answered += 1
            started.set()
            if headers.get("connection") == "close":
                break
        assert await client.reader.read() == b""
        counts.append(answered)

    async def main():
        started = [asyncio.Event() for _ in range(30)]
        tasks = [asyncio.create_task(one(number, event)) for number, event in enumerate(started)]
        await asyncio.gather(*(event.wait() for event in started))
        server.tell(signal.SIGTERM)
        await asyncio.gather(*tasks)

    run(main())
    code, out, said = server.end()
    assert (code, out) == (0, ""), said
    assert len(counts) == 30
    assert "SIGTERM: stopping" in said


def test_a_request_under_way_is_taken(serve, connect, run):
    """One whose first bytes came before the server was told to stop, and the rest after it: answered, then closed."""
    request = b'POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n{"texts": ["hello"]}'

    async def main(server):
        client = await connect(server.port)
        await client.send(request)
        assert (await client.answer())[0] == 200
        await client.send(request[:10])
        server.tell(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while True:  # until nothing listens any more, so that the end has begun for every connection
                (await connect(server.port)).close()
        await client.send(request[10:])
        return await client.answer()

    code, headers, body = run(main(serve("hello")))
    assert (code, headers["connection"], labels(body)) == (200, "close", ["ohlol"])


def test_what_cannot_be_finished_is_cut_off(serve, connect, run):
    """Beyond --grace a request is answered with 503, and the exit code says that it was not all finished."""
    server = serve("hello", "--grace", "1", "--read-timeout", "60")

    async def main():
        client = await connect(server.port)
        await client.send(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        await client.send(b" ")
        other = await connect(server.port)
        assert (await other.post("/predict", {"texts": ["hello"]}))[0] == 200  # by now the first one is begun
        server.tell(signal.SIGTERM)
        return await client.answer()

    code, _, body = run(main())
    assert (code, "--grace" in json.loads(body)["error"]) == (503, True)
    code, _, said = server.end()
    assert code == 1
    assert "cut off" in said
    assert "Traceback" not in said


@pytest.mark.skipif(HANGUP is None, reason="this system has no SIGHUP")
def test_reloading_drops_nothing(serve, connect, run, golden, tmp_path):
    """Bundles swapped and broken under load, by signal and by request: every answer is that of one of the two models,
    whole, and after a load that succeeded only of the new one."""
    folder = tmp_path / "m"
    shutil.copytree(golden / "lm", folder)
    server = serve(folder)
    old, new = (ohlol.load(golden / name) for name in ("lm", "files"))
    text = "hello 👋 ohl"
    expected = [model(text).bits_per_character for model in (old, new)]
    assert abs(expected[0] - expected[1]) > 1e-3
    seen = []

    async def ask(client):
        code, _, body = await client.post("/predict", {"texts": [text]})
        assert code == 200
        bits = json.loads(body)["results"][0]["bits_per_character"]
        which = [k for k in (0, 1) if bits == pytest.approx(expected[k], abs=1e-4)]
        assert len(which) == 1
        return which[0]

    def put(name):
        shutil.copytree(golden / name, tmp_path / "next")
        folder.rename(tmp_path / "gone")
        (tmp_path / "next").rename(folder)
        shutil.rmtree(tmp_path / "gone")

    async def main():
        done = asyncio.Event()

        async def load(client):
            while not done.is_set():
                seen.append(await ask(client))

        tasks = [asyncio.create_task(load(await connect(server.port))) for _ in range(8)]
        client = await connect(server.port)
        for which, name in ((1, "files"), (0, "lm"), (1, "files"), (0, "lm")):
            put(name)
            assert (await client.post("/v2/repository/models/m/load", b""))[0] == 200
            assert await ask(client) == which
        (folder / Layout.onnx).write_bytes(b"broken")
        code, _, body = await client.post("/v2/repository/models/m/load", b"")
        assert (code, "damaged" in json.loads(body)["error"]) == (409, True)
        assert await ask(client) == 0
        put("files")
        server.tell(HANGUP)
        while await ask(client) == 0:
            pass
        done.set()
        await asyncio.gather(*tasks)

    run(main())
    assert set(seen) == {0, 1}


# The command.


def test_a_server_without_a_token_has_no_other_name(serve, connect, run):
    """On this machine a name that is not the server's is refused unless there is a token."""
    request = (
        b'POST /predict HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 20\r\n%s\r\n{"texts": ["hello"]}'
    )

    async def ask(server, header=b""):
        client = await connect(server.port)
        await client.send(request % header)
        return (await client.answer())[0]

    assert run(ask(serve("hello"))) == 403
    bearing = serve("hello", environment={"OHLOL_TOKEN": "t"})
    assert run(ask(bearing, b"authorization: Bearer t\r\n")) == 200


def test_the_token_shows_nowhere(serve, connect, run, tmp_path):
    """From the environment or a file, never an argument: not in what the server says, nor in its list of processes."""
    (tmp_path / "token").write_text("from-a-file\n")
    for server, token in (
        (serve("hello", environment={"OHLOL_TOKEN": "from-the-environment"}), "from-the-environment"),
        (serve("hello", "--token-file", tmp_path / "token"), "from-a-file"),
    ):

        async def main(server=server, token=token):
            client = await connect(server.port)
            assert (await client.post("/predict", {"texts": ["hello"]}))[0] == 401
            code, _, body = await client.post(
                "/predict", {"texts": ["hello"]}, authorization=f"Bearer {token}"
            )
            assert (code, labels(body)) == (200, ["ohlol"])

        run(main())
        assert token not in str(server.process.args)
        server.tell(signal.SIGTERM)
        code, out, said = server.end()
        assert (code, token in out + said) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["nowhere"], 1, "nowhere: does not exist"),
        (["hello", "hello"], 1, "would both be called 'hello'"),
        (["hello", "--port", "70000"], 2, "--port"),
        (["hello", "--host", "no.such.host.invalid"], 1, "--host no.such.host.invalid"),
        (["hello", "--host", "192.0.2.1"], 1, "choose another --host or --port"),
        (["hello", "--token-file", "nowhere"], 1, "nowhere: No such file"),
        (["hello", "--token-file", "empty"], 1, "empty: expected a token"),
    ],
)
def test_what_serve_refuses(tmp_path, arguments, code, message):
    """One message on stderr, nothing on stdout, no traceback."""
    (tmp_path / "empty").write_text(" \n")
    clean = {key: value for key, value in os.environ.items() if key != "OHLOL_TOKEN"}
    ran = subprocess.run(
        [sys.executable, "-m", "ohlol", "serve", *arguments],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (code, "")
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_more_connections_than_files(serve, connect, run):
    """A low limit of the shell is raised as far as it may be; where it may not, the message says so, not a traceback later."""
    command = f"ulimit -Sn 100 && ulimit -Hn 2000 && exec {sys.executable} -m ohlol serve hello --port 0 --read-timeout 60 --connections"
    ran = subprocess.run(
        ["bash", "-c", f"{command} 1900"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, "2028 open files" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)
    process = subprocess.Popen(["bash", "-c", f"{command} 1800"], stderr=subprocess.PIPE, text=True)
    with process:
        port = int(process.stderr.readline().split(";")[0].rpartition(":")[2])

        async def main():
            idle = [await connect(port) for _ in range(300)]
            code, _, _ = await idle[-1].post("/predict", {"texts": ["hello"]})
            assert code == 200

        try:
            run(main())
        finally:
            process.terminate()


def test_a_port_that_is_taken(tmp_path):
    """The message names the address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "ohlol", "serve", "hello", "--port", port]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use; choose another" in ran.stderr


def blocked(*arguments, modules):
    """`ohlol` where these modules are not installed."""
    block = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r})); sys.argv = ['ohlol', *{arguments!r}]; "
    )
    command = [sys.executable, "-c", block + "from ohlol.cli import main; main()"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_without_the_extra():
    """Where starlette is not installed the command says what to install."""
    ran = blocked("serve", "hello", modules=["starlette"])
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "`ohlol serve` needs starlette" in ran.stderr
    assert "pip install 'ohlol[http]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_needs_no_extra():
    """`ohlol serve --help` knows the limits without starlette, and without waiting for onnxruntime."""
    ran = blocked("serve", "-h", modules=["starlette", "onnxruntime"])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "[default: 2097152; x>=1]" in ran.stdout

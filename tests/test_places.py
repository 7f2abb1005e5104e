"""`ohlol export --triton, --hf, --mlflow`: written without those libraries, opened here by the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.bundle import Layout, open_bundle, open_named, shipped
from ohlol.artifacts.errors import BundleError, OhlolError
from ohlol.cli import main
from ohlol.serve import places
from ohlol.serve.results import fields
from ohlol.serve.yaml import dump

TEXTS = ["hello", "Müller", "xin chào bạn. đi nhé", "田中"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=["hello", "classify", "lm", "words", "files"])
def bundle(request, golden):
    """One of each task; `hello` and `files` have a `text.onnx`."""
    return shipped() if request.param == "hello" else golden / request.param


def export(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


# Triton


def config_of(folder):
    """The configuration, parsed by Triton's own protobuf: an unknown field or a wrong type would raise."""
    pb2 = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
    )
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), pb2.ModelConfig()), pb2


def test_triton_reads_the_configuration_and_the_file_is_what_it_says(bundle, tmp_path):
    """Names, types and shapes of inputs and outputs are those that ONNX Runtime, Triton's backend, finds in the file."""
    written = places.write(bundle, "triton", tmp_path, "model")
    has_text = Layout.text in open_bundle(bundle).contents
    assert [tmp_path / name for name in ("model", "model-text")[: 1 + has_text]] == written
    types = {"tensor(int32)": "TYPE_INT32", "tensor(float)": "TYPE_FP32", "tensor(string)": "TYPE_STRING"}
    for folder, file in zip(written, (Layout.onnx, Layout.text), strict=False):
        assert (folder / "1" / "model.onnx").read_bytes() == (bundle / file).read_bytes()
        config, pb2 = config_of(folder)
        assert (folder.name, "onnxruntime_onnx", 0) == (config.name, config.platform, config.max_batch_size)
        assert [group.kind for group in config.instance_group] == [pb2.ModelInstanceGroup.KIND_CPU]
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        for said, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [
                (t.name, types[t.type], [axis if isinstance(axis, int) else -1 for axis in t.shape])
                for t in found
            ] == [(t.name, pb2.DataType.Name(t.data_type), list(t.dims)) for t in said]
        facts = open_bundle(bundle).manifest
        assert list(facts.labels) == json.loads(config.parameters["ohlol.labels"].string_value)
        assert facts.alphabet.normalisation == config.parameters["ohlol.normalisation"].string_value
        assert config.parameters["intra_op_thread_count"].string_value == "1"
        for output in config.output:
            if output.label_filename:
                lines = (folder / output.label_filename).read_text(encoding="utf-8").splitlines()
                assert facts.labels == tuple(lines)
        labelled = [output.name for output in config.output if output.label_filename]
        assert (["probabilities"] if facts.task == "classify" else []) == labelled


def test_a_request_to_triton_is_answered_as_the_model_answers(golden, tmp_path):
    """What Triton would run, run as it would: the arrays of a request, by the names and types of the configuration."""
    (folder,) = places.write(golden / "classify", "triton", tmp_path, "names")
    points = np.array([[ord(c) for c in text.ljust(8, "\0")] for text in ("Rossi", "田中")], dtype=np.int32)
    feed = {"codepoints": points, "lengths": np.array([5, 2], dtype=np.int32)}
    config, _ = config_of(folder)
    outputs = [tensor.name for tensor in config.output]
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    found = dict(zip(outputs, session.run(outputs, feed), strict=True))
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    model = ohlol.load(golden / "classify")
    assert [model(text).label for text in ("Rossi", "田中")] == [labels[k] for k in found["label_ids"]]


def test_a_repository_may_hold_other_models(tmp_path, golden):
    """Other people's stay; ours are replaced; what somebody changed, and a twin of an older export, are not."""
    (tmp_path / "theirs" / "1").mkdir(parents=True)
    (tmp_path / "theirs" / "config.pbtxt").write_text('name: "theirs"')
    for _ in range(2):
        assert export("hello", "--triton", tmp_path, "--name", "m").exit_code == 0
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["m", "m-text", "theirs"]
    with pytest.raises(OhlolError, match="theirs: is there already"):
        places.write("hello", "triton", tmp_path, "theirs")
    with pytest.raises(OhlolError, match=r"m-text: is of another export.*no text\.onnx"):
        places.write(golden / "classify", "triton", tmp_path, "m")
    config = tmp_path / "m-text" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))
    result = export("hello", "--triton", tmp_path, "--name", "m")
    assert result.exit_code == 1
    assert f"{config.parent}: config.pbtxt was added or changed" in result.stderr
    assert "count: 4" in config.read_text()


# The Hugging Face Hub


def test_a_folder_for_the_hub_is_a_bundle_still(bundle, tmp_path):
    """Every file but the card is digested as before; the card may be edited, as people do on the Hub."""
    (folder,) = places.write(bundle, "hf", tmp_path / "hub", "model")
    (folder / Layout.card).write_text("edited")
    before, after = open_bundle(bundle), open_bundle(folder)
    before.contents.pop(Layout.card, None)
    assert before.contents == after.contents
    assert before.manifest.facts() == after.manifest.facts()
    assert [ohlol.load(bundle)(text) for text in TEXTS] == [ohlol.load(folder)(text) for text in TEXTS]
    onnx = bytearray((folder / Layout.onnx).read_bytes())
    onnx[len(onnx) // 2] ^= 1
    (folder / Layout.onnx).write_bytes(onnx)
    with pytest.raises(BundleError, match="damaged or changed"):
        ohlol.load(folder)


def test_the_hubs_library_reads_the_card(bundle, tmp_path):
    """Metadata, metrics and text, as the Hub shows them; the bundle's own card is in it."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    (folder,) = places.write(bundle, "hf", tmp_path / "hub", "model")
    card = hub.ModelCard.load(folder / "README.md")
    manifest = open_bundle(bundle).manifest
    pipelines = {"tag": "token-classification", "classify": "text-classification", "lm": "text-generation"}
    assert ("ohlol", pipelines[manifest.task]) == (card.data.library_name, card.data.pipeline_tag)
    assert hub.metadata_load(folder / "README.md") == card.data.to_dict()
    assert card.data.model_name == "model"
    measured = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert {(s, key): v for s, values in manifest.metrics.items() for key, v in values.items()} == measured
    assert (bundle / Layout.card).read_text(encoding="utf-8").strip() in card.text
    config = json.loads((folder / "config.json").read_bytes())
    assert list(manifest.labels) == [config["id2label"][str(k)] for k in range(len(manifest.labels))]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for; `files` are those of the one repository, me/model."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]

    def do_GET(self):
        path, _, _ = self.path.partition("?")
        headers = {}
        if path.startswith("/api/models/me/model/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            content = json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
        elif path.startswith("/api/models/me/model/tree/"):
            content = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in self.files.items()
                ]
            ).encode()
        elif path.startswith(f"/me/model/resolve/{COMMIT}/"):
            content = self.files[path.removeprefix(f"/me/model/resolve/{COMMIT}/")]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub_server(tmp_path, golden):
    (folder,) = places.write(golden / "classify", "hf", tmp_path / "hub", "model")
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloaded_by_the_hubs_library_it_is_loaded(hub_server, tmp_path):
    """`snapshot_download` into a folder gives a model; its cache, all links, is refused by a message."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    code = """
import sys
import ohlol
from huggingface_hub import snapshot_download
from ohlol.artifacts.errors import BundleError

print(ohlol.load(snapshot_download("me/model", local_dir=sys.argv[1]))("Rossi"))
try:
    ohlol.load(snapshot_download("me/model"))
except BundleError as error:
    print(error)
"""
    ours = {
        "HF_ENDPOINT": hub_server,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", code, str(tmp_path / "local")]
    done = subprocess.run(
        command, env=os.environ | ours, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer, refusal = done.stdout.splitlines()
    assert answer == "it"
    assert "a link that leaves the bundle; refused" in refusal


# MLflow


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nothing.db")
    return pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_mlflow_loads_it_and_it_answers_as_the_model(mlflow, bundle, tmp_path):
    """A list, a frame of one column, a Series: the answers of `model(text)`, through MLflow's check of the signature."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    (folder,) = places.write(bundle, "mlflow", tmp_path / "ml")
    loaded = mlflow.pyfunc.load_model(str(folder))
    model = ohlol.load(bundle)
    expected = [fields(model(text), probabilities=True) for text in TEXTS]
    frame = pandas.DataFrame({"name": TEXTS})
    for texts in (TEXTS, frame, frame["name"]):
        found = loaded.predict(texts)
        assert list(expected[0]) == list(found.columns)
        assert list(expected[0]) == loaded.metadata.get_output_schema().input_names()
        for row, said in zip(expected, found.to_dict("records"), strict=True):
            for name, value in row.items():
                exact = name in ("label", "labels", "next")
                assert said[name] == (value if exact else pytest.approx(value, abs=2e-6))
    example = loaded.input_example
    assert example == json.loads((folder / "input_example.json").read_bytes())
    assert len(example) == len(loaded.predict(example))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_mlflow_serves_it(mlflow, bundle, tmp_path):
    """Its scoring server, asked with the serving example that is in the folder."""
    testclient = pytest.importorskip("starlette.testclient", reason="starlette or httpx is not installed")
    scoring = pytest.importorskip("mlflow.pyfunc.scoring_server", reason="fastapi is not installed")
    (folder,) = places.write(bundle, "mlflow", tmp_path / "ml")
    client = testclient.TestClient(scoring.init(mlflow.pyfunc.load_model(str(folder))))
    asked = (folder / "serving_input_example.json").read_bytes()
    answer = client.post("/invocations", content=asked, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    model = ohlol.load(bundle)
    for text, said in zip(json.loads(asked)["inputs"], found, strict=True):
        (decision,) = {"label", "labels", "next"} & said.keys()
        assert fields(model(text))[decision] == said[decision]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_mlflow_has_the_onnx_file_as_a_flavour_of_its_own(mlflow, bundle, tmp_path):
    """`mlflow.onnx` finds and checks the very file."""
    flavour = pytest.importorskip("mlflow.onnx", reason="onnx is not installed")
    (folder,) = places.write(bundle, "mlflow", tmp_path / "ml")
    found = flavour.load_model(str(folder))
    assert [tensor.name for tensor in found.graph.input] == ["codepoints", "lengths"]


# All of them


@pytest.mark.parametrize("place", places.PLACES)
def test_the_same_bundle_gives_the_same_bytes(place, tmp_path):
    """No date, no random id: what is in version control does not change without a reason."""
    for name in ("a", "b"):
        places.write("hello", place, tmp_path / name, "model")
    a, b = (
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("a", "b")
    )
    assert a == b


def test_mlflow_has_the_name(mlflow, tmp_path):
    """`--name` is not ignored where a model has no name of its own."""
    result = export("hello", "--mlflow", tmp_path / "ml", "--name", "greeter")
    assert result.exit_code == 0, result.output
    assert mlflow.models.Model.load(str(tmp_path / "ml")).metadata["ohlol_name"] == "greeter"


@pytest.mark.parametrize("place", ["hf", "mlflow"])
def test_nothing_but_its_own_work_is_replaced(place, tmp_path):
    """A file of a person's, an edited one, a file in the place of the folder: kept, and named."""
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "thesis.md").write_text("mine")
    assert export("hello", f"--{place}", folder).exit_code == 1
    assert [file.name for file in folder.iterdir()] == ["thesis.md"]
    (folder / "thesis.md").unlink()
    assert export("hello", f"--{place}", folder).exit_code == 0, "an empty folder is free"
    assert export("hello", f"--{place}", folder).exit_code == 0, "and so is what was written there"
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.md").write_text("mine")
    result = export("hello", f"--{place}", folder)
    assert (result.exit_code, "notes/mine.md was added or changed" in result.stderr) == (1, True)
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert export("hello", f"--{place}", folder).exit_code == 1
    assert folder.read_text() == "a file"
    assert [path.name for path in tmp_path.iterdir()] == ["there"], "nothing half-written is left"


def test_the_command_on_a_bundle(tmp_path, golden):
    """Nothing is exported again, and options that would say how are refused; a damaged bundle goes nowhere."""
    for arguments in (
        [golden / "classify"],
        [golden / "classify", "--hf", tmp_path / "x", "--formats", "all"],
        [golden / "classify", "--hf", tmp_path / "x", "-o", tmp_path / "y"],
        ["--name", "x", golden / "classify"],
    ):
        assert export(*arguments).exit_code == 2
    assert export("hello", "--triton", tmp_path, "--name", "../x").exit_code == 1
    damaged = tmp_path / "damaged"
    shutil.copytree(golden / "classify", damaged)
    (damaged / Layout.onnx).write_bytes(b"")
    result = export(damaged, "--hf", tmp_path / "x", "--mlflow", tmp_path / "y", "--triton", tmp_path / "z")
    assert result.exit_code == 1
    assert "damaged or changed" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_run_is_exported_and_written_everywhere(tmp_path):
    """`ohlol export RUN --triton --hf --mlflow`: the bundle, then each place, called after the run; and again."""
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "made")])
    assert result.exit_code == 0, result.output
    run = (tmp_path / "made" / "run").rename(tmp_path / "greet")
    where = ["--formats", "onnx,text", *(f"--{place}={tmp_path / place}" for place in places.PLACES)]
    for _ in range(2):
        result = export(run, *where)
        assert result.exit_code == 0, result.output
    assert sorted(folder.name for folder in (tmp_path / "triton").iterdir()) == ["greet", "greet-text"]
    made = open_named(run / "bundle").contents[Layout.onnx]
    for file in ("triton/greet/1/model.onnx", "hf/model.onnx", "mlflow/bundle/model.onnx"):
        assert made == (tmp_path / file).read_bytes()
    (tmp_path / "hf" / "mine").write_text("")
    before = (run / "bundle" / Layout.manifest).stat().st_mtime_ns
    assert export(run, *where).exit_code == 1
    assert before == (run / "bundle" / Layout.manifest).stat().st_mtime_ns, "told before the work, not after"


def test_no_training_library_is_needed():
    """On the base install: neither torch nor onnx, nor any library of the places."""
    code = (
        "import sys; blocked = ('torch', 'onnx', 'mlflow', 'huggingface_hub', 'tritonclient', 'yaml', 'pandas');"
        "sys.modules.update(dict.fromkeys(blocked)); from ohlol.cli import main; import tempfile; "
        "d = tempfile.mkdtemp(); main(['export', 'hello', '--hf', d + '/h', '--mlflow', d + '/m', '--triton', d])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("holds the model") == 4


KEYS = st.sampled_from(["name", "value", "model-index", "a_b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@example(
    {
        "value": 1e-05,
        "name": "1e-05",
        "a_b": ["\x7f", "\u2028", "\x85", "😀", "no", "", {}, [], {"name": [[1e16]]}],
    }
)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_our_yaml_is_read_by_a_real_reader(value):
    """Whatever labels, names and metrics hold; keys are ours."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    assert value == yaml.safe_load(dump(value))

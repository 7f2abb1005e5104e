"""Bad input costs one clear message; an export that is killed or runs out of disk leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import ohlol
from ohlol.artifacts.bundle import Layout, open_bundle
from ohlol.artifacts.errors import BundleError, OhlolError
from ohlol.artifacts.files import sha256
from ohlol.cli import main
from ohlol.export.bundle import export
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipes):
    folder = tmp_path_factory.mktemp("robust") / "run"
    recipe = Recipe.load(recipes / "seed" / "rnn_one_hot.toml")
    data = load(recipe, folder)
    finish(train(recipe, data, folder), data)
    return folder


@pytest.fixture(scope="module")
def bundle(run):
    export(run, run / "bundle")
    return run / "bundle"


def foreign():
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n"])], [onnx.helper.make_tensor_value_info("y", 1, ["n"])],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def with_opset(content, version):
    model = onnx.load_model_from_string(content)
    model.opset_import[0].version = version
    return model.SerializeToString()


def with_a_weight_changed(content):
    model = onnx.load_model_from_string(content)
    weight = next(
        tensor for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.dims) == 2
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += np.float32(0.5)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model.SerializeToString()


BAD = {
    "foreign": (lambda content: foreign(), "an ONNX file that ohlol did not export"),
    "cut": (lambda content: content[: len(content) // 2], "not an ONNX file"),
    "empty": (lambda content: b"", "not an ONNX file"),
    "no onnx at all": (lambda content: b"# Notes\n" * 40, "not an ONNX file"),
    "opset 99": (lambda content: with_opset(content, 99), "damaged or changed"),
    "opset 17": (lambda content: with_opset(content, 17), "damaged or changed"),
    "a weight changed": (with_a_weight_changed, "damaged or changed"),
}


def refused(*arguments):
    """The one message of a command that fails."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    assert not isinstance(result.exception, OhlolError | OSError), "the command line turns it into a message"
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_not_ours(kind, bundle, tmp_path):
    """predict and inspect name the file and what is wrong with it."""
    make, words = BAD[kind]
    path = tmp_path / "x.onnx"
    path.write_bytes(make((bundle / Layout.onnx).read_bytes()))
    for command in (("predict", path, "hello"), ("inspect", path)):
        message = refused(*command)
        assert str(path) in message
        assert words in message
    with pytest.raises(BundleError, match=r"x\.onnx"):
        ohlol.load(path)


@pytest.mark.parametrize("kind", BAD)
def test_a_file_exchanged_in_a_bundle(kind, bundle, tmp_path):
    """By its digest in the manifest; with that one changed too, by what is inside the file."""
    make, words = BAD[kind]
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    content = make((folder / Layout.onnx).read_bytes())
    (folder / Layout.onnx).write_bytes(content)
    assert "model.onnx: damaged or changed: it" in refused("predict", folder, "hello")
    manifest = json.loads((folder / Layout.manifest).read_text(encoding="utf-8"))
    manifest["files"][Layout.onnx] |= {"sha256": sha256(content), "bytes": len(content)}
    (folder / Layout.manifest).write_text(json.dumps(manifest), encoding="utf-8")
    for command in (("predict", folder, "hello"), ("verify", folder)):
        message = refused(*command)
        assert Layout.onnx in message
        assert words in message or "no input `codepoints`" in message


@pytest.mark.parametrize("file", [Layout.stream, Layout.text])
def test_a_file_of_another_kind(file, bundle):
    """Asked to predict with the file for chunks or strings, the message says which file it is."""
    message = refused("predict", bundle / file, "hello")
    assert f"it is the {file.removesuffix('.onnx')} file of a bundle" in message


@pytest.mark.parametrize("file", [Layout.onnx, Layout.stream, Layout.text])
def test_inspect_says_what_stands_in_a_file(file, bundle):
    """Contract, sizes, nodes by type, provenance, and each weight's name and shape, as onnx reads them."""
    result = CliRunner().invoke(main, ["inspect", str(bundle / file)])
    assert result.exit_code == 0, result.output
    facts = [line.split(None, 1) for line in result.stdout.splitlines()]
    model = onnx.load(bundle / file)
    names = [fact[1].partition(" ")[0] for fact in facts if fact[0] in ("input", "output")]
    assert names == [tensor.name for tensor in (*model.graph.input, *model.graph.output)]
    shown = dict(fact for fact in facts if len(fact) == 2)
    for tensor in model.graph.initializer:
        assert f"({', '.join(map(str, tensor.dims))})" in shown[tensor.name]
    assert shown["contract"] == "version 1, opset 18, IR version 10"
    assert f"{(bundle / file).stat().st_size:,} bytes" in shown[file]
    assert "nodes: " in shown[file]
    assert shown["checkpoint"].startswith("best, epoch 15, sha256 ")


def whole_or_nothing(out, old):
    """What may stand at `out` after an export that ended early: nothing, or a whole bundle."""
    try:
        found = open_bundle(out)
    except BundleError:
        assert old is None, "an old bundle is lost"
        return
    assert Layout.onnx in found.contents


KILLED = """
import os, signal, sys
from pathlib import Path
from ohlol.export.bundle import export
stop, real, written = int(sys.argv[3]), Path.write_bytes, 0
def write_bytes(self, data):
    global written
    if ".part" in str(self):
        written += 1
        if written > stop:
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, data)
Path.write_bytes = write_bytes
export(Path(sys.argv[1]), Path(sys.argv[2]), ("onnx",))
"""


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_while_writing_leaves_no_half_bundle(stop, old, run, bundle, tmp_path):
    """Killed after some files, in the middle of the next: the old bundle, or none, and the next export works."""
    out = tmp_path / "out"
    if old:
        shutil.copytree(bundle, out)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(run), str(out), str(stop)], check=False)
    assert ended.returncode == -signal.SIGKILL
    whole_or_nothing(out, old or None)
    assert out.exists() == old
    export(run, out, ("onnx",))
    assert set(open_bundle(out).contents) >= {Layout.onnx, Layout.proof}


EXPORT = "import sys; from ohlol.cli import main; main(['export', sys.argv[1], '-o', sys.argv[2]])"


def test_a_kill_at_any_moment_leaves_no_half_bundle(run, bundle, tmp_path):
    """SIGKILL at moments drawn over an export's whole duration, an old bundle in its place."""
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    command = [sys.executable, "-c", EXPORT, str(run), str(out)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - start
    moments = random.Random(0)
    for _ in range(8):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(duration * moments.uniform(0.5, 1.0))
        child.kill()
        child.wait()
        whole_or_nothing(out, "old")


@pytest.mark.parametrize("fails", [0, 1, 3, 9])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk(fails, old, run, bundle, tmp_path, monkeypatch):
    """One message that names the file; what was there stays, and nothing else does."""
    out = tmp_path / "out"
    if old:
        shutil.copytree(bundle, out)
    real, written = Path.write_bytes, [0]

    def write_bytes(self, data):
        written[0] += 1
        if written[0] > fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    message = refused("export", run, "-o", out)
    assert "No space left on device" in message
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])
    whole_or_nothing(out, old or None)


def test_a_file_that_may_not_grow(run, bundle, tmp_path):
    """The system's own limit on a file's size, met for real."""
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    command = [sys.executable, "-c", EXPORT, str(run), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_places_where_no_bundle_can_be(run, tmp_path):
    """A file in the way, or a folder that is a file's child: one message each."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "file" in refused("export", run, "-o", tmp_path / "file")
    assert "file" in refused("export", run, "-o", tmp_path / "file" / "bundle")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

"""The proof replayed from a bundle's own test data."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from ohlol.artifacts.bundle import ONNX, Layout, open_bundle, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.onnx_file import read_tensor
from ohlol.cli import main
from ohlol.serve import runtimes
from ohlol.serve.verify import verify


@pytest.mark.parametrize("name", ["words", "classify", "lm", "files"])
@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_golden_bundles_hold(golden, name, runtime):
    """What was proved where it was exported holds here, in each runtime: bundles of every released format."""
    if runtime not in runtimes.installed():
        pytest.skip(f"{runtime} is not installed")
    proof = verify(golden / name, [runtime])
    assert proof.passed, proof.table()
    contents = open_bundle(golden / name).contents
    files = [file for file in ONNX if file in contents]
    where = {Layout.text: "onnxruntime"}  # which knows strings alone
    expected = [
        (file, where.get(file, runtime)) for file in files for _ in range(10 if name == "files" else 9)
    ]
    assert [(row.file, row.runtime) for row in proof.rows] == expected


def test_the_command():
    """Exit 0 and a line for each file of a bundle that holds."""
    result = CliRunner().invoke(main, ["verify", "hello"])
    assert result.exit_code == 0
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.endswith("  ok")]
    assert lines == [Layout.onnx, Layout.stream, Layout.text]


def test_runtimes_that_cannot_be_had(monkeypatch):
    """An unknown one is named with those there are; one that is not installed, with what to install."""
    result = CliRunner().invoke(main, ["verify", "hello", "--runtime", "tensorflow"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'onnxruntime', 'openvino'" in result.stderr
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["verify", "hello", "--runtime", "openvino"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install openvino" in result.stderr


def test_a_file_of_lower_precision_is_held_to_its_own_data(golden, tmp_path):
    """fp16 answers otherwise than model.onnx, and exactly as its own rounding says."""
    folder = tmp_path / "bundle"
    shutil.copytree(golden / "files", folder)
    manifest = json.loads((folder / Layout.manifest).read_text(encoding="utf-8"))
    for other in (Layout.onnx, Layout.int8):  # another file of the same network in its place, digest and all
        content = (folder / other).read_bytes()
        (folder / Layout.half).write_bytes(content)
        manifest["files"][Layout.half] |= {"sha256": sha256(content), "bytes": len(content)}
        (folder / Layout.manifest).write_text(json.dumps(manifest), encoding="utf-8")
        assert {row.file for row in verify(folder).rows if not row.passed} == {Layout.half}


def test_a_bundle_that_answers_otherwise(golden, tmp_path):
    """A model exchanged for another one, digest and all, is caught by the test data: exit 1."""
    folder = tmp_path / "bundle"
    shutil.copytree(shipped(), folder)
    other = folder / "test_data_set_3" / "output_0.pb"
    data = bytearray(other.read_bytes())
    data[-3:] = b"\x00\x80\x3f"
    other.write_bytes(data)
    manifest = json.loads((folder / Layout.manifest).read_text())
    manifest["files"]["test_data_set_3/output_0.pb"]["sha256"] = sha256(bytes(data))
    (folder / Layout.manifest).write_text(json.dumps(manifest))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 1
    assert "FAILED: model.onnx in onnxruntime, test_data_set_3 (9×16): `logits` differs" in result.stdout


def test_tensors_are_read_as_onnx_writes_them():
    """The reader of ours against the bytes of a hand-made TensorProto: dims 2 and 1, int32, name, raw data."""
    raw = np.array([[7], [-1]], dtype="<i4").tobytes()
    name, values = read_tensor(b"\x08\x02\x08\x01\x10\x06B\x01xJ\x08" + raw, "here")
    assert (name, values.tolist(), values.dtype) == ("x", [[7], [-1]], np.int32)


@pytest.mark.parametrize("data", [b"\xff", b"\x08", b"\x08\x02\x10\x06J\x04abcd", b"\x10\x63", b"\x10\x07"])
def test_damaged_tensors_are_refused(data):
    """One message that names the file."""
    with pytest.raises(BundleError, match="here: not a tensor"):
        read_tensor(data, "here")


def resealed(golden, tmp_path, name, change):
    """The golden bundle `files` with one file changed, and its digest in the manifest too."""
    folder = tmp_path / "bundle"
    shutil.copytree(golden / "files", folder)
    content = change((folder / name).read_bytes())
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / Layout.manifest).read_text(encoding="utf-8"))
    manifest["files"][name] |= {"sha256": sha256(content), "bytes": len(content)}
    (folder / Layout.manifest).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def tensor(array, name):
    """An ONNX tensor of int32 as bytes."""
    dims = b"".join(bytes([8, size]) for size in array.shape)
    raw = array.astype("<i4").tobytes()
    return dims + b"\x10\x06B" + bytes([len(name)]) + name + b"J" + bytes([len(raw)]) + raw


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("input_0.pb", np.zeros((0, 3))),
        ("input_0.pb", np.zeros(3)),
        ("input_1.pb", np.array([10**9])),
        ("input_1.pb", np.array([0])),
        ("input_1.pb", np.array([[1]])),
        ("output_0.pb", np.array(1)),
    ],
)
def test_test_data_outside_of_the_contract_is_refused(golden, tmp_path, file, array):
    """No rows would end the process, a length beyond the row would never end: one message, before anything runs."""
    names = {"input_0.pb": b"codepoints", "input_1.pb": b"lengths", "output_0.pb": b"logits"}
    place = f"test_data_set_0/{file}"
    folder = resealed(golden, tmp_path, place, lambda content: tensor(array, names[file]))
    with pytest.raises(BundleError, match=r"test_data_set_0: its shapes, types or lengths"):
        verify(folder)


def test_every_file_is_checked_for_kind_and_facts(golden, tmp_path):
    """Not only model.onnx: a stream file under another name, or other labels inside text.onnx."""
    stream = (golden / "files" / Layout.stream).read_bytes()
    folder = resealed(golden, tmp_path, Layout.batch, lambda content: stream)
    with pytest.raises(BundleError, match="it is the stream file of a bundle, expected model"):
        verify(folder)
    shutil.rmtree(folder)
    other = (golden / "lm" / Layout.onnx).read_bytes()  # of the same kind, with another alphabet or network
    folder = resealed(golden, tmp_path, Layout.half, lambda content: other)
    with pytest.raises(BundleError, match="differs from the manifest's"):
        verify(folder)


def test_metadata_that_is_no_text_is_refused(golden, tmp_path):
    """One byte in the metadata of a file, which its digest does not cover."""
    content = bytearray((golden / "files" / Layout.onnx).read_bytes())
    content[content.index(b'"characters"') + 1] = 0xFF
    path = tmp_path / "x.onnx"
    path.write_bytes(bytes(content))
    for command in ("inspect", "predict"):
        result = CliRunner().invoke(main, [command, str(path), *(["he"] if command == "predict" else [])])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "its metadata is damaged" in result.stderr

"""The proof replayed from a bundle's own test data."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.files import sha256
from ohlol.cli import main
from ohlol.serve.verify import read_tensor, verify


@pytest.mark.parametrize("name", ["words", "classify", "lm"])
def test_golden_bundles_hold(golden, name):
    """What was proved where it was exported holds here."""
    proof = verify(golden / name)
    assert proof.passed, proof.table()
    assert len(proof.rows) == 9


def test_the_command(golden):
    """Exit 0 and a table for a bundle that holds."""
    result = CliRunner().invoke(main, ["verify", "hello"])
    assert result.exit_code == 0
    assert result.stdout.count(" ok") == 9


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
    assert "FAILED: `logits` differs" in result.stdout


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

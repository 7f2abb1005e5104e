"""Every command on what is broken: one message on stderr, exit code 1, nothing on stdout, no traceback."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohlol.artifacts.bundle import ONNX, Layout, open_bundle, shipped
from ohlol.artifacts.files import sha256
from ohlol.artifacts.onnx_file import digest
from ohlol.cli import main

COMMANDS = {
    "predict": ["hello"],
    "verify": [],
    "inspect": [],
    "compare": [],
    "bench": [],
    "evaluate": [],
}
FACTS_ONLY = ("inspect", "compare")  # these read what a bundle says, and run nothing


def ran(command, path, *arguments):
    """The message of a command that refuses."""
    if command == "evaluate" and not find_spec("torch"):
        pytest.skip("evaluate needs torch, which is not installed")
    done = CliRunner().invoke(main, [command, str(path), *COMMANDS[command], *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    return done


def refused(command, path):
    done = ran(command, path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()
    return done.stderr


def reseal(folder, name, content):
    """Exchange a file, and what the manifest says of it."""
    manifest = json.loads((folder / Layout.manifest).read_bytes())
    (folder / name).write_bytes(content)
    manifest["files"][name] |= {"sha256": sha256(content), "bytes": len(content)}
    (folder / Layout.manifest).write_text(json.dumps(manifest), encoding="utf-8")


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def change(folder, **facts):
    manifest = json.loads((folder / Layout.manifest).read_bytes())
    (folder / Layout.manifest).write_text(json.dumps({**manifest, **facts}), encoding="utf-8")


def escape(folder):
    """A name that would clear the terminal, were it printed as it is."""
    change(folder, files={"\x1b[2J": {"sha256": "0" * 64, "bytes": 0}})


HARMS = {
    "nothing": lambda b: shutil.rmtree(b),
    "a file": lambda b: (shutil.rmtree(b), b.write_text("x")),
    "an empty folder": lambda b: (shutil.rmtree(b), b.mkdir()),
    "no manifest": lambda b: (b / Layout.manifest).unlink(),
    "an empty manifest": lambda b: (b / Layout.manifest).write_bytes(b""),
    "a manifest of zeros": lambda b: (b / Layout.manifest).write_bytes(bytes(5_000)),
    "a manifest of another kind": lambda b: (b / Layout.manifest).write_text('{"manifest_version": 3}'),
    "deep JSON": lambda b: (b / Layout.manifest).write_text("[" * 200_000),
    "no model": lambda b: (b / Layout.onnx).unlink(),
    "a model with a bit flipped": lambda b: flip(b / Layout.onnx),
    "a card with a bit flipped": lambda b: flip(b / Layout.card),
    "half a model": lambda b: os.truncate(b / Layout.onnx, 5_000),
    "a pipe": lambda b: ((b / Layout.onnx).unlink(), os.mkfifo(b / Layout.onnx)),
    "a newer format": lambda b: change(b, format_version=2),
    "a name with an escape": escape,
    "a label with an escape": lambda b: change(b, task="\x1b[2J"),
    "a network of no size": lambda b: change(b, network={"num_layers": 10**18}),
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="one of the harms is a pipe, and killed where it waits")
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_bundle(golden, tmp_path, command, harm):
    """Whatever happened to it on its way here."""
    bundle = shutil.copytree(golden / "words", tmp_path / "bundle")
    HARMS[harm](bundle)
    assert str(bundle) in refused(command, bundle)


INSIDE = {
    "a foreign model": lambda model: b"\x08\x08\x3a\x02\x12\x00",
    "no protobuf": lambda model: b"PK\x03\x04" * 99,
    "nothing": lambda model: b"",
    "half a model": lambda model: model[: len(model) // 2],
    "other labels inside": lambda model: model.replace(b'["e", "h", "l", "o"]', b'["o", "l", "h", "e"]'),
    "an alphabet that is no text": lambda model: model.replace(b'{"characters"', b'{"\xffharacters"'),
    "another digest inside": lambda model: model.replace(digest(model).encode(), b"0" * 64),
    "a digest that is none": lambda model: model.replace(digest(model).encode(), b"\x1b" * 64),
    "a weight elsewhere": lambda model: model + b"\x3a\x06\x2a\x04\x6a\x02\x0a\x00",
}


@pytest.mark.parametrize("harm", INSIDE)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in FACTS_ONLY])
def test_a_broken_model_with_the_right_digest(tmp_path, command, harm):
    """Digests tell damage, not malice: what they let through is one message still."""
    bundle = shutil.copytree(shipped(), tmp_path / "bundle")
    model = (bundle / Layout.onnx).read_bytes()
    changed = INSIDE[harm](model)
    assert changed != model
    reseal(bundle, Layout.onnx, changed)
    assert "model.onnx" in refused(command, bundle)


@pytest.mark.parametrize("harm", INSIDE)
@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_a_broken_single_file(tmp_path, command, harm):
    """A file alone, which has no manifest: all but swapped labels is noticed, as docs/format.md says."""
    path = tmp_path / "x.onnx"
    path.write_bytes(INSIDE[harm]((shipped() / Layout.onnx).read_bytes()))
    if harm == "other labels inside":
        assert ran(command, path).exit_code == 0
    else:
        assert "x.onnx" in refused(command, path)


@pytest.fixture(scope="module")
def small(golden, tmp_path_factory):
    """A bundle with one case of test data, put back after each example."""
    folder = shutil.copytree(golden / "files", tmp_path_factory.mktemp("small") / "bundle")
    manifest = json.loads((folder / Layout.manifest).read_bytes())
    keep = (Layout.onnx, Layout.stream, Layout.text, Layout.card)
    manifest["files"] = {
        name: entry
        for name, entry in manifest["files"].items()
        if name in keep or name.startswith(("test_data_set_0/input", "test_data_set_0/output"))
    }
    (folder / Layout.manifest).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_test_data(small, data):
    """`verify` of tensors that were changed anywhere: refused, a proof that fails, or one that holds; nothing else."""
    name = data.draw(st.sampled_from([name for name in open_bundle(small).contents if name.endswith(".pb")]))
    before = (small / name).read_bytes()
    changed = before
    for _ in range(data.draw(st.integers(1, 3))):
        at = (
            data.draw(st.integers(0, max(0, min(len(changed) - 1, 40))))
            if data.draw(st.booleans())
            else len(changed) // 2
        )
        new = data.draw(st.binary(max_size=4))
        changed = changed[:at] + new + changed[at + len(new) + data.draw(st.integers(-1, 1)) :]
    try:
        reseal(small, name, changed)
        done = ran("verify", small)
        assert done.exit_code in (0, 1)
        if done.exit_code == 1:
            assert ("FAILED" in done.stdout) == ("does not answer here" in done.stderr)
    finally:
        reseal(small, name, before)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "3e38", "-3e38"])
def test_test_data_that_expect_no_number(golden, tmp_path, number):
    """Beside infinity any answer is near enough: refused; beside what is only huge it fails, without a warning."""
    bundle = shutil.copytree(golden / "files", tmp_path / "bundle")
    name = "test_data_set_0/output_0.pb"
    reseal(bundle, name, (bundle / name).read_bytes()[:-4] + np.float32(number).tobytes())
    done = ran("verify", bundle)
    assert done.exit_code == 1
    if number.endswith("3e38"):
        assert "`logits` differs by" in done.stdout
    else:
        assert "what it expects is not finite" in done.stderr


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(ONNX)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
    st.sampled_from(["predict", "inspect"]),
)
def test_any_single_file(golden, tmp_path_factory, name, changes, command):
    """Bytes changed anywhere in a file with a digest: refused, unless it was its metadata and they still say something."""
    content = (golden / "files" / name).read_bytes()
    for place, new in changes:
        at = int(place * (len(content) - len(new)))
        content = content[:at] + new + content[at + len(new) :]
    path = tmp_path_factory.mktemp("single") / "x.onnx"
    path.write_bytes(content)
    done = ran(command, path)
    assert done.exit_code in (0, 1)
    assert (done.stdout == "") == (done.exit_code == 1)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/", "~", "a\0b", "x" * 5_000, "\udcff", "hello/", "HELLO", "x.onnx", "-"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_paths_that_are_none(tmp_path, monkeypatch, command, path):
    """Whatever is given in the place of a bundle."""
    monkeypatch.chdir(tmp_path)
    assert refused(command, path)

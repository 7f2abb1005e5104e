"""Bundles that were harmed: every byte, every length, every kind of file, whatever stands in the manifest."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import socket
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts import compare, contract, describe, strict_json
from ohlol.artifacts.bundle import MOST_BYTES, Layout, check_content, open_bundle, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.onnx_file import metadata

FACTS = json.loads((shipped() / Layout.manifest).read_bytes())
SIZE = f'"bytes": {FACTS["files"][Layout.onnx]["bytes"]}'
LISTED = sorted(FACTS["files"])
SMALL = {**FACTS, "files": {name: FACTS["files"][name] for name in (Layout.onnx, Layout.card)}}
SMALL_JSON = json.dumps(SMALL, ensure_ascii=False).encode()
POSIX = pytest.mark.skipif(os.name != "posix", reason="such files are made on POSIX only")

numbers = st.integers() | st.sampled_from([10**19, -(10**400), 2**63, 1e308, float("inf"), float("nan"), 1.0])
strings = st.text(st.characters(codec=None), max_size=6) | st.sampled_from(
    ["\0", "\ud800", "../x", "a/" * 3_000, "lstm", "lm", "\x1b[2J", "9" * 5_000, "NFC"]
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def bundle(tmp_path):
    """The shipped bundle with two files listed: quick to open."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in (Layout.onnx, Layout.card):
        shutil.copy(shipped() / name, folder / name)
    (folder / Layout.manifest).write_bytes(SMALL_JSON)
    return folder


@pytest.fixture
def in_time():
    """A file that is never answered must not stop the tests for ever; a net, not a measurement."""

    def late(number, frame):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(path):
    with pytest.raises(BundleError) as caught:
        ohlol.load(path)
    return str(caught.value)


@pytest.mark.parametrize("name", LISTED)
def test_every_byte_of_every_file_is_digested(name):
    """One bit of each byte in turn, and each byte as 0 and 255: never what the manifest says."""
    content = bytearray((shipped() / name).read_bytes())
    entry = Manifest.from_json(json.dumps(FACTS), "it").files[name]
    values = (0, 255) if len(content) < 5_000 else ()  # the larger files by one bit alone, to be quick
    for at, byte in enumerate(bytes(content)):
        for value in (byte ^ 1 << at % 8, *values):
            content[at] = value
            if value != byte:
                with pytest.raises(BundleError, match="damaged or changed"):
                    check_content(content, entry, Path(name))
        content[at] = byte
    check_content(content, entry, Path(name))


def test_no_byte_anywhere_in_a_bundle_loads(tmp_path):
    """The same where it counts: on disk, through the door that everybody uses."""
    folder = shutil.copytree(shipped(), tmp_path / "bundle")
    for name in LISTED:
        content = (folder / name).read_bytes()
        for at in (*range(0, len(content), 1_009), len(content) - 1):
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
            assert str(folder / name) in refusal(folder)
        (folder / name).write_bytes(content)
    assert str(ohlol.load(folder)("hello")) == "ohlol"


def test_every_byte_of_the_manifest(bundle):
    """No digest covers the manifest: a flip is refused, differs from the model's own facts, or changes nothing."""
    original = open_bundle(bundle).manifest
    inside = Manifest.from_metadata(metadata((bundle / Layout.onnx).read_bytes(), "it"), "it")
    assert original.differs(inside) == ""
    other = []
    for at, byte in enumerate(SMALL_JSON):
        for value in {byte ^ 1 << at % 8, ord("0"), ord(" "), 255} - {byte}:
            data = SMALL_JSON[:at] + bytes([value]) + SMALL_JSON[at + 1 :]
            try:
                found = Manifest.from_json(data, "it")
            except BundleError:
                continue
            if found.files != original.files:
                (bundle / Layout.manifest).write_bytes(data)
                with pytest.raises(BundleError):
                    open_bundle(bundle)
            elif found.differs(inside):
                other.append(data)
            else:
                assert found == original
    assert len(other) > 1_000, "most of the facts are strings, and only the model knows that they are wrong"
    for data in other[:: len(other) // 40]:
        (bundle / Layout.manifest).write_bytes(data)
        assert "differs between the manifest and the model's own metadata" in refusal(bundle)


def test_what_was_measured_is_all_that_a_flip_can_change(golden):
    """The cost of lower precision stands in the manifest alone: its numbers can change, nothing else, nor its form."""
    data = (golden / "files" / Layout.manifest).read_bytes()
    original = Manifest.from_json(data, "it")
    start = data.index(Layout.half.encode())
    changed = 0
    for at in range(start, data.index(b"}", data.index(b'"change"', start))):
        try:
            found = Manifest.from_json(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "it")
        except BundleError:
            continue
        entry, other = original.files[Layout.half], found.files.get(Layout.half, None)
        if other and (other.sha256, other.bytes) == (entry.sha256, entry.bytes) and other.measured:
            changed += other != entry
            assert list(entry.measured) == list(other.measured)
            assert original == found.with_files({**found.files, Layout.half: entry})
    assert changed > 20


@pytest.mark.parametrize("name", [Layout.onnx, Layout.card, Layout.manifest])
def test_cut_at_every_length(bundle, name):
    """A copy that broke off anywhere; without its last newline, JSON says the same."""
    content = (bundle / name).read_bytes()
    for length in range(len(content) - 1, -1, -1 if len(content) < 4_000 else -7):
        os.truncate(bundle / name, length)
        with pytest.raises(BundleError):
            open_bundle(bundle)


def test_files_in_each_others_place(tmp_path):
    """Any two files exchanged, those of one size too: the test data of two batches, a stream for a model."""
    folder = shutil.copytree(shipped(), tmp_path / "bundle")
    contents = {name: (folder / name).read_bytes() for name in LISTED}
    sizes = {}
    for name, content in contents.items():
        sizes.setdefault(len(content), []).append(name)
    pairs = [pair for names in sizes.values() for pair in combinations(names, 2)]
    pairs = [pair for pair in pairs if contents[pair[0]] != contents[pair[1]]]
    assert len(pairs) > 10, "files of one size, which no check of sizes tells apart"
    for one, other in [*pairs[:60], (Layout.onnx, Layout.stream), (Layout.onnx, Layout.text)]:
        (folder / one).write_bytes(contents[other])
        (folder / other).write_bytes(contents[one])
        with pytest.raises(BundleError, match="damaged or changed"):
            open_bundle(folder)
        (folder / one).write_bytes(contents[one])
        (folder / other).write_bytes(contents[other])


def test_files_that_are_not_listed_are_never_opened(bundle):
    """More files, whatever they are called: ignored, as the format says."""
    for name in (Layout.batch, Layout.torchscript, "x", "manifest.json.old"):
        (bundle / name).write_bytes(b"not what it says")
    assert sorted(open_bundle(bundle).contents) == [Layout.card, Layout.onnx]


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(2**42)  # 4 TiB of nothing


KINDS = {
    "pipe": make_fifo,
    "socket": make_socket,
    "folder": Path.mkdir,
    "huge": make_huge,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/stdin"),
    "loop": lambda path: path.symlink_to(path.name),
    "longer loop": lambda path: (path.symlink_to("a"), (path.parent / "a").symlink_to(path.name)),
    "dangling": lambda path: path.symlink_to("nothing"),
    "outside": lambda path: path.symlink_to(shipped() / path.name),
}


@POSIX
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [Layout.onnx, Layout.manifest])
def test_what_is_no_file_in_the_place_of_one(bundle, name, kind, in_time):
    """Neither waited for, nor read without end, nor followed out of the bundle."""
    (bundle / name).unlink()
    KINDS[kind](bundle / name)
    assert str(bundle) in refusal(bundle)


@POSIX
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("folder", "outside")])
def test_a_single_file_that_is_none(tmp_path, kind, in_time):
    """`ohlol.load("x.onnx")` likewise."""
    KINDS[kind](tmp_path / "x.onnx")
    assert "x.onnx" in refusal(tmp_path / "x.onnx")


@POSIX
def test_a_huge_file_is_refused_before_it_is_read(bundle, in_time):
    """By the size in the manifest; and where that is as large, by what any file of ours may have."""
    make_huge(bundle / Layout.card)
    size = FACTS["files"][Layout.card]["bytes"]
    assert f"4,398,046,511,104 bytes, the manifest says {size:,}" in refusal(bundle)
    facts = copy.deepcopy(SMALL)
    facts["files"][Layout.card]["bytes"] = 2**42
    (bundle / Layout.manifest).write_text(json.dumps(facts))
    assert f"at most {MOST_BYTES:,}" in refusal(bundle)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [Layout.onnx, Layout.manifest, "."])
def test_without_rights(bundle, name):
    """One message, and it names the file."""
    (bundle / name).chmod(0)
    try:
        assert str(bundle) in refusal(bundle)
    finally:
        (bundle / name).chmod(0o700)


NAMES = [
    *(
        "model.onnx/",
        "a//b",
        "a/./b",
        "./model.onnx",
        "../bundle/model.onnx",
        "/",
        "//",
        "...",
        "a/...",
        "~/x",
    ),
    *(
        "model.onnx\0",
        "model.onnx\n",
        "\x1b[31mred",
        "\u202exnno.ledom",
        "\ufeffmodel.onnx",
        "\ud800",
        "\x7f",
    ),
    *("C:\\x", "\\\\server\\share", "model.onnx:stream", "COM1:", "a" * 256, "a/" * 2_000 + "b", "é" * 200),
    *("model.onnx ", " model.onnx", "MODEL.ONNX", "model．onnx", "‥/x", "．．/x"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_names_that_are_tricks(bundle, name):
    """Whatever a manifest calls a file: refused, and the message steers no terminal."""
    facts = {**SMALL, "files": {**SMALL["files"], name: {"sha256": sha256(b""), "bytes": 0}}}
    (bundle / Layout.manifest).write_text(json.dumps(facts))
    message = refusal(bundle)
    assert str(bundle) in message
    assert not set("\x1b\u202e\0\n\x7f") & set(message)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"task": "tag"', '"task": "lm", "task": "tag"', "'task' is there twice"),
        (SIZE, f'"bytes": 0, {SIZE}', "'bytes' is there twice"),
        (SIZE, f"{SIZE}.0", "should be a whole number"),
        (SIZE, '"bytes": -1', "and -1"),
        (SIZE, f'"bytes": {"9" * 5_000}', "a number of 5000 digits"),
        ('"opset": 18', '"opset": true', "should be a whole number"),
        ('"opset": 18', '"opset": 17', "`opset` differs"),
        ('"num_layers": 2', '"num_layers": 2.0', "should be a whole number"),
        ('"num_layers": 2', '"num_layers": 1e400', "no finite number"),
        ('"num_layers": 2', '"num_layers": NaN', "no finite number"),
        ('"num_layers": 2', '"num_layers": -1', "expected 1 to"),
        ('"num_layers": 2', '"num_layers": 1000000000000', "expected 1 to"),
        ('"cell": "rnn"', '"cell": ["rnn"]', "expected one of rnn, gru, lstm"),
        ('"bidirectional": false', '"bidirectional": 0', "`network` differs"),
        ('"label_scheme": null', '"label_schema": null', "label_scheme is 'nothing'"),
        ('"labels": ["e"', '"labels": ["\\ud800"', "surrogates not allowed"),
        ('"time"]', '"tome"]', "its inputs and outputs"),
        ('"metrics": {', '"metrics": {"a": ' + '{"a":' * 40 + "1" + "}" * 40 + ", ", "nested deeper than 32"),
        ('"metrics": {', '"metrics": {"a": ' + "[" * 100_000 + "]" * 100_000 + ", ", "nested deeper than 32"),
    ],
    ids=lambda text: text[:40],
)
def test_json_that_can_be_read_in_two_ways(bundle, old, new, reason):
    """Another reader may take the first of two names, or another number: what differs is never used."""
    text = SMALL_JSON.decode()
    assert old in text
    (bundle / Layout.manifest).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert reason in refusal(bundle)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "cp037"])
def test_a_manifest_is_utf_8(bundle, encoding):
    """Python's reader of JSON guesses encodings that the format does not have."""
    (bundle / Layout.manifest).write_bytes(SMALL_JSON.decode().encode(encoding))
    assert "not JSON" in refusal(bundle)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_any_json_is_refused_as_a_manifest(value):
    """Never another error than ours, however odd."""
    text = json.dumps(value)
    with pytest.raises(BundleError):
        Manifest.from_json(text, "it")
    with pytest.raises(BundleError):
        Manifest.from_metadata({"ohlol.format": '"ohlol-bundle"', "ohlol.format_version": text}, "it")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([key for key in FACTS if key != "files"]),
    st.sampled_from([None, *FACTS["network"]]),
    anything,
    st.sampled_from(["manifest", "metadata"]),
)
def test_any_value_of_any_fact(key, inner, value, how):
    """What is read can be written, described, compared and asked for every shape; or it was refused."""
    facts = copy.deepcopy(SMALL)
    if inner and key == "network":
        facts["network"][inner] = value
    else:
        facts[key] = value
    try:
        if how == "manifest":
            manifest = Manifest.from_json(json.dumps(facts), "it")
        else:
            texts = {contract.METADATA_PREFIX + name: json.dumps(fact) for name, fact in facts.items()}
            manifest = Manifest.from_metadata(texts, "it")
    except BundleError as error:
        assert str(error).startswith("it: ")
        return
    assert manifest == Manifest.from_json(manifest.to_json(), "again").with_files(manifest.files)
    for kind in contract.KINDS:
        try:
            manifest.to_metadata(kind)
        except BundleError as error:
            assert "`network` names no" in str(error)
    try:
        shown = describe.table(describe.describe_manifest(manifest, {}))
        assert shown.replace("\n", "").isprintable()
    except BundleError as error:
        assert "not as ohlol writes them" in str(error)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["network", "metrics", "provenance"]), anything)
def test_any_facts_compare(bundle, key, value):
    """`ohlol compare` of two bundles, one of them odd: a table, or one message."""
    (bundle / Layout.manifest).write_text(json.dumps({**SMALL, key: value}))
    try:
        rows = compare.compare(["hello", str(bundle)])
    except BundleError:
        return
    assert compare.as_text(rows).replace("\n", "").isprintable()
    assert json.loads(compare.as_json(rows))


def hostile(value):
    """What the strict reader refuses, told from the value rather than from its text."""
    if isinstance(value, dict):
        return any(hostile(inner) for pair in value.items() for inner in pair)
    if isinstance(value, list):
        return any(map(hostile, value))
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return not math.isfinite(value) if isinstance(value, float) else len(str(value)) > strict_json.MOST_DIGITS


@settings(max_examples=300)
@given(anything)
def test_strict_json(value):
    """What is read is what Python's own reader reads, and nothing is refused that is not hostile."""
    text = json.dumps(value)
    try:
        found = strict_json.loads(text)
    except ValueError:
        assert hostile(value)
    else:
        assert not hostile(value)
        assert strict_json.same(found, value)


def test_the_same_json():
    """In Python 1 == 1.0 == True; in JSON these are three values."""
    assert strict_json.same({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    for one, other in combinations([1, 1.0, True, "1", [1], None, 0, False], 2):
        assert not strict_json.same(one, other)

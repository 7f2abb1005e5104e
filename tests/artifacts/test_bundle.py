"""Opening a bundle refuses everything that is not whole, and says which file."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Layout, open_bundle, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.manifest import FORMAT_VERSION, Entry, Manifest

FACTS: dict[str, Any] = json.loads((shipped() / Layout.manifest).read_bytes())
LISTED = sorted(FACTS["files"])
DIGEST = "0" * 64

TINY = Manifest(
    task="tag",
    alphabet=Alphabet("aé😀"),
    labels=("x", "y"),
    label_scheme=None,
    network={"cell": "rnn", "hidden_size": 2},
    metrics={"test": {"accuracy": 0.5}},
    provenance={"recipe": {}},
    files={"model.onnx": Entry(DIGEST, 3), "README.md": Entry(DIGEST, 0)},
)

TINY_JSON = """\
{
  "format": "ohlol-bundle",
  "format_version": 1,
  "contract_version": 1,
  "task": "tag",
  "alphabet": {
    "characters": "aé😀",
    "normalisation": "NFC"
  },
  "labels": [
    "x",
    "y"
  ],
  "label_scheme": null,
  "inputs": [
    {
      "name": "codepoints",
      "dtype": "int32",
      "shape": [
        "batch",
        "time"
      ]
    },
    {
      "name": "lengths",
      "dtype": "int32",
      "shape": [
        "batch"
      ]
    }
  ],
  "outputs": [
    {
      "name": "logits",
      "dtype": "float32",
      "shape": [
        "batch",
        "time",
        2
      ]
    },
    {
      "name": "probabilities",
      "dtype": "float32",
      "shape": [
        "batch",
        "time",
        2
      ]
    },
    {
      "name": "label_ids",
      "dtype": "int32",
      "shape": [
        "batch",
        "time"
      ]
    }
  ],
  "opset": 18,
  "ir_version": 10,
  "network": {
    "cell": "rnn",
    "hidden_size": 2
  },
  "metrics": {
    "test": {
      "accuracy": 0.5
    }
  },
  "provenance": {
    "recipe": {}
  },
  "files": {
    "README.md": {
      "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
      "bytes": 0
    },
    "model.onnx": {
      "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
      "bytes": 3
    }
  }
}
"""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["tag", "lm", "NFC", "words", "model.onnx", "\0", "\ud800", "a/" * 3000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(shipped(), tmp_path / "bundle")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for tests that put back what they harm."""
    return shutil.copytree(shipped(), tmp_path_factory.mktemp("scratch") / "bundle")


def write_facts(bundle: Path, facts: object) -> None:
    (bundle / Layout.manifest).write_text(json.dumps(facts), encoding="utf-8")


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a JSON value."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from places(value[key])


def test_the_shipped_bundle_opens_with_every_file(bundle: Path) -> None:
    """What runs is what was checked: the bytes of each listed file, and of no other."""
    opened = open_bundle(bundle)
    assert sorted(opened.contents) == LISTED
    assert {name: (bundle / name).read_bytes() for name in LISTED} == opened.contents
    assert [entry.bytes for entry in opened.manifest.files.values()] == list(
        map(len, opened.contents.values())
    )


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("harm", ["one bit", "truncated", "longer", "empty", "missing", "a folder"])
def test_a_damaged_file_is_refused_by_name(scratch: Path, name: str, harm: str) -> None:
    """No file of a bundle can change, shrink or go without the error naming it."""
    file = scratch / name
    data = file.read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    contents = {"one bit": flipped, "truncated": data[:-1], "longer": data + b"\0", "empty": b""}
    file.unlink()
    if harm in contents:
        file.write_bytes(contents[harm])
    elif harm == "a folder":
        file.mkdir()
    message = refusal(scratch)
    if harm == "a folder":
        file.rmdir()
    file.write_bytes(data)
    assert message.startswith(f"{file}: ")
    assert ("missing" if harm in ("missing", "a folder") else "damaged") in message


@pytest.mark.parametrize("key", ["format_version", "contract_version"])
@pytest.mark.parametrize(("version", "hint"), [(0, "export the checkpoint again"), (2, "upgrade ohlol")])
def test_another_version_is_refused(bundle: Path, key: str, version: int, hint: str) -> None:
    """A bundle of another version is not read as if it were of this one."""
    write_facts(bundle, {**FACTS, key: version})
    message = refusal(bundle)
    assert f"{key} is {version}" in message
    assert hint in message


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "a/..",
        "./x",
        "/etc/passwd",
        "//etc/passwd",
        "a\\b",
        "..\\x",
        "C:x",
        "C:/x",
        "x:stream",
        "",
        ".",
        "a\0b",
        "a\ud800",
        "x" * 5000,
    ],
    ids=lambda name: ascii(name[:20]),
)
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    """No name in a manifest makes a reader look outside the bundle, or fail in another way than ours."""
    write_facts(bundle, {**FACTS, "files": {**FACTS["files"], name: {"sha256": DIGEST, "bytes": 0}}})
    assert str(bundle) in refusal(bundle)


@pytest.mark.skipif(os.name != "posix", reason="links need no rights on POSIX only")
@pytest.mark.parametrize("linked", ["model.onnx", "test_data_set_0"])
def test_a_link_that_leaves_the_folder_is_refused(bundle: Path, linked: str) -> None:
    """A link out of the bundle is refused even where the bytes behind it are right."""
    outside = bundle.parent / "outside"
    (bundle / linked).rename(outside)
    (bundle / linked).symlink_to(outside)
    assert "a link that leaves the bundle" in refusal(bundle)


@pytest.mark.skipif(os.name != "posix", reason="links need no rights on POSIX only")
def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    """A loop of links is one of our errors, not the operating system's."""
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    assert "model.onnx" in refusal(bundle)


@pytest.mark.skipif(os.name != "posix", reason="links need no rights on POSIX only")
def test_links_to_and_inside_a_bundle_open(bundle: Path) -> None:
    """A bundle may lie behind a link, and share one file under two names."""
    (bundle / "model.onnx").rename(bundle / "real.onnx")
    (bundle / "model.onnx").symlink_to("real.onnx")
    (bundle.parent / "link").symlink_to(bundle)
    assert sorted(open_bundle(bundle.parent / "link").contents) == LISTED


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    """Nothing there, a file, and a folder of something else are told apart."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "is not a folder" in refusal(tmp_path / "file")
    assert "has no manifest.json, so it is not a bundle" in refusal(tmp_path / "folder")


def test_a_run_folder_hints_at_export(tmp_path: Path) -> None:
    """Who serves a run is told the command that makes a bundle of it."""
    (tmp_path / "recipe.toml").touch()
    assert f"`ohlol export {tmp_path}`" in refusal(tmp_path)


def test_a_bundle_survives_a_killed_export(bundle: Path) -> None:
    """Killed between its two renames, an export leaves the old bundle beside the place: it still opens."""
    bundle.rename(bundle.with_name(".bundle.old"))
    assert sorted(open_bundle(bundle).contents) == LISTED


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "\ufeff{}", "[" * 100_000, '{"format": 1}'])
def test_a_damaged_manifest_is_refused(bundle: Path, text: str) -> None:
    """A manifest that is no manifest is named as what is wrong."""
    (bundle / Layout.manifest).write_text(text, encoding="utf-8")
    assert str(bundle / Layout.manifest) in refusal(bundle)


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    """Bytes that are no text are damage, not a crash."""
    (bundle / Layout.manifest).write_bytes(b'{"format": "\xff\xfe\xff"}')
    assert "not JSON" in refusal(bundle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "translate"}, "task is 'translate', expected one of tag, classify, lm"),
        ({"labels": []}, "a tag model with 0 labels"),
        ({"task": "lm"}, "a lm model with 4 labels"),
        ({"labels": ["a", "a"]}, "labels must be strings, each there once"),
        ({"labels": ["a", 1]}, "labels must be strings, each there once"),
        ({"label_scheme": "BIO"}, "label_scheme is 'BIO', expected null or 'words'"),
        ({"label_scheme": "words"}, "label_scheme 'words' is for a tag model with the labels B, I, O, S"),
        ({"alphabet": {"characters": "aa", "normalisation": "NFC"}}, "'a' stands there more than once"),
        ({"alphabet": {"characters": "a"}}, "`normalisation` should be a string, found nothing"),
        ({"network": None}, "`network` should be an object, found None"),
        ({"format_version": True}, "`format_version` should be a whole number, found True"),
        ({"files": {}}, "lists no model.onnx"),
        ({"files": {"model.onnx": None}}, "no digest for 'model.onnx'"),
        ({"files": {"model.onnx": {"sha256": "0"}}}, "`bytes` should be a whole number, found nothing"),
    ],
    ids=str,
)
def test_facts_that_do_not_fit_are_refused(bundle: Path, changes: dict[str, Any], reason: str) -> None:
    """A manifest cannot promise what the model is not."""
    write_facts(bundle, {**FACTS, **changes})
    assert reason in refusal(bundle)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_mutated_manifest_opens_or_is_refused(scratch: Path, data: st.DataObject) -> None:
    """Whatever stands in a manifest, the only error is ours, and what opens can be written again."""
    facts = copy.deepcopy(FACTS)
    facts["files"] = {name: facts["files"][name] for name in LISTED[:4]}
    for _ in range(data.draw(st.integers(1, 2))):
        holder, key = data.draw(st.sampled_from(list(places(facts))))
        action = data.draw(st.sampled_from(["change", "remove", "rename"]))
        value = holder.pop(key)
        if action == "change":
            value = data.draw(json_values)
        if isinstance(holder, list) and action != "remove":
            holder.insert(key, value)
        elif action != "remove":
            name = data.draw(st.text(st.characters(codec=None), max_size=4)) if action == "rename" else key
            holder[name] = value
    write_facts(scratch, facts)
    try:
        manifest = open_bundle(scratch).manifest
    except BundleError as error:
        assert str(scratch) in str(error)
    else:
        assert manifest == Manifest.from_json(manifest.to_json(), "again")
    finally:
        write_facts(scratch, FACTS)


def test_the_bytes_of_a_tiny_manifest() -> None:
    """The format is what is written, to the byte: a change here is a new format version."""
    assert (FORMAT_VERSION, contract.VERSION) == (1, 1)
    assert TINY.to_json() == TINY_JSON


MANIFESTS = {
    "tag": TINY,
    "words": Manifest("tag", Alphabet("a"), ("B", "I", "O", "S"), "words", {}),
    "classify": Manifest("classify", Alphabet("\u0301 \n", "NFD"), ("", "\"'\\"), None, {"x": [1.5, None]}),
    "lm": Manifest("lm", Alphabet("", "none"), (), None, {}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_round_trips_through_json(name: str) -> None:
    """What is written is read back equal, files included."""
    manifest = MANIFESTS[name]
    assert manifest == Manifest.from_json(manifest.to_json(), "it")
    assert manifest == Manifest.from_json(manifest.to_json().encode(), "it")


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_round_trips_through_metadata(name: str) -> None:
    """A single .onnx file says everything but the list of files; other people's metadata does not disturb."""
    manifest = MANIFESTS[name]
    metadata = {**manifest.to_metadata(), "producer": "not JSON"}
    assert manifest.with_files({}) == Manifest.from_metadata(metadata, "it")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "an ONNX file that ohlol did not export"),
        ({"author": "x"}, "an ONNX file that ohlol did not export"),
        ({"ohlol.format": "{"}, "its metadata is damaged"),
        ({"ohlol.format": '"other"'}, "format is 'other'"),
    ],
)
def test_foreign_metadata_is_refused(metadata: dict[str, str], reason: str) -> None:
    """An .onnx file of somebody else is told apart from a damaged one of ours."""
    with pytest.raises(BundleError, match=reason):
        Manifest.from_metadata(metadata, "it")


@given(
    st.sampled_from(contract.TASKS),
    st.lists(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), unique=True).map("".join),
    st.lists(st.text(st.characters(exclude_categories=("Cs",))), unique=True, min_size=1),
)
def test_any_alphabet_and_labels_round_trip(task: contract.Task, characters: str, labels: list[str]) -> None:
    """No character and no label is lost or changed between export and serving."""
    names = () if task == "lm" else tuple(labels)
    manifest = Manifest(task, Alphabet(characters, "none"), names, None, {})
    assert manifest == Manifest.from_json(manifest.to_json().encode(), "it")
    assert manifest == Manifest.from_metadata(manifest.to_metadata(), "it")

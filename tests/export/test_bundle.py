"""A run exported: whole, proved, or not at all."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from ohlol.artifacts.bundle import Layout, open_bundle
from ohlol.artifacts.errors import BundleError, CheckpointError
from ohlol.cli import main
from ohlol.export import bundle as bundle_module
from ohlol.export.bundle import FORMATS, export
from ohlol.export.formats import to_onnx
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipes):
    """A short run of the smallest teaching model."""
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = Recipe.load(recipes / "seed" / "rnn_one_hot.toml")
    data = load(recipe, folder)
    finish(train(recipe, data, folder), data)
    return folder


def test_a_failed_proof_leaves_no_bundle(run, tmp_path, monkeypatch):
    """Exit 1, the table, and nothing written: a bundle that is wrong is worse than none."""
    monkeypatch.setattr(bundle_module, "to_onnx", lambda network, *given: to_onnx(damaged(network), *given))
    result = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "FAILED in 10" in result.output
    assert "`logits` differs by" in result.output
    assert "no bundle was written" in result.output
    assert list(tmp_path.iterdir()) == []


def damaged(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    return other


def test_the_bundle_of_a_run(run, tmp_path):
    """Every file is listed with its digest, the proof is kept, and the facts say where it comes from."""
    exported = export(run, tmp_path / "bundle")
    assert exported.left_out == {}
    bundle = open_bundle(tmp_path / "bundle")
    on_disk = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.manifest.files, Layout.manifest}
    kept = json.loads(bundle.contents[Layout.proof])
    assert kept == json.loads(json.dumps(exported.proof.to_dict()))
    assert {row["file"] for row in kept["rows"]} == {
        "(PyTorch, float32)", Layout.onnx, Layout.torchscript, Layout.stream, Layout.text
    }  # fmt: skip
    facts = bundle.manifest.provenance
    assert facts["recipe"]["train"]["learning_rate"] == 0.05
    assert facts["checkpoint"]["epoch"] == 15
    assert set(bundle.manifest.metrics) == {"train"}
    assert str(run.parent).encode() not in b"".join(bundle.contents.values())


def test_exporting_again_replaces_a_bundle_and_nothing_else(run, tmp_path):
    """A person's folder or file is never taken for an old bundle."""
    out = tmp_path / "bundle"
    export(run, out, ("onnx",))
    export(run, out, ("onnx",))
    assert Layout.torchscript not in open_bundle(out).manifest.files
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        export(run, out)
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(BundleError, match="is not a bundle"):
        export(run, out)
    assert (out / "thesis.tex").read_text() == "mine"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run of a GRU of a usual size, both ways, barely trained, with dev and test data."""
    folder = tmp_path_factory.mktemp("wide")
    lines = [
        f"{word}\t{label}\n"
        for word, label in (("kato", "a"), ("smith", "b"), ("novak", "c"))
        for _ in range(20)
    ]
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    recipe = Recipe.parse(
        {
            "task": {"kind": "classify"},
            "data": {"format": "tsv", "train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            "model": {"cell": "gru", "hidden_size": 64, "embedding_size": 32, "bidirectional": True},
            "train": {"epochs": 2, "learning_rate": 0.01},
        },
        "a recipe",
    )
    data = load(recipe, folder)
    finish(train(recipe, data, folder / "run"), data)
    return folder / "run"


def test_every_format_of_a_network(wide, tmp_path):
    """`--formats all`: what this network can have is written and proved, what not is said."""
    exported = export(wide, tmp_path / "bundle", tuple(FORMATS))
    bundle = open_bundle(tmp_path / "bundle")
    assert exported.left_out == {"stream": "a network that reads both ways has no state to go on from"}
    assert set(FORMATS.values()) - {Layout.stream} <= set(bundle.contents)
    assert {row.file for row in exported.proof.rows} - {"(PyTorch, float32)"} == set(FORMATS.values()) - {
        Layout.stream
    }
    sizes = {name: len(content) for name, content in bundle.contents.items()}
    for name in (Layout.half, Layout.int8):
        entry = bundle.manifest.files[name]
        assert sizes[name] < sizes[Layout.onnx]
        assert entry.measured["split"] == "test"
        assert set(entry.measured["metrics"]) == set(entry.measured["change"]) == {"accuracy", "macro_f1"}
        before = {
            key: entry.measured["metrics"][key] - entry.measured["change"][key]
            for key in entry.measured["change"]
        }
        assert before == pytest.approx(bundle.manifest.metrics["test"])
    assert bundle.manifest.files[Layout.onnx].measured == {}
    assert str(wide.parent).encode() not in b"".join(bundle.contents.values())


def test_low_precision_needs_the_data_it_is_measured_on(wide, tmp_path):
    """A loss that nobody measured is not recorded: without the data there is no such file, and that is said."""
    moved = tmp_path / "moved"
    shutil.copytree(wide, moved)
    state = json.loads((moved / "last" / "state.json").read_text())
    (moved / "last" / "state.json").write_text(json.dumps(state | {"data_folder": str(tmp_path / "nowhere")}))
    exported = export(moved, tmp_path / "bundle", ("onnx", "int8"))
    assert "its loss cannot be measured" in exported.left_out["int8"]
    assert "test.tsv" in exported.left_out["int8"]
    assert Layout.int8 not in open_bundle(tmp_path / "bundle").contents
    export(moved, tmp_path / "bundle", ("onnx", "int8"), data=wide.parent)
    assert Layout.int8 in open_bundle(tmp_path / "bundle").contents


def test_what_is_not_smaller_is_left_out(run, tmp_path):
    """int8 of a network of a few hundred numbers would be the larger file."""
    exported = export(run, tmp_path / "bundle", ("onnx", "int8", "batch"))
    assert Layout.int8 not in open_bundle(tmp_path / "bundle").contents
    assert "are not fewer than" in exported.left_out["int8"]
    assert exported.left_out["batch"] == "model.onnx of an RNN is the fastest for many rows already"


def test_a_weight_that_float16_cannot_hold(make):
    """Rounded to infinity it would be another network: the file is left out, not proved wrong."""
    network, _ = make("tag", "gru", False, 1)
    assert bundle_module._not_possible("fp16", network) == ""
    with torch.no_grad():
        next(network.parameters()).view(-1)[5] = -70_000
    assert bundle_module._not_possible("fp16", network) == "a weight is 70,000, and float16 ends at 65,504"
    assert bundle_module._not_possible("int8", network) == ""


def test_a_bundle_is_proved_against_its_own_run_only(run, wide, tmp_path):
    """Another checkpoint is not what the bundle was made of, however alike."""
    export(run, tmp_path / "bundle", ("onnx",))
    bundle = open_bundle(tmp_path / "bundle")
    again = bundle_module.prove_again(bundle, run, ["onnxruntime"])
    assert again.passed
    assert {row.runtime for row in again.rows} == {"torch", "onnxruntime"}
    with pytest.raises(CheckpointError, match="name the run it was made of"):
        bundle_module.prove_again(bundle, wide, ["onnxruntime"])

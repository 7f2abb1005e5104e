"""The proof finds what is wrong, and a failed one leaves no bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Layout, open_bundle
from ohlol.artifacts.errors import BundleError, ProofError
from ohlol.artifacts.parity import TOLERANCE, Case, Proof, compare
from ohlol.cli import main
from ohlol.export import bundle as bundle_module
from ohlol.export import graph as graph_module
from ohlol.export import proof
from ohlol.export.bundle import export
from ohlol.export.formats import to_onnx, to_torchscript
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection, Recipe

CASE = Case("a case", np.full((2, 3), 101, dtype=np.int32), np.array([3, 2], dtype=np.int32))


def outputs():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4)).astype(np.float32)
    labels = logits.argmax(-1).astype(np.int32)
    logits[1, 2], labels[1, 2] = 0, -1
    return {"logits": logits, "probabilities": logits / 4, "label_ids": labels}


def changed(name, value):
    return {**outputs(), name: value}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (outputs(), ""),
        ({k: v for k, v in outputs().items() if k != "logits"}, "no output `logits`"),
        (changed("logits", outputs()["logits"][:1]), "`logits` has shape (1, 3, 4), expected (2, 3, 4)"),
        (changed("logits", outputs()["logits"].reshape(3, 2, 4)), "`logits` has shape"),
        (changed("logits", outputs()["logits"].astype(np.float64)), "`logits` is float64, expected float32"),
        (changed("label_ids", outputs()["label_ids"].astype(np.int64)), "`label_ids` is int64"),
        (changed("logits", outputs()["logits"] + np.float32(1e-3)), "`logits` differs by 0.001"),
        (changed("probabilities", outputs()["probabilities"] * np.nan), "`probabilities` differs by nan"),
        (changed("label_ids", (outputs()["label_ids"] + 1) % 4), "6 of 6 labels differ"),
    ],
)
def test_each_step_of_the_ladder(found, problem):
    """Shape, dtype, values, labels: nothing is reshaped or cast until it agrees."""
    row = compare("file", CASE, found, outputs(), "tag")
    assert row.problem.startswith(problem)
    assert row.passed == (problem == "")


def test_a_tie_within_tolerance_is_no_difference():
    """Two logits closer than the tolerance may be told apart differently; further apart they may not."""
    expected = outputs()
    expected["logits"][0, 0] = [1.0, 1.0 + TOLERANCE, 0, 0]
    expected["label_ids"][0, 0] = 1
    found = {**expected, "label_ids": expected["label_ids"].copy()}
    found["label_ids"][0, 0] = 0
    assert compare("file", CASE, found, expected, "tag").labels_differing == 0
    expected["logits"][0, 0, 1] = 1.0 + 100 * TOLERANCE
    assert (
        compare("file", CASE, {**found, "logits": expected["logits"]}, expected, "tag").labels_differing == 1
    )


ALPHABET = Alphabet("ehlo")


def network_of(cell, two_way=True):
    torch.manual_seed(0)
    model = ModelSection(cell=cell, hidden_size=16, embedding_size=8, bidirectional=two_way, num_layers=2)
    return Network(model, "tag", len(ALPHABET), 4).eval(), model


def table_of(network, model, alphabet=ALPHABET, cases=None):
    """The proof of files made while something is broken, against the network that is whole."""
    manifest = bundle_module.Manifest("tag", alphabet, ("e", "h", "l", "o"), None, model.model_dump())
    runners = {
        "model.onnx": proof.onnx_runner(to_onnx(network, manifest)),
        "model.torchscript.pt": proof.torchscript_runner(to_torchscript(network, alphabet), "tag"),
    }
    return runners, proof.draw_cases(ALPHABET)


def wrong_gates(monkeypatch):
    monkeypatch.setitem(graph_module.GATES, "gru", (0, 1, 2))
    monkeypatch.setitem(graph_module.GATES, "lstm", (0, 1, 2, 3))


def other_gru(monkeypatch):
    real = graph_module._onnx
    monkeypatch.setattr(
        graph_module,
        "_onnx",
        lambda op, inputs, attributes, like, shape: real(
            op, inputs, {k: v for k, v in attributes.items() if k != "linear_before_reset"}, like, shape
        ),
    )


def lengths_ignored(monkeypatch):
    monkeypatch.setattr(graph_module.OnnxGraph, "reverse", lambda self, x, ends: x.flip(0))


def a_layer_dropped(monkeypatch):
    real = graph_module.Graph.both_ways
    monkeypatch.setattr(
        graph_module.Graph,
        "both_ways",
        lambda self, number, x, ends: [x] if number == 1 else real(self, number, x, ends),
    )


def swapped_biases(monkeypatch):
    real = graph_module._stacked

    def swapped(layer, cell):
        W, R, B = real(layer, cell)
        return W, R, B.roll(B.shape[1] // 2, dims=1)

    monkeypatch.setattr(graph_module, "_stacked", swapped)


@pytest.mark.parametrize(
    ("cell", "breakage"),
    [
        ("gru", wrong_gates),
        ("lstm", wrong_gates),
        ("gru", other_gru),
        ("rnn", lengths_ignored),
        ("lstm", a_layer_dropped),
        ("gru", swapped_biases),
    ],
)
def test_known_ways_of_going_wrong_are_caught(monkeypatch, cell, breakage):
    """Each is a bug that shipped somewhere: the proof must see it."""
    network, model = network_of(cell)
    breakage(monkeypatch)
    runners, cases = table_of(network, model)
    assert not proof.prove(network, ALPHABET, runners, cases).passed


def test_an_alphabet_shifted_by_one_is_caught():
    """The vocabulary beside the model gets swapped; inside, the proof looks it up independently."""
    network, model = network_of("gru")
    runners, cases = table_of(network, model, alphabet=Alphabet("hloe"))
    assert not proof.prove(network, ALPHABET, runners, cases).passed


def test_no_rows_prove_nothing():
    """An empty table is not a proof."""
    assert Proof([], {}).passed is False


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
    monkeypatch.setattr(
        bundle_module, "to_onnx", lambda network, manifest: to_onnx(damaged(network), manifest)
    )
    result = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "FAILED: `logits` differs" in result.output
    assert "no bundle was written" in result.output
    assert list(tmp_path.iterdir()) == []


def damaged(network):
    import copy

    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    return other


def test_the_bundle_of_a_run(run, tmp_path):
    """Every file is listed with its digest, the proof is kept, and the facts say where it comes from."""
    table = export(run, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    on_disk = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.manifest.files, Layout.manifest}
    kept = json.loads(bundle.contents[Layout.proof])
    assert kept == json.loads(json.dumps(table.to_dict()))
    assert {row["file"] for row in kept["rows"]} == {Layout.onnx, Layout.torchscript}
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


def test_an_axis_that_was_frozen_is_refused(run, monkeypatch):
    """The exporter froze the time axis for others without a word; here it would end the export."""
    network, model = network_of("rnn")
    manifest = bundle_module.Manifest("tag", ALPHABET, ("e", "h", "l", "o"), None, model.model_dump())
    real = torch.onnx.export
    frozen = lambda *args, **options: real(*args, **{**options, "dynamic_shapes": None})  # noqa: E731
    monkeypatch.setattr(torch.onnx, "export", frozen)
    with pytest.raises(ProofError, match="symbolic"):
        to_onnx(network, manifest)


def test_a_network_that_gives_nan_is_not_proved():
    """NaN compares false with everything; the proof must not take that for agreement."""
    network, _ = network_of("rnn")
    case = CASE
    expected = proof.expected_outputs(network, ALPHABET, case)
    found = {
        name: np.full_like(array, np.nan) if array.dtype == np.float32 else array
        for name, array in expected.items()
    }
    assert compare("file", case, found, expected, "tag").passed is False
    assert replace(compare("file", case, expected, expected, "tag"), problem="").passed is True


class Misread(Alphabet):
    """An alphabet whose page table takes one character for unknown."""

    @cached_property
    def page_table(self):
        pages, table = super().page_table
        last = self.characters[-1]
        table[pages[ord(last) // 256] + ord(last) % 256] = 1
        return pages, table


def test_a_wrong_page_table_is_caught_for_any_character():
    """The proof looks every known character up by itself, in another way than the exported files do."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    torch.manual_seed(0)
    model = ModelSection(cell="gru", hidden_size=8, embedding_size=8)
    network = Network(model, "tag", len(characters) + 2, 4).eval()
    runners, _ = table_of(network, model, alphabet=Misread(characters))
    whole = Alphabet(characters)
    table = proof.prove(network, whole, runners, proof.draw_cases(whole))
    assert {row.case for row in table.rows if not row.passed} >= {"every character"}


def test_on_a_tie_only_the_tied_labels_pass():
    """Two labels that are equally good may be exchanged; a third one may not, nor one that is none."""
    expected = {"logits": np.array([[5.0, 5.0, -9.0]], np.float32), "label_ids": np.array([0], np.int32)}
    for label, differs in ((0, 0), (1, 0), (2, 1), (99, 1), (-1, 1)):
        found = {**expected, "label_ids": np.array([label], np.int32)}
        assert compare("file", CASE, found, expected, "classify").labels_differing == differs

"""The proof finds what is wrong, and says where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.parity import TOLERANCE, Case, Proof, Row, compare
from ohlol.export import proof

ALPHABET = Alphabet("ehlo")
CASE = Case("a case", np.full((2, 3), 101, dtype=np.int32), np.array([3, 2], dtype=np.int32))


NAMES = ("logits", "probabilities", "label_ids")


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
    row = compare("file", "here", CASE, found, outputs(), NAMES)
    assert row.problem.startswith(problem)
    assert row.passed == (problem == "")


def test_a_tie_within_tolerance_is_no_difference():
    """Two logits closer than the tolerance may be told apart differently; further apart they may not."""
    expected = outputs()
    expected["logits"][0, 0] = [1.0, 1.0 + TOLERANCE, 0, 0]
    expected["label_ids"][0, 0] = 1
    found = {**expected, "label_ids": expected["label_ids"].copy()}
    found["label_ids"][0, 0] = 0
    assert compare("file", "here", CASE, found, expected, NAMES).labels_differing == 0
    expected["logits"][0, 0, 1] = 1.0 + 100 * TOLERANCE
    row = compare("file", "here", CASE, {**found, "logits": expected["logits"]}, expected, NAMES)
    assert row.labels_differing == 1


def test_a_file_that_cannot_be_run_is_not_proved(make):
    """What a runtime raises is a row that fails, with its words, not a traceback."""
    network, _ = make("tag", "gru", True, 1)

    def broken(case):
        raise RuntimeError("no kernel for this\nand a long trace")

    claim = proof.Claim("a file", "a runtime", broken, ("logits",))
    table = proof.prove(network, ALPHABET, [proof.eager(network, ALPHABET)], [CASE])
    assert table.passed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof.runtimes, "runtime_version", lambda name: "0")
        table = proof.prove(network, ALPHABET, [claim], [CASE])
    assert [row.problem for row in table.rows] == ["RuntimeError: no kernel for this"]
    assert "FAILED in 1" in table.table()


def test_no_rows_prove_nothing():
    """An empty table is not a proof."""
    assert Proof("an oracle", [], {}).passed is False


def test_the_table_says_where_the_worst_is():
    """A line for each file and runtime: cases, errors, the case of the worst, labels, tolerance, verdict."""
    rows = [
        Row("model.onnx", "onnxruntime", "one", (1, 2), 1e-7, 2e-7, 0, 1e-5, ""),
        Row("model.onnx", "onnxruntime", "two", (3, 4), 3e-7, 1e-7, 2, 1e-5, "`logits` differs by 3e-07"),
        Row("model.onnx", "openvino", "one", (1, 2), 1e-7, 2e-7, 0, 1e-5, ""),
    ]
    lines = Proof("an oracle", rows, {}).table().splitlines()
    expected = [
        "model.onnx",
        "onnxruntime",
        "2",
        "3.0e-07",
        "2.0e-07",
        "two",
        "2",
        "1e-05",
        "FAILED",
        "in",
        "1",
    ]
    assert lines[1].split() == expected
    assert lines[2].split() == [
        "model.onnx",
        "openvino",
        "1",
        "1.0e-07",
        "2.0e-07",
        "one",
        "equal",
        "1e-05",
        "ok",
    ]
    assert lines[3] == "FAILED: model.onnx in onnxruntime, two (3×4): `logits` differs by 3e-07"


def test_the_oracle_is_nearer_than_float32(make):
    """float64 of the same weights: eager float32 differs from it, by rounding."""
    network, manifest = make("tag", "lstm", True, 2, hidden_size=33)
    case = proof.draw_cases(manifest.alphabet)[3]
    exact = proof.expected_outputs(network, manifest.alphabet, case)
    assert exact["logits"].dtype == np.float64
    single = proof.expected_outputs(network, manifest.alphabet, case, torch.float32)
    assert 0 < np.abs(single["logits"] - exact["logits"]).max() < 1e-5
    assert next(network.parameters()).dtype == torch.float32, "the network itself stays as it was"


def test_a_network_that_gives_nan_is_not_proved(make):
    """NaN compares false with everything; the proof must not take that for agreement."""
    network, _ = make("tag", "rnn", False, 1, alphabet=ALPHABET)
    expected = proof.expected_outputs(network, ALPHABET, CASE, torch.float32)
    found = {
        name: np.full_like(array, np.nan) if array.dtype == np.float32 else array
        for name, array in expected.items()
    }
    assert compare("file", "here", CASE, found, expected, NAMES).passed is False
    assert compare("file", "here", CASE, expected, expected, NAMES).passed is True


def test_on_a_tie_only_the_tied_labels_pass():
    """Two labels that are equally good may be exchanged; a third one may not, nor one that is none."""
    expected = {"logits": np.array([[5.0, 5.0, -9.0]], np.float32), "label_ids": np.array([0], np.int32)}
    for label, differs in ((0, 0), (1, 0), (2, 1), (99, 1), (-1, 1)):
        found = {**expected, "label_ids": np.array([label], np.int32)}
        assert compare("file", "here", CASE, found, expected, ("label_ids",)).labels_differing == differs

"""Long texts in pieces, several batches at once: the answers are those of one text run whole."""

from __future__ import annotations

import os

import numpy as np
import pytest

import ohlol
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.serve import runner
from ohlol.serve.rows import Rows
from ohlol.serve.runtimes import _quota, cpus


def whole(model, text):
    """The outputs for a text in one run."""
    points = codepoints(text)[None]
    return model.outputs(points, np.array([points.shape[1]], dtype=np.int32))


@pytest.fixture
def short_pieces(monkeypatch):
    """Pieces so small that any text is long."""
    for name, value in (("LONG", 64), ("STRETCH", 32), ("CONTEXT", 16)):
        monkeypatch.setattr(runner, name, value)


def test_a_long_text_of_one_way(short_pieces):
    """Read in chunks with the state carried: exactly the whole text's answers, whatever is around it."""
    model = ohlol.load("hello")
    texts = ["hello" * 50, "", "oleh" * 3, "lohé" * 40, "h"]
    for text, result in zip(texts, model(texts), strict=True):
        assert result.text == text
        if text:
            np.testing.assert_allclose(
                result.probabilities, whole(model, text)["probabilities"][0], atol=1e-5
            )
            assert result.label_ids.tolist() == whole(model, text)["label_ids"][0].tolist()


def test_a_long_text_of_a_language_model(short_pieces, golden):
    """Nats are those of the whole text, and what comes next is of its end."""
    model = ohlol.load(golden / "files")
    text = "hello 👋 ohlol " * 30
    scored = model([text, "hello"])[0]
    logits = whole(model, text)["logits"][0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = model.manifest.alphabet.encode(text)[1:]
    expected = -log_p[np.arange(len(ids)), ids].mean()
    assert scored.nats_per_character == pytest.approx(expected, abs=1e-5)
    assert scored.next == model.manifest.alphabet.character(int(log_p[-1].argmax()))


def test_a_long_text_both_ways(short_pieces, golden):
    """Windows with context on both sides: every character has an answer, and nearly all are those of the whole text."""
    model = ohlol.load(golden / "words")
    assert model.manifest.network["bidirectional"]
    text = "xin chào bạn. đi New York nhé " * 20
    (result,) = model([text])
    assert len(result.labels) == len(text)
    expected = whole(model, text)
    assert np.mean(result.label_ids == expected["label_ids"][0]) > 0.99
    assert np.abs(result.probabilities - expected["probabilities"][0]).max() < 0.1


def test_pieces_are_shorter_where_an_answer_is_wide(golden, monkeypatch):
    """A language model of thousands of characters: the logits of a piece are bounded, and the score is the whole's."""
    model = ohlol.load(golden / "files")
    text = "hello 👋 ohlol " * 60
    monkeypatch.setattr(runner, "NUMBERS", 100 * model.manifest.classes)
    monkeypatch.setattr(runner, "CONTEXT", 16)
    narrow = ohlol.load(golden / "files")
    assert (model.runner.long, narrow.runner.long, narrow.runner.stretch) == (8_192, 200, 100)
    assert narrow(text).nats_per_character == pytest.approx(model(text).nats_per_character, abs=1e-5)


def test_threads_and_workers_share_the_cpus(monkeypatch):
    """As many workers as the CPUs have room for, when each runs several threads."""
    monkeypatch.setattr("ohlol.serve.model.cpus", lambda: 8)
    assert [ohlol.load("hello", threads=n).runner._workers for n in (1, 3, 16)] == [8, 2, 1]
    assert ohlol.load("hello", threads=3, workers=5).runner._workers == 5


def test_a_classifier_that_reads_both_ways_refuses_what_it_cannot_read_whole(golden):
    """Its answer needs the whole text at once: beyond `max_length` it says so, never cuts."""
    model = ohlol.load(golden / "classify")
    assert model.manifest.network["bidirectional"]
    assert model("x" * 20_000).label is not None
    model.max_length = 10
    with pytest.raises(InputError, match="a text of 11 characters, expected at most 10"):
        model(["ab", "x" * 11])
    with pytest.raises(InputError, match="11 characters"):
        model("x" * 11)


def test_several_batches_at_once_keep_their_order(golden, monkeypatch):
    """Thousands of texts over four threads: each has the answer that it has alone."""
    monkeypatch.setattr(runner, "CHARACTERS", 64)
    model = ohlol.load(golden / "classify", workers=4)
    texts = [("Rossi", "田中", "Müller", "", "Koch")[k % 5] * (k % 7) for k in range(3_000)]
    alone = {text: model(text) for text in set(texts)}
    assert [alone[text].label for text in texts] == [result.label for result in model(texts)]


def test_an_error_in_a_thread_is_the_callers(monkeypatch):
    """What goes wrong in a batch comes out of the call, not into a thread's end."""
    monkeypatch.setattr(runner, "CHARACTERS", 16)
    model = ohlol.load("hello", workers=2)

    class Broken:
        def run(self, *_):
            raise RuntimeError("the runtime failed")

    model.runner._session = Broken()
    with pytest.raises(BundleError, match="the runtime failed"):
        model(["hello"] * 100)


def test_windows_are_answered_in_order():
    """While one window is given out the next is at work; none overtakes."""
    model = ohlol.load("hello")
    windows = (Rows.of(["hello"[: k % 6]] * 100, model.manifest.alphabet) for k in range(20))
    answered = [answers.lines() for answers in model.answers(windows)]
    assert [str(model("hello"[: k % 6])) + "\n" for k in range(20)] == [
        lines[: k % 6 + 1] for k, lines in enumerate(answered)
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_cpus_of_a_container(tmp_path, files, expected):
    """A container's limit is its control group's, not the machine's number of CPUs."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == expected


def test_cpus_of_this_process():
    """At least one, and no more than the process is bound to."""
    assert 1 <= cpus() <= len(os.sched_getaffinity(0))

"""Networks, sizes, lengths and alphabets drawn at random; and what must not change an answer."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.contract import inputs
from ohlol.artifacts.parity import TOLERANCE, Case
from ohlol.export import proof
from ohlol.serve.runtimes import run_in

# What people write: Latin, Vietnamese, Chinese, Hangul, Arabic, emoji with joiners, combining marks.
WRITTEN = "abcdefghij éüøđ ắễộ 中文字符图 한국어 العربية 👩‍💻😀🏳️‍🌈 \u0301\u0302\u0323\u200d\ufe0f\n\t\u00a0"
alphabets = st.sets(st.sampled_from(WRITTEN) | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
                    min_size=1, max_size=30).map(lambda found: Alphabet("".join(sorted(found))))  # fmt: skip


@st.composite
def networks(draw):
    """What `make` takes; hidden sizes where kernels have remainders."""
    task = draw(st.sampled_from(["tag", "classify", "lm"]))
    return {
        "task": task,
        "cell": draw(st.sampled_from(["rnn", "gru", "lstm"])),
        "two_way": task != "lm" and draw(st.booleans()),
        "layers": draw(st.integers(1, 3)),
        "given": draw(st.sampled_from(["embedding", "one_hot"])),
        "alphabet": draw(alphabets),
        "hidden_size": draw(st.sampled_from([1, 2, 3, 7, 8, 16, 17, 33])),
        "embedding_size": draw(st.integers(1, 20)),
    }


@st.composite
def batches(draw, alphabet):
    """A ragged batch of known, unknown and impossible code points, garbage in the padding."""
    B, T = draw(st.sampled_from([1, 2, 5, 17, 50])), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    known = np.array([ord(c) for c in alphabet.characters], dtype=np.int32)
    points = known[random.integers(len(known), size=(B, T))]
    strange = random.integers(-(2**31), 2**31, size=(B, T)).astype(np.int32)
    near = random.integers(0, 0x30000, size=(B, T)).astype(np.int32)
    points = np.where(random.random((B, T)) < 0.1, strange, points)
    points = np.where(random.random((B, T)) < 0.1, near, points)
    return Case("drawn", points, random.integers(1, T + 1, size=B).astype(np.int32))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), described=networks())
def test_drawn_networks_and_batches(data, described, make, write, claims):
    """Every ONNX file, in every runtime there is, and TorchScript; weights as they are made, or larger."""
    network, manifest = make(**described)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(data.draw(st.sampled_from([1, 2])))
    files = [Layout.onnx, Layout.batch, Layout.half, Layout.int8, Layout.text, Layout.torchscript]
    files += [] if described["two_way"] else [Layout.stream]
    claimed = [claim for file in files for claim in claims(file, write(file, network, manifest), manifest)]
    case = data.draw(batches(manifest.alphabet))
    table = proof.prove(network, manifest.alphabet, claimed, [case])
    assert table.passed, table.table()


CELLS = ("rnn", "gru", "lstm")
FILES = (Layout.onnx, Layout.batch, Layout.half, Layout.int8)


@cache
def runs(make, write, file, cell, two_way):
    """A file ready to run in ONNX Runtime, and its manifest."""
    network, manifest = make("tag", cell, two_way, 2, hidden_size=24)
    return run_in("onnxruntime", write(file, network, manifest), file), manifest


def batch(B, T, seed):
    random = np.random.default_rng(seed)
    points = random.choice(np.array([101, 104, 108, 111, 32, 0x4E2D, 7], dtype=np.int32), size=(B, T))
    return points, random.integers(1, T + 1, size=B).astype(np.int32)


def near(found, expected, file):
    """Equal to rounding: float32's, and of an int8 file that of a state which falls on the other side."""
    limit = 0.02 if file == Layout.int8 else TOLERANCE
    return np.abs(found - expected).max() <= limit * (1 + np.abs(expected).max())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("file", FILES)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), B=st.integers(1, 30), T=st.integers(1, 20), more=st.integers(1, 30))
def test_padding_company_and_order_change_nothing(file, two_way, cell, make, write, seed, B, T, more):
    """A row's answer is its own: padded further, in another order, alone. int8 too: no step is the batch's."""
    run, _ = runs(make, write, file, cell, two_way)
    points, lengths = batch(B, T, seed)
    expected = run({"codepoints": points, "lengths": lengths})["logits"]
    garbage = np.random.default_rng(seed).integers(-(2**31), 2**31, size=(B, more)).astype(np.int32)
    padded = run({"codepoints": np.concatenate([points, garbage], axis=1), "lengths": lengths})["logits"]
    assert near(padded[:, :T], expected, file)
    assert (padded[:, T:] == 0).all()
    order = np.random.default_rng(seed).permutation(B)
    permuted = run({"codepoints": points[order], "lengths": lengths[order]})["logits"]
    assert near(permuted, expected[order], file)
    row, length = seed % B, lengths[seed % B]
    alone = run({"codepoints": points[row : row + 1, :length], "lengths": lengths[row : row + 1]})["logits"]
    assert near(alone[0], expected[row, :length], file)


@pytest.mark.parametrize("task", ["tag", "classify", "lm"])
@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=15)
@given(data=st.data())
def test_chunked_is_whole_from_any_state(cell, task, make, write, data):
    """Text cut anywhere, the state carried, beginning with a state that is not zero, gives what whole text gives."""
    run, manifest = stream(make, write, cell, task)
    B, T = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 2**32))
    points, _ = batch(B, T, seed)
    S, _, H = manifest.shape(inputs("stream")[1])
    state = np.random.default_rng(seed).uniform(-1, 1, size=(S, B, H)).astype(np.float32)
    whole = run({"codepoints": points, "state": state})
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=T - 1))) if T > 1 else []
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        parts.append(run({"codepoints": points[:, start:stop], "state": state}))
        state = parts[-1]["next_state"]
    logits = (
        parts[-1]["logits"] if task == "classify" else np.concatenate([p["logits"] for p in parts], axis=1)
    )
    assert near(logits, whole["logits"], Layout.stream)
    assert near(state, whole["next_state"], Layout.stream)
    assert not near(whole["next_state"], np.zeros_like(state), Layout.stream)


@cache
def stream(make, write, cell, task):
    network, manifest = make(task, cell, False, 2)
    return run_in("onnxruntime", write(Layout.stream, network, manifest), Layout.stream), manifest


RESUME = """
import sys
from pathlib import Path
import numpy as np
from ohlol.serve.runtimes import run_in
folder = Path(sys.argv[1])
run = run_in("onnxruntime", (folder / "stream.onnx").read_bytes(), "stream.onnx")
state = np.frombuffer((folder / "state").read_bytes(), dtype="<f4").reshape(4, 1, 6)
points = np.frombuffer((folder / "points").read_bytes(), dtype="<i4")[None]
answers = run({"codepoints": points, "state": state})
(folder / "logits").write_bytes(answers["logits"].tobytes())
"""


def test_a_state_goes_on_in_another_process(make, write, tmp_path):
    """The state is plain numbers: saved to bytes here, read back there, the text goes on where it stopped."""
    network, manifest = make("tag", "lstm", False, 2)
    content = write(Layout.stream, network, manifest)
    run = run_in("onnxruntime", content, Layout.stream)
    points, _ = batch(1, 30, 5)
    zeros = np.zeros((4, 1, 6), dtype=np.float32)
    whole = run({"codepoints": points, "state": zeros})
    state = run({"codepoints": points[:, :13], "state": zeros})["next_state"]
    (tmp_path / Layout.stream).write_bytes(content)
    (tmp_path / "state").write_bytes(state.astype("<f4").tobytes())
    (tmp_path / "points").write_bytes(points[:, 13:].astype("<i4").tobytes())
    subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], check=True)
    logits = np.frombuffer((tmp_path / "logits").read_bytes(), dtype="<f4").reshape(1, 17, 4)
    assert near(logits, whole["logits"][:, 13:], Layout.stream)


def test_text_of_nothing(make, write):
    """Empty texts, alone and in company, have an empty answer, not a crash; at least one text there must be."""
    for task, empty in (("tag", [[], []]), ("lm", [[], []]), ("classify", ["", ""])):
        network, manifest = make(task, "gru", False, 1)
        run = run_in("onnxruntime", write(Layout.text, network, manifest), Layout.text)
        nothing = run({"text": np.array(["", ""], dtype=object)})
        assert nothing["labels"].tolist() == empty
        assert nothing["probabilities"].sum() == 0
        some = run({"text": np.array(["", "he"], dtype=object)})
        assert some["labels"].tolist()[0] == ("" if task == "classify" else ["", ""])
        assert some["probabilities"][0].sum() == 0
        assert some["probabilities"][1].sum() > 0.99

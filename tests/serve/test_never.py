"""What must never happen: an empty batch in the runtime, an answer that depends on its company, a race."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession

import ohlol
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import ONNX, Layout, open_bundle, shipped
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.parity import Case
from ohlol.cli import main
from ohlol.serve import replay, runtimes
from ohlol.serve.results import Classified, Tagged
from ohlol.serve.verify import verify

NAMES = ("hello", "words", "classify", "lm", "files")
UNKNOWN = 0x10FFFD  # private: in no alphabet here
ODD = [
    0,
    -1,
    -(2**31),
    2**31 - 1,
    0xD800,
    0xDBFF,
    0xDC00,
    0xDFFF,
    0xFFFE,
    0xFFFF,
    0x110000,
    0x10FFFF,
    0xFEFF,
    0x7F,
]


@pytest.fixture(scope="module")
def models(golden):
    return {name: ohlol.load(name if name == "hello" else golden / name) for name in NAMES}


@pytest.fixture
def fed(monkeypatch):
    """The shapes of every array that any session of ONNX Runtime is given."""
    shapes = []
    run = InferenceSession.run

    def spy(self, names, feed, options=None):
        shapes.extend(np.shape(value) for value in feed.values())
        return run(self, names, feed, options)

    monkeypatch.setattr(InferenceSession, "run", spy)
    return shapes


def bits(result):
    """The numbers of a result."""
    if isinstance(result, Tagged):
        return result.probabilities.ravel()
    if isinstance(result, Classified):
        return np.array([result.probabilities[label] for label in sorted(result.probabilities)])
    found = (result.probability, result.nats_per_character)
    return np.array([np.nan if number is None else number for number in found])


def label(result):
    return getattr(result, "labels", None) or getattr(result, "label", None) or getattr(result, "next", None)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.sampled_from(["", "h", "hello", "\u0301", "\0"]) | st.text(max_size=3), max_size=6))
def test_no_empty_batch_reaches_the_runtime(models, fed, name, texts):
    """B = 0 and T = 0 end the process inside ONNX Runtime: whatever is asked through Python."""
    model = models[name]
    assert model([]) == model(()) == list(model(iter([]))) == []
    assert [r.text for r in (model(""), *model(["", ""]), *model(iter(["", ""])))] == [""] * 5
    assert fed == [], "for nothing, nothing is run"
    assert len(model(texts)) == len(list(model(iter(texts)))) == len(texts)
    assert all(0 not in shape for shape in fed)
    assert bool(fed) == any(texts)
    fed.clear()


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\n\n\r\n", b"text\n", b'text\n""\n', b'{"text": ""}\n', b"\xef\xbb\xbf"]
)
def test_no_empty_batch_from_the_command_line(fed, form, data):
    """Files without texts, with empty ones, or that are no files of this kind."""
    ran = CliRunner().invoke(main, ["predict", "hello", "--input-format", form], input=data)
    assert ran.exit_code in (0, 1)
    assert "Traceback" not in ran.output
    assert CliRunner().invoke(main, ["predict", "hello", ""]).stdout == "\n"
    assert all(0 not in shape for shape in fed)
    assert fed == [] or (form == "text" and data.strip(b"\r\n\xef\xbb\xbf")), "as text it is a word or two"


def reseal(folder, changes):
    """Exchange files of a bundle, with digests and sizes."""
    manifest = json.loads((folder / Layout.manifest).read_bytes())
    for name, content in changes.items():
        if content is None:
            (folder / name).unlink()
            del manifest["files"][name]
        else:
            (folder / name).write_bytes(content)
            manifest["files"][name] = manifest["files"].get(name, {}) | {
                "sha256": sha256(content), "bytes": len(content)
            }  # fmt: skip
    (folder / Layout.manifest).write_text(json.dumps(manifest))


def tensor(array, name):
    raw, code = array.tobytes(), {"int32": 6, "float32": 1}[str(array.dtype)]
    dims = b"".join(bytes([8, size]) for size in array.shape)
    size = bytes([len(raw) & 127 | 128, len(raw) >> 7])
    return dims + bytes([16, code]) + b"B" + bytes([len(name)]) + name.encode() + b"J" + size + raw


@pytest.mark.parametrize(("B", "T"), [(0, 3), (3, 0), (0, 0)])
def test_no_empty_batch_from_test_data(golden, tmp_path, fed, B, T):
    """`ohlol verify` of a bundle whose test data are right in everything but that there are none."""
    folder = shutil.copytree(golden / "files", tmp_path / "bundle")
    classes = open_bundle(folder).manifest.classes
    arrays = {
        "input_0": ("codepoints", np.zeros((B, T), np.int32)),
        "input_1": ("lengths", np.zeros(B, np.int32)),
        "output_0": ("logits", np.zeros((B, T, classes), np.float32)),
        "output_1": ("probabilities", np.zeros((B, T, classes), np.float32)),
    }
    reseal(folder, {f"test_data_set_0/{file}.pb": tensor(a, name) for file, (name, a) in arrays.items()})
    with pytest.raises(BundleError, match="test_data_set_0: its shapes, types or lengths"):
        verify(folder)
    assert fed == []


def test_no_empty_batch_from_a_replay(models, golden, fed):
    """Rows of many lengths, cut into chunks at random: no chunk and no group of rows is empty."""
    manifest, contents = models["files"].manifest, open_bundle(golden / "files").contents
    for seed in range(20):
        random = np.random.default_rng(seed)
        lengths = random.integers(1, 30, size=random.integers(1, 9)).astype(np.int32)
        points = random.integers(0, 200, size=(len(lengths), int(lengths.max()))).astype(np.int32)
        for file in (Layout.onnx, Layout.stream, Layout.text):
            run = runtimes.run_in("onnxruntime", contents[file], file)
            replay.answer(ONNX[file], run, manifest)(Case(f"case {seed}", points, lengths))
    assert len(fed) > 100
    assert all(0 not in shape for shape in fed)


arrays = st.tuples(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["int32", "int64", "uint32", "float32", "int16", "bool", "object", ">i4"]),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=arrays, second=arrays, fill=st.integers(-2, 6))
def test_arrays_of_any_shape_and_type(models, fed, name, first, second, fill):
    """What is outside of the contract is refused before the runtime sees it; what is inside has answers."""
    points, lengths = (np.full(shape, 1, dtype=dtype) for shape, dtype in (first, second))
    if lengths.dtype != bool:
        lengths = np.full(lengths.shape, fill, dtype=second[1] if fill >= 0 else "int32")
    inside = (
        points.ndim == 2 and points.size > 0 and lengths.shape == points.shape[:1]
        and points.dtype == lengths.dtype == np.int32 and 1 <= fill <= points.shape[1]
    )  # fmt: skip
    fed.clear()
    try:
        found = models[name].outputs(points, lengths)
    except InputError as error:
        assert "expected codepoints (B, T) int32" in str(error)
        assert not inside
        assert fed == []
    else:
        assert inside
        assert all(len(answer) == len(points) for answer in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_odd_code_points_are_unknown(models, name):
    """Surrogates, NUL, negative numbers, beyond Unicode: each answers as a character nobody knows, alone and amid others."""
    model = models[name]
    assert not {UNKNOWN, *ODD} & set(map(ord, model.manifest.alphabet.characters))
    known = codepoints("hexin")
    for place in range(3):
        expected = None
        for point in (UNKNOWN, *ODD):
            row = known.copy()
            row[place] = point
            found = model.outputs(np.stack([row, known]), np.array([5, 4], np.int32))
            expected = expected or found
            for output, answer in found.items():
                np.testing.assert_array_equal(answer, expected[output], f"U+{point:04X} in {output}")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text(st.characters(codec=None), max_size=60),
    others=st.lists(st.text(st.characters(codec=None), max_size=90), max_size=6),
    place=st.integers(0, 6),
)
def test_any_text_in_any_company(models, name, text, others, place):
    """Every plane, lone surrogates, NUL, marks: the answer to a text is its own, whoever stands beside it."""
    model = models[name]
    texts = [*others[:place], text, *others[place:]]
    alone, together = model(text), model(texts)[texts.index(text)]
    assert alone.text == together.text == model.manifest.alphabet.normalise(text)
    np.testing.assert_allclose(bits(together), bits(alone), atol=1e-4)
    if isinstance(alone, Tagged):
        assert len(alone.labels) == len(alone.text) == len(alone.probabilities)
        margin = np.sort(alone.probabilities, axis=1)
        clear = margin[:, -1] - margin[:, -2] > 1e-4
        assert [a for a, c in zip(alone.labels, clear, strict=True) if c] == [
            b for b, c in zip(together.labels, clear, strict=True) if c
        ]


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_only_unknown_characters(models, name):
    """Of one script or another, they are all the same to the model."""
    model = models[name]
    first, second = model(["\U0010fffd" * 40, "\ue000" * 40])
    np.testing.assert_array_equal(bits(first), bits(second))
    assert label(first) == label(second)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffhello",
        "he\0llo",
        "\u202ehello\u202c",
        "hel\ud83dlo",
        "a\u200db",
        "h\r\ne",
        "\x1b[2J",
        "\u2028",
        "z\u0351" * 999,
    ],
    ids=ascii,
)
def test_text_that_is_hard_to_show(models, text, golden):
    """A mark, a NUL or an escape is a character like another: counted, labelled, and one line of output."""
    for name, model in models.items():
        assert model(text).text == model.manifest.alphabet.normalise(text)
        source = json.dumps({"text": text}).encode()
        path = name if name == "hello" else str(golden / name)
        for form in ("text", "jsonl"):
            ran = CliRunner().invoke(
                main, ["predict", path, "--input-format", "jsonl", "--format", form], input=source
            )
            assert (ran.exit_code, ran.stdout.count("\n")) == (0, 1), ran.output


def test_a_million_characters_one_way(models):
    """`hello` two hundred thousand times: a label for each, and the same ones over and over."""
    result = models["hello"]("hello" * 200_000)
    assert len(result.labels) == len(result.text) == 1_000_000
    assert result.labels[:100_000] == tuple("ohlol" * 20_000)
    assert result.labels[-100_000:] == tuple("ohlol" * 20_000)
    unknown = models["hello"]("x" * 1_000_000)
    assert unknown.probabilities.shape == (1_000_000, 4)
    assert unknown.labels[:1_000] == models["hello"]("x" * 1_000).labels


def test_a_million_characters_both_ways(models):
    """The words of a text that never ends are those of its pieces."""
    result = models["words"]("xin chào " * 111_111 + "x")
    assert len(result.labels) == len(result.text) == 1_000_000
    piece = models["words"]("xin chào " * 100).labels
    assert result.labels[:800] == piece[:800]
    assert result.labels[900:1_800] == result.labels[90_000:90_900] == result.labels[900_000:900_900]
    assert set(result.words[:111_110]) == {"xin chào"}


def test_a_million_characters_have_a_score_or_a_refusal(models):
    """A score for each character, all of them numbers; what can only be read whole says so, and is never cut."""
    text = "xin chào " * 111_111 + "x"
    assert np.isfinite(bits(models["lm"](text))).all()
    with pytest.raises(InputError, match="a text of 1,000,000 characters, expected at most 65,536"):
        models["classify"](text)


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_threads_are_as_good_as_one(models, golden, name):
    """One model, sixteen threads that all start at once, each with texts of its own, one with arrays."""
    model = models[name]
    random = np.random.default_rng(7)
    letters = [*"ehlo xinchàobạnRosi田中\u0301👋"]
    texts = [
        ["".join(random.choice(letters, size=n)) for n in random.integers(0, 40, size=50)] for _ in range(16)
    ]
    points, lengths = random.integers(0, 9_000, size=(7, 33)).astype(np.int32), np.full(7, 33, np.int32)
    expected = [[bits(result) for result in model(rows)] for rows in texts]
    arrays = model.outputs(points, lengths)
    start = Barrier(17)

    def ask(rows):
        start.wait(60)
        return [[bits(result) for result in model(rows)] for _ in range(4)]

    def ask_for_arrays():
        start.wait(60)
        return [model.outputs(points, lengths) for _ in range(40)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that a race, where there is one, has every chance
    try:
        with ThreadPoolExecutor(17) as pool:
            other = pool.submit(ask_for_arrays)
            rounds = list(pool.map(ask, texts))
            found = other.result()
    finally:
        sys.setswitchinterval(before)
    for mine, answers in zip(expected, rounds, strict=True):
        for again in answers:
            for one, two in zip(mine, again, strict=True):
                np.testing.assert_array_equal(one, two)
    for outputs in found:
        for key, answer in arrays.items():
            np.testing.assert_array_equal(answer, outputs[key])


def test_loading_from_sixteen_threads(golden):
    """The first load of a process may come from anywhere, and from everywhere at once."""
    start = Barrier(16)

    def load(number):
        start.wait(60)
        model = ohlol.load(shipped() if number % 2 else golden / "files")
        return str(model("hello")) if number % 2 else round(model("hello 👋 ohl").nats_per_character, 4)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(load, range(16)))
    assert found == [found[0], "ohlol"] * 8


@pytest.mark.parametrize("name", [Layout.stream, Layout.text, Layout.onnx])
def test_a_model_that_cannot_run(golden, tmp_path, name):
    """Weights that do not fit are only seen when the model runs: one message of ours, and none of the runtime's own."""
    folder = shutil.copytree(golden / "files", tmp_path / "bundle")
    for other in ONNX:
        if other in (Layout.batch, Layout.half, Layout.int8) or (name != other and other != Layout.onnx):
            reseal(folder, {other: None})
    content = (folder / name).read_bytes()
    refused = 0
    random = np.random.default_rng(3)
    for at in random.integers(0, content.index(b"ohlol.") - 40, size=20).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        for digest in ("ohlol.sha256", "ohlol.sha255"):  # and without one: such files are let through
            data = bytes(changed).replace(b"ohlol.sha256", digest.encode())
            reseal(folder, {name: data})
            ran = CliRunner().invoke(main, ["verify", str(folder)])
            assert ran.exception is None or isinstance(ran.exception, SystemExit), (at, ran.exception)
            assert ran.exit_code in (0, 1)
            assert "EP Error" not in ran.stdout
            refused += ran.exit_code
    assert refused > 15

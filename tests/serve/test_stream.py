"""Text in pieces: whatever the cuts, the answers of the whole text; nobody's state but one's own."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts import contract
from ohlol.artifacts.alphabet import FORMS, normalise
from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError, InputError
from ohlol.artifacts.parity import TOLERANCE
from ohlol.serve import cut as cutting
from ohlol.serve import state
from ohlol.serve import stream as streams
from ohlol.serve.results import Scored

TEXTS = st.text(st.sampled_from("ehlo .👋é\u0301\u0323\u1100\u1161\u11a8\0\n\ud800"), max_size=40)
NAMES = ("tag", "lm")


@pytest.fixture(scope="module")
def models(golden):
    """`hello`, a tagger of two RNN layers, and a language model of a GRU."""
    return {"tag": ohlol.load("hello"), "lm": ohlol.load(golden / "files")}


def cut(text, places):
    """`text` in pieces, some of them empty."""
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def joined(results):
    """The answers of pieces as those of their whole: text, labels and probabilities, or total nats, and next."""
    text = "".join(result.text for result in results)
    if isinstance(results[0], Scored):
        counts = [len(result.text) for result in results]
        first = next((k for k, count in enumerate(counts) if count), None)
        if first is not None:
            counts[first] -= 1  # nothing stands before the first character
        nats = sum((result.nats_per_character or 0) * n for result, n in zip(results, counts, strict=True))
        return text, sum(counts), nats, results[-1].next
    labels = tuple(label for result in results for label in result.labels)
    return text, labels, np.concatenate([result.probabilities for result in results])


def check(results, whole):
    """Pieces against their whole: equal where an answer is a decision, near where it is a number."""
    if isinstance(whole, Scored):
        text, count, nats, following = joined(results)
        assert (whole.text, max(0, len(whole.text) - 1)) == (text, count)
        assert (whole.nats_per_character or 0) * count == pytest.approx(nats, abs=1e-4 * max(1, count))
        assert (whole.nats_per_character is None) == (count == 0)
        assert whole.next == following
    else:
        text, labels, probabilities = joined(results)
        assert (whole.text, whole.labels) == (text, labels)
        np.testing.assert_allclose(probabilities, whole.probabilities, atol=2 * TOLERANCE)


# Text in pieces, normalised.

NASTY = (
    "aeo=<가각힣\u0301\u0323\u0338\u0344\u0345\u0f73\u1100\u1161\u11a8\u11ff\u115f\u1160\uac00"  # marks, Hangul
    "\uff76\uff9e\uff9f\uffa0\uffa1\uffc2\uffdc\u3131\u314f\u3164ㅠㅋ\u3099\u304b"  # what NFKD makes one of those
    "\u09c7\u09be\u0b47\u0b57\u1025\u102e\u0dd9\u0dcf\u0dca\u110a5\u110ba"  # vowels that join
    "\ufb2c\U0001d15e\u212b\u2126\ufdfa\u00a8\u00b4\u037a\u1fbf\u0958\u2adc\ufb1d"  # taken apart, or never put together
    " \n\t\r\u00a0\u2001\u3000\u2028\u0085\0\u200d\ufe0f👩💻\ud800\udc00\U00016d63\U00016d67\U0010ffff"
)
nasty = st.lists(st.sampled_from(NASTY) | st.characters(), max_size=25).map("".join)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=200)
@given(text=nasty, places=st.lists(st.integers(0, 30), max_size=8))
def test_pieces_are_normalised_as_their_whole(form, text, places):
    """A cut inside of a letter and its marks, or of a syllable of Hangul, changes nothing."""
    made, held = "", ""
    for piece in cut(text, places):
        done, held = cutting.ready(held + piece, form)
        made += done
    assert normalise(text, form) == made + normalise(held, form)


def test_no_character_joins_what_was_let_go():
    """Every code point there is, by this Python's tables: what joins the one before it never counts as a beginning,
    and what lets itself be joined never as an end."""
    firsts, seconds = set(), set()
    for character in map(chr, range(sys.maxunicode + 1)):
        first, _, second = unicodedata.decomposition(character).partition(" ")
        if second and not first.startswith("<"):
            firsts.add(chr(int(first, 16)))
            seconds.add(chr(int(second, 16)))
    seconds |= {
        chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
    }  # Hangul, by arithmetic
    for character in map(chr, range(sys.maxunicode + 1)):
        for form in ("NFD", "NFKD"):
            parts = unicodedata.normalize(form, character)
            if unicodedata.combining(parts[0]) or parts[0] in seconds:
                assert not cutting.begins(character), hex(ord(character))
            if cutting._ends(character):
                assert not any(unicodedata.combining(part) or part in firsts for part in parts)


def test_little_is_held_back():
    """One letter and its marks, not a line; nothing where the text is not normalised, or at a line's end."""
    assert cutting.ready("hello", "NFC") == ("hell", "o")
    assert cutting.ready("hello\n", "NFC") == ("hello\n", "")
    assert cutting.ready("hello ", "NFKD") == ("hello ", "")
    assert cutting.ready("hello", "none") == ("hello", "")
    assert cutting.ready("xe\u0301\u0323", "NFC") == ("x", "e\u0301\u0323")
    assert cutting.ready("\u0301", "NFC") == ("", "\u0301")


def test_marks_without_end_are_refused(models):
    """Memory does not grow with a text of combining marks alone, and the stream goes on as if it had not come."""
    stream = models["tag"].stream()
    stream.feed("e" + "\u0301" * (cutting.MOST_HELD - 1))
    with pytest.raises(InputError, match="4,097 combining characters in a row"):
        stream.feed("\u0301")
    assert stream.feed("l").text == normalise("e" + "\u0301" * (cutting.MOST_HELD - 1), "NFC")


# One stream.


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100)
@given(text=TEXTS, places=st.lists(st.integers(0, 50), max_size=8))
def test_whole_is_chunked(models, name, text, places):
    """Any text, cut anywhere, has the answers of the whole text; the empty one too."""
    stream = models[name].stream()
    results = [*(stream.feed(piece) for piece in cut(text, places)), stream.finish()]
    check(results, models[name](text))


def test_one_character_at_a_time(models):
    """The labels come as the text comes, one behind it: the letter may still get an accent."""
    stream = models["tag"].stream()
    assert [str(stream.feed(character)) for character in "hello"] == ["", "o", "h", "l", "o"]
    assert str(stream.finish()) == "l"


def test_the_state_is_carried(models):
    """The caller cannot forget the state: the same piece again is answered otherwise, and a line is scored by those
    before it. (livekit/agents-js#944 never fed it back.)"""
    stream = models["tag"].stream()
    first, second, third = (stream.feed("l ").probabilities for _ in range(3))
    assert np.abs(first - second).max() > 0.01 < np.abs(second - third).max()
    scoring = models["lm"].stream()
    scoring.feed("hello 👋 ohlol. ")
    known, unknown = scoring.feed("hello "), models["lm"].stream().feed("hello ")
    assert known.nats_per_character != pytest.approx(unknown.nats_per_character, abs=1e-3)


def test_a_language_model_scores_the_first_character_of_a_piece(models):
    """Only the first character of the text has nothing before it."""
    stream = models["lm"].stream()
    assert stream.feed(" ").nats_per_character is None
    likely = models["lm"].stream()
    likely.feed("hello ")
    unlikely = models["lm"].stream()
    unlikely.feed("hello ")
    assert likely.feed("👋 ").nats_per_character < unlikely.feed("e ").nats_per_character


def test_an_empty_piece_says_what_is_known(models):
    """It never reaches the runtime, where a row without characters would lose its state or end the process."""
    stream, calls = models["lm"].stream(), []
    assert stream.feed("") == Scored("", None, None, None)
    before = stream.feed("hello ")
    whole = stream._file.run
    stream._file.run = lambda *given: calls.append(1) or whole(*given)
    again = stream.feed("")
    del stream._file.run
    assert (again.text, again.next, again.probability) == ("", before.next, before.probability)
    assert (calls, again.nats_per_character, stream.characters) == ([], None, 6)


def test_after_the_end(models):
    """A finished stream does not begin another text by itself."""
    stream = models["tag"].stream()
    assert (stream.feed("hell").text, stream.finish().text) == ("hel", "l")
    for call in (
        stream.finish,
        stream.state_dict,
        lambda: stream.feed("x"),
        lambda: stream.load_state_dict(b""),
    ):
        with pytest.raises(InputError, match=r"has ended; begin another text with model\.stream"):
            call()


@pytest.mark.parametrize("wrong", [None, 3, b"hello", ["h"]])
def test_what_is_no_text_is_refused(models, wrong):
    """And the stream is as it was."""
    stream = models["tag"].stream()
    stream.feed("he")
    before = stream.state_dict()
    with pytest.raises(InputError, match="expected a str, found"):
        stream.feed(wrong)
    assert before == stream.state_dict()


def test_a_call_that_fails_changes_nothing(models, monkeypatch):
    """Where the runtime raises in the middle of a piece, the piece can be fed again."""
    stream = models["lm"].stream()
    stream.feed("hello ")
    before, run, calls = stream.state_dict(), stream._file.run, []

    def fails(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(stream._file, "run", fails)
    with pytest.raises(KeyboardInterrupt):
        stream.feed("hello 👋 ohlol. " * 2_000)
    assert before == stream.state_dict()
    check(
        [models["lm"]("hello "), stream.feed("👋 ohlol. "), stream.finish()], models["lm"]("hello 👋 ohlol. ")
    )


def test_a_long_piece_runs_in_parts(models, monkeypatch):
    """A hundred thousand characters in one piece: each has its label, and no call is larger than a batch."""
    stream, sizes = models["tag"].stream(), []
    run = stream._file.run
    monkeypatch.setattr(
        stream._file,
        "run",
        lambda names, points, hidden: sizes.append(points.size) or run(names, points, hidden),
    )
    text = "hello" * 20_000
    results = [stream.feed(text), stream.finish()]
    check(results, models["tag"](text))
    assert max(sizes) <= stream._file.most <= 8_192


# The state as bytes.


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(text=TEXTS, place=st.integers(0, 50))
def test_a_state_goes_on_in_another_stream(models, name, text, place):
    """To bytes and back at any place, the text goes on where it stood, what was held back included."""
    first, second = models[name].stream(), models[name].stream()
    begin, rest = cut(text, [place])
    results = [first.feed(begin)]
    second.feed("o")  # forgotten
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == second.state_dict()
    check([*results, second.feed(rest), second.finish()], models[name](text))
    assert first.characters == len(results[0].text)


def test_a_state_of_the_first_version_is_read_for_ever(models, golden):
    """The bytes are a format: those in the golden folder, of a language model after half a text, still go on."""
    data = (golden / "files.state").read_bytes()
    stream = models["lm"].stream()
    stream.load_state_dict(data)
    assert data == stream.state_dict()
    assert data[:12] == b"ohlolstr\x01\x00\x00\x00"
    assert stream.characters == 9
    following = [stream.feed("\u0301."), stream.finish()]
    whole = models["lm"]("hello 👋 oé.")
    assert ("é.", whole.next) == ("".join(result.text for result in following), following[-1].next)


def sealed(content):
    return content + hashlib.sha256(content).digest()


def with_numbers(data, at, value):
    """The bytes of a state with the number at `at` changed, and the digest made right."""
    return sealed(data[:at] + value + data[at + len(value) : -32])


def test_damaged_states_are_refused(models):
    """Every byte flipped and every length cut: one message, and the stream is as it was."""
    stream, other = models["lm"].stream(), models["lm"].stream()
    stream.feed("hello 👋 e\u0301")
    data, before = stream.state_dict(), other.state_dict()
    broken = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    broken += [data[:size] for size in range(len(data))] + [data + b"\0", data * 2, b"", b"\x80\x04K\x01."]
    for wrong in broken:
        with pytest.raises(InputError, match=r"(state of a stream|the state is of another)"):
            other.load_state_dict(wrong)
    assert before == other.state_dict()


@settings(max_examples=200)
@given(data=st.data())
def test_states_that_no_stream_leaves_are_refused_or_go_on(models, data):
    """Bytes with a right digest and anything in them: refused with a message, or a state with which text goes on."""
    stream = models["lm"].stream()
    stream.feed("hello 👋 e\u0301")
    content = bytearray(stream.state_dict()[:-32])
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    content = bytes(content[:end]) + data.draw(st.binary(max_size=8))
    try:
        stream.load_state_dict(sealed(content))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert sealed(content) == stream.state_dict()
        stream.feed("llo")
        stream.finish()


NAN, INFINITE = np.float32("nan").tobytes(), np.float32("-inf").tobytes()
WORD = (2**32 - 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (8, b"\x02", "version 2, expected 1; read it with the version of ohlol that wrote it"),
        (12, WORD, "sizes that its model does not have"),
        (16, WORD, "sizes that its model does not have"),
        (20, WORD, "sizes that its model does not have"),
        (
            20,
            b"\x00\x00\x00\x00\x0b\x00\x00\x00",
            "sizes that its model does not have",
        ),  # no last answer, more text
        (24, WORD, "sizes that its model does not have"),
        (28, b"\x00", "sizes that its model does not have"),
        (36, b"\x00" * 32, r"of another stream\.onnx"),
        (68, NAN, "not finite"),
        (68 + 32 * 4, INFINITE, "not finite"),
        (-32 - 8, b"a\x00\x00\x00b\x00\x00\x00", "holds back what is complete"),
        (-32 - 4, b"\xff\xff\xff\xff", "holds text that is none"),
    ],
)
def test_what_is_wrong_with_a_state_is_said(models, at, value, message):
    """Sizes are believed by the model's, not by the bytes; numbers are numbers; text is held back for a reason."""
    stream = models["lm"].stream()
    stream.feed("hello 👋 e\u0301")
    data = stream.state_dict()
    wrong = with_numbers(data, at % len(data), value)
    with pytest.raises(InputError, match=message):
        stream.load_state_dict(wrong)
    assert data == stream.state_dict()


def test_a_state_of_another_model_is_refused(models):
    """It may have the same shape and mean something else."""
    stream = models["tag"].stream()
    stream.feed("hel")
    with pytest.raises(InputError, match=r"of another stream\.onnx, sha256 .*; load the model that wrote it"):
        models["lm"].stream().load_state_dict(stream.state_dict())
    with pytest.raises(InputError, match="is bytes, found str"):
        models["lm"].stream().load_state_dict("state")


# Many streams.


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(
    rounds=st.lists(st.lists(st.tuples(st.integers(0, 7), TEXTS), unique_by=lambda pair: pair[0]), max_size=8)
)
def test_many_at_once_as_each_alone(models, name, rounds):
    """Pieces of different lengths, some streams silent, any order: every stream has the answers of its own text."""
    model = models[name]
    many = [model.stream() for _ in range(8)]
    texts, results = [""] * 8, [[] for _ in many]
    for pieces_ in rounds:
        for (k, text), result in zip(
            pieces_, model.feed_all([(many[k], text) for k, text in pieces_]), strict=True
        ):
            texts[k] += text
            results[k].append(result)
    for k, result in enumerate(model.feed_all([(stream, "") for stream in many], end=True)):
        check([*results[k], result], model(texts[k]))


def test_streams_share_calls(models, monkeypatch):
    """Forty pieces of one length are one call, of three lengths three, and the longest of them is the last alone."""
    model, calls = models["tag"], []
    run = model._stream_file.run
    monkeypatch.setattr(
        model._stream_file,
        "run",
        lambda names, points, hidden: calls.append(points.shape) or run(names, points, hidden),
    )
    model.feed_all([(model.stream(), "hello ") for _ in range(40)])
    model.feed_all([(model.stream(), text) for text in ("l ", "", "hello ", "he ")])
    assert calls == [(40, 6), (3, 2), (2, 1), (1, 3)]
    assert model.feed_all([]) == []


def test_more_streams_than_a_call_takes(models, monkeypatch):
    """Rows of a call are bounded too."""
    monkeypatch.setattr(streams, "ROWS", 16)
    model = models["tag"]
    texts = ["hello "[: k % 7] for k in range(100)]
    results = model.feed_all([(model.stream(), text) for text in texts], end=True)
    assert [str(result) for result in results] == [str(result) for result in model(texts)]


def test_streams_that_cannot_be_fed_together(models):
    """One is there twice, one has ended, one is of another model: all stay as they were."""
    model = models["tag"]
    first, ended, foreign = model.stream(), model.stream(), models["lm"].stream()
    first.feed("he")
    before = first.state_dict()
    ended.finish()
    for others, message in (
        ([(first, "x")], "in use, by another thread or twice in one call"),
        ([(ended, "x")], "has ended"),
        ([(foreign, "x")], "of another model"),
        ([(model.stream(), 3)], "expected a str, found int"),
        ([(None, "x")], "expected a stream, found NoneType"),
        ([(model.stream(), "\u0301" * 5_000)], "5,000 combining characters"),
    ):
        with pytest.raises(InputError, match=message):
            model.feed_all([(first, "l"), *others])
        assert before == first.state_dict()


def test_sixteen_threads_mix_nothing_up(models):
    """Streams of one model in many threads, alone and in batches; no state is shared. (uezo/aiavatarkit#425)"""

    def follow(number):
        model = models[NAMES[number % 2]]
        text = ("hello 👋 ohlol. " * 3)[number:] + "é" * number
        alone, many = model.stream(), [model.stream() for _ in range(3)]
        results, others = [], []
        for piece in cut(text, range(0, len(text), 1 + number % 5)):
            results.append(alone.feed(piece))
            others.append(model.feed_all([(stream, piece) for stream in many]))
        results.append(alone.finish())
        others.append(model.feed_all([(stream, "") for stream in many], end=True))
        whole = model(text)
        check(results, whole)
        for several in zip(*others, strict=True):
            check(list(several), whole)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(follow, range(64))) == [True] * 64


def test_two_threads_in_one_stream(models, monkeypatch):
    """Whose piece comes first would be chance: the second is refused, the first is answered."""
    stream = models["tag"].stream()
    run, inside, go_on = stream._file.run, Event(), Event()

    def slow(*given):
        inside.set()
        assert go_on.wait(60)
        return run(*given)

    monkeypatch.setattr(stream._file, "run", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream.feed, "hello ")
        assert inside.wait(60)
        for call in (lambda: stream.feed("x"), stream.finish, stream.state_dict):
            with pytest.raises(InputError, match="the stream is in use"):
                call()
        go_on.set()
        assert str(first.result())[:5] == "ohlol"
    assert stream.characters == 6


# The file.


def test_models_without_a_stream(golden, tmp_path):
    """Why there is none, and what to do."""
    with pytest.raises(InputError, match=r"reads both ways, .* model\.bidirectional = false"):
        ohlol.load(golden / "words").stream()
    with pytest.raises(InputError, match=r"holds no stream\.onnx; export it again with --formats"):
        ohlol.load(golden / "lm").stream()
    with pytest.raises(InputError, match=r"model\.onnx: holds no stream\.onnx; .* load the whole bundle"):
        ohlol.load(golden / "files" / Layout.onnx).stream()
    with pytest.raises(InputError, match=r"model\.onnx: takes whole texts; .* give the bundle"):
        streams.load(golden / "files" / Layout.onnx)


def test_a_single_file(golden, models):
    """stream.onnx is complete by itself, and its states are those of the bundle."""
    alone = streams.load(golden / "files" / Layout.stream).stream()
    alone.feed("hello 👋 ")
    other = models["lm"].stream()
    other.load_state_dict(alone.state_dict())
    assert other.feed("ohlol. ") == alone.feed("ohlol. ")
    assert str(streams.load("hello").stream().feed("hello ")).startswith("ohlol")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", ["h", "e", "l", "o"]),
        ("alphabet", {"characters": "hloe", "normalisation": "NFC"}),
        ("alphabet", {"characters": "ehlo", "normalisation": "NFD"}),
    ],
)
def test_a_manifest_that_is_not_the_files_own(tmp_path, key, value):
    """Swapped labels would give wrong answers without a word."""
    shutil.copytree(shipped(), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / Layout.manifest).read_text())
    (tmp_path / "b" / Layout.manifest).write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(BundleError, match=rf"stream\.onnx: `{key}` differs"):
        streams.load(tmp_path / "b")


def test_another_contract_is_refused(models, golden, monkeypatch):
    """A file whose state goes by another name or shape is not called with ours. (silero-vad, v4 to v5)"""
    content = (golden / "files" / Layout.stream).read_bytes()
    found = contract.inputs("stream")

    def renamed(kind="model"):
        return found[0], contract.Tensor("h", "float32", found[1].shape)

    monkeypatch.setattr(contract, "inputs", renamed)
    with pytest.raises(BundleError, match="no input `h`, found codepoints, state"):
        streams.StreamFile(models["lm"].manifest, content, "stream.onnx")


@pytest.mark.parametrize("at", [100, 3_000, 10_000])
def test_a_damaged_file_is_refused(golden, tmp_path, at):
    """One bit of the graph or the weights."""
    content = bytearray((golden / "files" / Layout.stream).read_bytes())
    content[at] ^= 1
    (tmp_path / "s.onnx").write_bytes(content)
    with pytest.raises(BundleError):
        streams.load(tmp_path / "s.onnx")


def test_the_specified_bytes(models):
    """The table of docs/streams.md, literally: an empty stream of `hello`."""
    content = models["tag"].stream().state_dict()
    file = hashlib.sha256((shipped() / Layout.stream).read_bytes()).digest()
    numbers = [1, 2, 8, 0, 0]  # version, two states of eight, no last answer, nothing held
    expected = (
        b"ohlolstr" + b"".join(n.to_bytes(4, "little") for n in numbers) + bytes(8) + file + bytes(2 * 8 * 4)
    )
    assert sealed(expected) == content
    assert len(content) == state.HEADER.size + 64 + 32

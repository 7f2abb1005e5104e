"""ohlol.mjs answers as Python does, in Node and in headless Chromium: every bundle, every nasty string, every cut.

Each host runs once, on all the work (js_cases.mjs); the tests look at what came back.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import ohlol
from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.files import sha256
from ohlol.artifacts.onnx_file import digest
from ohlol.artifacts.parity import allowed
from ohlol.artifacts.run import Layout as RunLayout
from ohlol.cli import main
from ohlol.serve.generate import Sampling, _made, _until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = (Layout.onnx, Layout.stream)
HOSTS = ("node", "chromium")
NEWER = "Kirat Rai"  # letters that join since Unicode 16; a host and Python may know different versions
MARK = "\u0e49"  # joins, and no form changes it
NUMBERS = [random.Random(5).random() for _ in range(200)]
SAMPLINGS = {
    "likeliest": {"prompt": "he", "temperature": 0, "length": 60},
    "drawn": {"prompt": "he", "length": 60},
    "no prompt": {"prompt": "", "length": 60},
    "a prompt that is normalised": {"prompt": "h\u00e9\u1ec7", "length": 20},
    "hot": {"prompt": "w", "temperature": 5.0, "length": 60},
    "cold": {"prompt": "w", "temperature": 0.3, "length": 60},
    "few": {"prompt": "w", "topK": 3, "length": 60},
    "a nucleus": {"prompt": "w", "topP": 0.6, "length": 60},
    "all of it": {"prompt": "w", "topP": 1, "length": 60},
    "both": {"prompt": "w", "topK": 5, "topP": 0.7, "temperature": 1.3, "length": 60},
    "up to a character": {"prompt": "w", "length": 200, "stop": "e"},
    "up to the first": {"prompt": "w", "length": 200, "stop": ["zz", "o", "\U0001f600", "\ud83d"]},
    "nothing": {"prompt": "w", "length": 0},
}


def units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def cuts(size: int, draw: random.Random) -> list[int]:
    """Where the pieces of a text begin; some are empty, and some begin inside a pair of surrogates."""
    return [0, *sorted(draw.randint(0, size) for _ in range(draw.randint(0, 8)))]


@pytest.fixture(scope="session")
def texts(nasty, surrogates):
    return nasty | surrogates


@pytest.fixture(scope="session")
def chunkings(texts):
    """By a name: which text, and where its pieces begin."""
    draw = random.Random(3)
    found = {
        f"{key}, drawn {n}": [key, cuts(units(text), draw)] for key, text in texts.items() for n in (1, 2)
    }
    alone = {
        f"{key}, one by one": [key, list(range(units(text)))] for key, text in texts.items() if len(text) < 80
    }
    return found | alone


@pytest.fixture(scope="session")
def runs():
    """Texts, as characters and how often: runs of marks and of letters about as long as may be, and short ones."""
    draw = random.Random(4)

    def part() -> list[list[str | int]]:
        size = draw.choice((0, 1, 3, 4093, 4094, 4095, 4096, 4097, 4098))
        return [[draw.choice("e\u0e01 \u4e2d"), draw.randint(0, 2)], [draw.choice(MARK * 3 + "\u0e01"), size]]

    return [[each for _ in range(draw.randint(1, 3)) for each in part()] for _ in range(80)]


@pytest.fixture(scope="session")
def served(bundles, shared_folder):
    """A folder of the bundles and of broken ones."""

    def make(folder: Path) -> None:
        for name, path in bundles.items():
            (folder / name).symlink_to(path)
        make_broken(bundles["tag-gru"], bundles["lm-gru"], folder / "broken")

    return shared_folder("served", make)


def sign(model: onnx.ModelProto) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == "ohlol.sha256")
    entry.value = json.dumps(digest(model.SerializeToString()))


def moved(file: bytes, by: float) -> bytes:
    """A model whose digest is right and whose weights are not."""
    model = onnx.load_from_string(file)
    (weight,) = (weight for weight in model.graph.initializer if weight.name == "head.bias")
    weight.raw_data = (numpy_helper.to_array(weight) + np.float32(by)).tobytes()
    sign(model)
    return model.SerializeToString()


def make_broken(bundle: Path, lm: Path, folder: Path) -> None:
    def change(name, onnx_bytes=None, manifest=None, relist=True, bundle=bundle, file=Layout.onnx):
        """A copy of the bundle with another model.onnx and another text of the manifest."""
        path = folder / name
        shutil.copytree(bundle, path)
        if onnx_bytes is not None:
            (path / file).write_bytes(onnx_bytes)
        facts = json.loads((path / Layout.manifest).read_text("utf-8"))
        if relist and onnx_bytes is not None:
            facts["files"][file] |= {"sha256": sha256(onnx_bytes), "bytes": len(onnx_bytes)}
        text = json.dumps(facts, ensure_ascii=False)
        (path / Layout.manifest).write_text(manifest(text) if manifest else text, "utf-8")

    whole = (bundle / Layout.onnx).read_bytes()
    model = onnx.load_from_string(whole)
    said = {entry.key: entry for entry in model.metadata_props}
    said["ohlol.contract_version"].value = "2"
    change(
        "future",
        model.SerializeToString(),
        lambda t: t.replace('"contract_version": 1', '"contract_version": 2'),
    )
    change("format", manifest=lambda t: t.replace('"format_version": 1', '"format_version": 0'))
    change("cut", whole[: len(whole) // 2], relist=False)
    flipped = bytearray(whole)
    flipped[flipped.index(model.graph.initializer[-1].raw_data) + 1] ^= 1
    change("flipped", bytes(flipped), relist=False)
    change("swapped", (bundle / Layout.stream).read_bytes())
    foreign = onnx.load_from_string(whole)
    del foreign.metadata_props[:]
    change("foreign", foreign.SerializeToString(), lambda t: t.replace("ohlol-bundle", "another"))
    change("twice", manifest=lambda t: '{"task": "tag", ' + t[1:])
    change("lone", manifest=lambda t: t.replace('"labels": ["a"', '"labels": ["\\ud800"'))
    change("facts", manifest=lambda t: t.replace('"labels": ["a"', '"labels": ["b"'))
    change("leaves", manifest=lambda t: t.replace('"README.md": {', '"../README.md": {'))
    outside = onnx.load_from_string(whole)
    weight = outside.graph.initializer[-1]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/hostname")
    sign(outside)
    change("outside", outside.SerializeToString())
    # protobuf leaves out what is above 32 bits: field 25, of functions, to a runtime, and none that we would know.
    change("hidden", whole + b"\xca\x81\x80\x80\x10\x00")
    change("wrong", moved(whole, 0.01))
    change("nan", moved(whole, np.nan))
    change("lm-nan", moved((lm / Layout.stream).read_bytes(), np.nan), bundle=lm, file=Layout.stream)
    label = onnx.load_from_string(whole)
    for node in label.graph.node:
        node.output[:] = ["small" if name == "label_ids" else name for name in node.output]
    label.graph.node.append(onnx.helper.make_node("Add", ["small", "hundred"], ["label_ids"]))
    label.graph.initializer.append(numpy_helper.from_array(np.int32(100), "hundred"))
    sign(label)
    change("label", label.SerializeToString())
    change("link")
    (folder / "link" / Layout.onnx).unlink()
    (folder / "link" / Layout.onnx).symlink_to(bundle / Layout.onnx)
    change("pipe")
    (folder / "pipe" / Layout.onnx).unlink()
    os.mkfifo(folder / "pipe" / Layout.onnx)
    (folder / "run").mkdir()
    (folder / "run" / RunLayout.recipe).write_text("")


@pytest.fixture(scope="session", params=HOSTS)
def found(request, program, node_modules, served, bundles, texts, chunkings, runs):
    """All that a host answered."""
    work = {
        "bundles": list(bundles),
        "texts": texts,
        "chunkings": chunkings,
        "samplings": SAMPLINGS,
        "numbers": NUMBERS,
        "runs": runs,
        "seed": 7,
        "drawn": 3000,
    }
    browser = program("chromium") if request.param == "chromium" else ""
    ran = subprocess.run(
        [
            program("node"),
            HERE / "js_host.mjs",
            request.param,
            node_modules,
            ROOT / "embed" / "js",
            served,
            browser,
        ],
        input=json.dumps(work),  # in ASCII, so lone surrogates get there
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout) | {"host": request.param}


def same_tables(found) -> bool:
    return (found["unicode"] >= 16) == (int(unicodedata.unidata_version.split(".")[0]) >= 16)


def test_every_text_alone_and_in_a_batch(found, answers, bundles, same):
    """The same normalised text, labels, words and sentences; numbers within the proof's tolerance; lone surrogates too."""
    for name in bundles:
        for way in ("alone", "batch"):
            assert found[name][way].keys() == answers[name].keys()
            for key, expected in answers[name].items():
                if key != NEWER or same_tables(found):
                    same(dict(found[name][way][key]), expected)


def test_the_tables_of_unicode_that_a_host_has_are_its_own(found, texts):
    """docs/javascript.md says so: a letter of a later Unicode may be put together in one host and not in another."""
    joins = {"NFC": "\U00016d68 \U00016d69", "none": texts[NEWER]}
    apart = {"NFC": texts[NEWER]} if found["unicode"] < 16 else {}
    for form, name in (("NFC", "tag-rnn"), ("none", "tag-gru-both")):
        assert (joins | apart)[form] == found[name]["alone"][NEWER]["text"]


def test_labels_stand_where_their_characters_stand(found, bundles, texts):
    """Where normalisation changes nothing, a span is the very character, in UTF-16 units; and what is known is told."""
    for name in bundles:
        known = set(ohlol.load(bundles[name]).manifest.alphabet.characters)
        for key, spans in found[name]["spans"].items():
            given = texts[key].encode("utf-16-le", "surrogatepass")
            text = found[name]["alone"][key]["text"]
            assert text == "".join(character for _, _, character, _ in spans)
            for start, end, character, knows in spans:
                assert (character in known) == knows
                if text == texts[key]:
                    assert character == given[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")


def test_pieces_normalised_apart_are_the_whole(found):
    """The proof of the spans, for every character that any form changes, and for drawn texts, in all five forms."""
    assert found["mapping"]["wrong"] == []
    assert found["mapping"]["checked"] == 5 * 3000
    assert found["mapping"]["odd"] > 15_000


def test_a_text_in_pieces_has_the_answers_of_the_whole(found, bundles, chunkings, same):
    """However it is cut, in the middle of an accent or of a pair of surrogates; places count from its beginning."""
    streams = [name for name in bundles if not found[name]["noStream"]]
    assert {name for name in bundles if not name.endswith("-both")} == set(streams)
    for name in streams:
        assert found[name]["streamed"].keys() == chunkings.keys()
        for cut, (key, _) in chunkings.items():
            streamed, whole = found[name]["streamed"][cut], dict(found[name]["alone"][key])
            pieces = streamed["pieces"]
            got = dict(pieces[-1]) | {"text": "".join(piece["text"] for piece in pieces)}
            if "labels" in whole:
                assert found[name]["spans"][key] == streamed["spans"], (name, cut)
                got |= {
                    part: [x for piece in pieces for x in piece[part]] for part in ("labels", "probabilities")
                }
                for part in ("words", "sentences"):  # those that are cut come as two
                    got.pop(part, None), whole.pop(part, None)
            elif "nats" in whole:
                counts = [len(piece["text"]) for piece in pieces]
                first = next((k for k, count in enumerate(counts) if count), None)
                if first is not None:
                    counts[first] -= 1
                total = sum((piece["nats"] or 0) * n for piece, n in zip(pieces, counts, strict=True))
                got["nats"] = total / sum(counts) if sum(counts) else None
            same(got, whole)


def test_the_proof_holds_there(found, bundles):
    """verify() replays every test of the bundle, on model.onnx and, in pieces, on stream.onnx."""
    for name, path in bundles.items():
        proof = found[name]["proof"]
        cases = len([folder for folder in path.iterdir() if folder.name.startswith("test_data_set_")])
        files = [Layout.onnx] + [Layout.stream] * (path / Layout.stream).is_file()
        assert proof["passed"]
        assert cases > 0
        assert [f"test_data_set_{k}" for k in range(cases) for _ in files] == [
            r["case"] for r in proof["rows"]
        ]
        assert files * cases == [row["file"] for row in proof["rows"]]
        assert all(0 <= row["maxError"] < 1e-4 and row["labels"] for row in proof["rows"])
    assert max(row["maxError"] for name in bundles for row in found[name]["proof"]["rows"]) > 0


def test_wrong_weights_do_not_pass(found):
    """A file whose digests are all right but whose numbers are not: the proof says so, for that file alone."""
    proof = found["wrong"]
    assert proof["passed"] is False
    by_file = {file: {row["ok"] for row in proof["rows"] if row["file"] == file} for file in FILES}
    assert by_file == {Layout.onnx: {False}, Layout.stream: {True}}
    assert max(row["maxError"] for row in proof["rows"]) > 1e-3


def test_a_long_text(found, bundles):
    """More than one call's: read in pieces by stream.onnx, as Python does; the same labels and scores."""
    text = "hello, new world. " * 1200
    for name, told in found["long"].items():
        model = ohlol.load(bundles[name])
        expected, labels = model(text), model.manifest.labels
        if name.startswith("tag"):
            assert len(told) == len(text)
            points = np.array([[ord(character) for character in text]], dtype=np.int32)
            whole = model.outputs(points, np.array([len(text)], dtype=np.int32))
            for label, logits in zip(
                told, whole["logits"][0], strict=True
            ):  # the best, or as near as two errors
                behind = logits.max() - logits[labels.index(label)]
                assert behind <= 2 * allowed(logits)
        elif name.startswith("classify"):
            assert told["label"] == expected.label
        else:
            assert told["natsPerCharacter"] == pytest.approx(expected.nats_per_character, abs=1e-5)
    assert found["long"].keys() == {"tag-gru", "classify-lstm", "lm-rnn"}


def test_made_text_is_that_of_python(found, bundles):
    """The same numbers drawn, the same text: temperature, topK, topP and stop in the order of docs/streams.md."""

    class Random:
        def __init__(self):
            self.left = list(NUMBERS)

        def random(self):
            return self.left.pop(0)

    model = ohlol.load(bundles["lm-gru"])
    for name, sampling in SAMPLINGS.items():
        rules = Sampling(sampling.get("temperature", 1.0), sampling.get("topK"), sampling.get("topP"))
        prompt = model.manifest.alphabet.normalise(sampling["prompt"])
        stop = sampling.get("stop", ())
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        made = _made(model._stream_file, prompt, rules, Random())
        assert "".join(_until(stops, made, sampling["length"])) == found["generated"][name], name
    assert len(found["generated"]["drawn"]) >= 60
    assert "e" not in found["generated"]["up to a character"]
    assert found["generated"]["left"] == 3


REFUSALS = {
    "an empty array": ("RangeError", "an array of no texts: give one at least"),
    "null": ("TypeError", "the text is null, expected a string"),
    "nothing": ("TypeError", "the text is undefined, expected a string"),
    "a number": ("TypeError", "the text is number, expected a string"),
    "a number in an array": ("TypeError", "text 1 of the array is number, expected a string"),
    "a hole in an array": ("TypeError", "text 1 of the array is undefined, expected a string"),
    "a String object": ("TypeError", "the text is object, expected a string"),
    "classify of a tagger": (
        "TypeError",
        r"this model is for tag and has no classify\(text\): call tag\(text\)",
    ),
    "score of a tagger": ("TypeError", r"this model is for tag .*: call tag\(text\)"),
    "generate of a tagger": ("TypeError", r"this model is for tag .*: call tag\(text\)"),
    "tag of a classifier": ("TypeError", r"this model is for classify .*: call classify\(text\)"),
    "tag of a language model": (
        "TypeError",
        r"this model is for lm .*: call score\(text\) or generate\(prompt\)",
    ),
    "a stream both ways": ("Error", "stream.onnx: the network reads both ways.*; give it whole texts"),
    "a text too long": ("RangeError", "a text of 65537 characters, expected at most 65536; cut it"),
    "a piece that is null": ("TypeError", "the piece is null, expected a string"),
    "a stream that has ended": ("Error", r"the stream has ended; begin another text with model.stream\(\)"),
    "an end that has ended": ("Error", "the stream has ended"),
    "too many marks": ("RangeError", "more than 4096 combining characters in a row"),
    "too many marks in pieces": ("RangeError", "more than 4096 combining characters in a row"),
    "a prompt that is a number": ("TypeError", "the prompt is number, expected a string"),
    "no sampling": ("TypeError", "sampling is null, expected an object of length"),
    "a length of a half": ("RangeError", "length is 0.5, expected a whole number from 0 up"),
    "a negative temperature": ("RangeError", "temperature is -1, expected a number from 0 up"),
    "a temperature that is none": ("RangeError", "temperature is NaN, expected a number from 0 up"),
    "topK 0": ("RangeError", "topK is 0, expected a whole number from 1 up"),
    "topP 0": ("RangeError", "topP is 0, expected a number above 0 and at most 1"),
    "an empty stop": ("RangeError", r'stop is \["a",""\], expected a string, or an array of strings'),
    "a random that is a number": ("RangeError", "random is 0.5, expected a function"),
    "a random of one": ("RangeError", r"random\(\) gave 1, expected a number in \[0, 1\)"),
    "a random of nothing": ("RangeError", r"random\(\) gave undefined"),
    "no source": ("TypeError", "the source is undefined, expected a path, a URL, bytes"),
    "an empty source": ("TypeError", "the source is an empty string, expected a path or a URL"),
    "a source that is a number": ("TypeError", "the source is number, expected a path, a URL, bytes"),
    "a source that is an array": ("TypeError", "the source is an array, expected a path, a URL, bytes"),
    "no files": ("Error", "manifest.json: is undefined among the files given, expected a Uint8Array"),
    "options that are null": ("TypeError", "options is null, expected an object of ort, session"),
    "an ort that is null": ("TypeError", "ort is null, expected the module onnxruntime-web or"),
    "an option of no name": (
        "TypeError",
        "options has `Ort`, expected an object of ort, session; did you mean `ort`",
    ),
    "a sampling of no name": ("TypeError", "sampling has `top_k`, .*; did you mean `topK`"),
    "a sampling like none": ("TypeError", "sampling has `seed`, expected an object of length, .*, random$"),
    "logits that are none": ("Error", "model.onnx: the model gives numbers that are none; export it again"),
    "logits that are none, made": ("Error", "stream.onnx: the model gives numbers that are none; export"),
    "labels that are none": ("Error", "model.onnx: the model gives numbers that are none; export it again"),
    "a web page": ("Error", "data:text/html.*: the server answered a web page in the file's place; is the"),
    "an ort that is none": (
        "TypeError",
        "ort is object, expected the module onnxruntime-web or onnxruntime-node",
    ),
    "a folder that is not there": ("Error", "nowhere/manifest.json: cannot be (read|fetched)"),
    "a file that is not there": ("Error", "nowhere/model.onnx: cannot be (read|fetched)"),
    "a stream file": (
        "Error",
        "stream.onnx: takes codepoints and state, expected codepoints and lengths; load the",
    ),
    "bytes of nothing": ("Error", "the bytes given: not an ONNX file of ohlol, or damaged"),
    "bytes of text": ("Error", "the bytes given: not an ONNX file of ohlol, or damaged"),
    "future": ("Error", "manifest.json: contract_version is 2, expected 1.*; take a newer ohlol.mjs"),
    "format": ("Error", "manifest.json: format_version is 0, expected 1.*; export the checkpoint again"),
    "cut": ("Error", r"model.onnx: damaged or changed: it has \d+ bytes, the manifest says \d+"),
    "flipped": ("Error", "model.onnx: damaged or changed: its sha256 is .{12}…, the manifest says .{12}…"),
    "swapped": ("Error", "model.onnx: .*`inputs` differs from that of manifest.json"),
    "foreign": ("Error", 'manifest.json: format is "another", expected "ohlol-bundle"'),
    "twice": ("Error", 'manifest.json: not JSON .*"task" is there twice'),
    "lone": ("Error", "manifest.json: not JSON .*a lone surrogate"),
    "outside": ("Error", "model.onnx: .*a weight stands in another file"),
    "hidden": ("Error", "model.onnx: .*the number of the field at byte .* is too large"),
    "facts": ("Error", "model.onnx: .*`labels` differs from that of manifest.json"),
    "leaves": ("Error", r'manifest.json: "../README.md" is not the name of a file of a bundle; refused'),
    "future, a single file": ("Error", "model.onnx: contract_version is 2, expected 1"),
    "flipped, a single file": (
        "Error",
        "model.onnx: damaged or changed: the sha256 of its graph is .{12}…, its metadata says",
    ),
    "foreign, a single file": ("Error", "model.onnx: an ONNX file that ohlol did not export"),
    "cut, a single file": ("Error", "model.onnx: not an ONNX file of ohlol, or damaged"),
    "outside, a single file": ("Error", "model.onnx: .*a weight stands in another file"),
}

ON_DISK = {
    "link": ("Error", "a link that leaves the bundle"),
    "pipe": ("Error", "it is not a file"),
    "run": ("Error", "broken/run: a run, not a bundle; make one of it: `ohlol export .*broken/run`"),
    "another file": (
        "Error",
        "tag-gru/README.md: a file, expected a bundle's folder or an .onnx file of one",
    ),
    "a way from here": ("Error", "^/.*nowhere/hello/manifest.json: cannot be read .*no such file"),
    "an old Node": ("Error", r"ohlol.mjs needs Node 20.16 or 22.3, or later; this is v\d"),
}
IN_PAGES = {
    "a web page for a bundle": ("Error", "any/hello/manifest.json: the server answered a web page .*path?"),
    "a page: bare": ("Error", r"onnxruntime-web cannot be imported .*import map.*load\(source, { ort }\)"),
    "a page: half": ("Error", "model.onnx: .*; the server answered a web page in place of its .wasm file"),
    "a page: strict": ("Error", "model.onnx: .*; the page's script-src needs 'wasm-unsafe-eval'"),
}


def test_what_cannot_be_is_refused_in_one_line(found):
    """Each says what it is about, what was expected and found, and what to do; up to the limits all goes well."""
    refusals = dict(found["refusals"])
    assert refusals.pop("most") == [True, 20_000]
    assert refusals.pop("longest") == 65_536
    expected = REFUSALS | (ON_DISK if found["host"] == "node" else IN_PAGES)
    assert expected.keys() == refusals.keys()
    for name, (kind, message) in expected.items():
        assert kind == refusals[name][0], (name, refusals[name])
        assert re.search(message, refusals[name][1]), (name, refusals[name][1])
        assert "\n" not in refusals[name][1]


def test_runs_of_marks_up_to_the_limit(found, runs):
    """What is refused is what a plain count refuses, wherever the run begins; all else is as the host normalises it."""
    refused = "more than 4096 combining characters in a row, to be brought to NFC; is it text?"
    for parts, verdict in zip(runs, found["runs"], strict=True):
        count, after, most = 0, "", 0
        for character in "".join(character * times for character, times in parts):
            count = count + 1 if character == MARK and after not in ("", " ") else 1
            after, most = character, max(most, count)
        assert verdict == (refused if most > 4096 else True), parts
    assert {True, refused} == set(found["runs"])


def test_a_model_is_released_once(found):
    """Calls that run are answered first; a second time changes nothing; a later call says so."""
    told = found["released"]
    assert (told["short"], told["long"], told["other"]) == (1, 20_000, 1)
    assert told["after"].endswith("model.onnx: the model was released; load it again")


def test_calls_that_overlap(found):
    """In a stream they are answered in their order; behind one that fails all fail, and the stream is as before it."""
    order = found["order"]
    assert order["whole"] == order["together"]
    assert order["failed"] == ["RangeError", "RangeError", "RangeError"]
    assert order["whole"][: len("hello ")] == order["rest"][: len("hello ")]
    assert len("hello world, hello") == len(order["rest"])
    assert order["side"] is True


def test_every_way_to_load_a_bundle(found):
    sources = dict(found["sources"])
    assert sources.pop("stream") == len("hello ")
    (answer,) = set(sources.values())
    assert len(answer.split("|")) == len("hello")


# What the page of the docs says, and the folder as a package.

PAGE = ROOT / "docs" / "javascript.md"
EXAMPLES = re.compile(r"^```js\n(.*?)^```$\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def app(node_modules, golden, tmp_path):
    """An app's folder, as the page makes it: `ohlol embed js`, what npm links and installs, and the bundles."""
    copied = CliRunner().invoke(main, ["embed", "js", "-o", str(tmp_path / "ohlol")])
    assert copied.exit_code == 0
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "ohlol").symlink_to(Path("..", "ohlol"))  # `npm install ./ohlol`
    for package in ("onnxruntime-node", "onnxruntime-web", "onnxruntime-common"):
        (tmp_path / "node_modules" / package).symlink_to(node_modules / "node_modules" / package)
    (tmp_path / "hello").symlink_to(shipped())
    (tmp_path / "lm").symlink_to(golden / "files")
    return tmp_path


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_page(number, app, program):
    """Each is run as it stands, by the package's name, with the runtime that the module imports itself."""
    examples = EXAMPLES.findall(PAGE.read_text("utf-8"))
    assert len(examples) == 3
    code, shown = examples[number]
    (app / "example.mjs").write_text(
        code + "if (process.env.ORT_DISABLE_TELEMETRY !== '1') throw 'telemetry';\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [program("node"), "example.mjs"],
        cwd=app,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    pattern = re.escape(shown).replace("…", ".")
    assert re.fullmatch(pattern, ran.stdout), ran.stdout


def test_the_package_is_that_of_this_version():
    package = json.loads((ROOT / "embed" / "js" / "package.json").read_text("utf-8"))
    assert package["version"] == ohlol.__version__
    files = {package["types"], *package["exports"]["."].values()}
    assert all((ROOT / "embed" / "js" / file).is_file() for file in files)


USE = """
import * as ort from "onnxruntime-node";
import { load, type Classified, type Model, type Proof, type Span, type Tagged } from "ohlol";

const model: Model = await load(new URL("file:///hello"), { ort, session: { intraOpNumThreads: 2 } });
const one: Tagged = await model.tag("h");
const many: Tagged[] = await model.tag(["h", "e"] as const);
const label: string | null = (await model.classify("h")).label;
const stream = await model.stream<Tagged>();
const words: string[] = ((await stream.feed("h")).words ?? []).map((word) => word.text);
const proof: Proof = await model.verify();
for await (const character of model.generate("h", { topK: 3, stop: ["."], random: () => 0.5 })) character.codePointAt(0);
const span: Span = one.labels[0]!;
await load({ "manifest.json": new Uint8Array(), "model.onnx": new Uint8Array() });
// @ts-expect-error: a number is no text
await model.tag(3);
// @ts-expect-error: of no task
await model.translate("h");
// @ts-expect-error: one text has one answer
const wrong: Classified[] = await model.classify("h");
export { label, many, proof, span, words, wrong };
"""


def test_the_types_are_those_that_an_app_needs(app, node_modules, program):
    """TypeScript, at its strictest, takes a use of everything and refuses what is wrong; both runtimes fit."""
    compiler = node_modules / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.is_file():
        pytest.skip(
            "typescript is not in the folder that OHLOL_NODE names; empty it to have all packages installed"
        )
    for runtime in ("onnxruntime-node", "onnxruntime-web"):
        (app / f"{runtime}.mts").write_text(USE.replace("onnxruntime-node", runtime))
    options = "--strict --noUncheckedIndexedAccess --exactOptionalPropertyTypes --noEmit --module nodenext --target es2022"
    ran = subprocess.run(
        [program("node"), compiler, *options.split(), "onnxruntime-node.mts", "onnxruntime-web.mts"],
        cwd=app,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "")

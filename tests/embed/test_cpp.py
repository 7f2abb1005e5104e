"""The C++ header answers as Python does, under the sanitizers of addresses and of undefined behaviour.

It is compiled against the headers of ONNX Runtime's C++ API and the library inside the installed wheel. The headers are in
no Python package: the variable OHLOL_ORT_INCLUDE names their folder, else pkg-config or the system does.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.bundle import shipped
from ohlol.artifacts.errors import BundleError
from ohlol.cli import main
from ohlol.serve.cut import _ends, begins
from ohlol.serve.generate import Sampling
from ohlol.serve.generate import generate as generate_in_python
from ohlol.serve.stream import load as load_stream

HERE = Path(__file__).parent
EMBED = HERE.parents[1] / "embed" / "cpp"
DOCS = HERE.parents[1] / "docs" / "cpp.md"
HEADER = "onnxruntime_cxx_api.h"
SYSTEM = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/opt/homebrew/include/onnxruntime")
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
SANITIZED = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")
BUILDS = {"plain": ("-O1",), "sanitized": SANITIZED, "without utf8proc": ("-DOHLOL_NO_UTF8PROC",)}
ASK = {"tag": "tag", "classify": "classify", "lm": "score"}
FORMS = {
    "NFC": "tag-rnn",
    "NFD": "tag-gru",
    "NFKC": "tag-lstm",
    "NFKD": "tag-rnn-both",
    "none": "tag-gru-both",
}


@pytest.fixture(scope="session")
def ort_include(program) -> Path:
    """The folder of ONNX Runtime's headers."""
    named = os.environ.get("OHLOL_ORT_INCLUDE")
    folders = [named] if named else list(SYSTEM)
    if not named and shutil.which("pkg-config"):
        asked = ["pkg-config", "--cflags-only-I", "libonnxruntime"]
        told = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=60, check=False)
        folders += [word.removeprefix("-I") for word in told.stdout.split()]
    for folder in folders:
        if (Path(folder) / HEADER).is_file():
            return Path(folder)
    pytest.skip(f"{HEADER} is not installed; the variable OHLOL_ORT_INCLUDE may name its folder")


@pytest.fixture(scope="session")
def ort_library(shared_folder) -> Path:
    """A folder with the wheel's library, under the names that a linker and a loader look for."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("the installed onnxruntime holds no libonnxruntime.so")

    def make(folder: Path) -> None:
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (folder / name).symlink_to(found[0])

    return shared_folder("ort", make)


@pytest.fixture(scope="session")
def builds(program, ort_include, ort_library, shared_folder, tmp_path_factory) -> dict[str, Path]:
    """The driver, compiled in each way; every warning is an error."""
    compiler = program("g++")
    link = ("-L", ort_library, f"-Wl,-rpath,{ort_library}", "-lonnxruntime", "-pthread")

    def make(folder: Path) -> None:
        running = []
        for name, flags in BUILDS.items():
            tables = () if name == "without utf8proc" else ("-lutf8proc",)
            command = [compiler, *STRICT, *flags, f"-I{EMBED}", "-isystem", ort_include, HERE / "driver.cpp"]
            command += ["-o", folder / name, *link, *tables]
            running.append((name, subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")))
        for name, process in running:
            _, said = process.communicate(timeout=400)
            assert process.returncode == 0, f"{name}: {said}"

    if not Path("/usr/include/utf8proc.h").is_file():
        pytest.skip("utf8proc.h is not installed (libutf8proc-dev)")
    folder = shared_folder("cpp", make)
    return {name: folder / name for name in BUILDS}


class Host:
    """A driver that runs: asked a line, answers a line."""

    def __init__(self, binary: Path, errors: Path) -> None:
        self._errors = errors
        self._kept: dict[str, dict] = {}
        with errors.open("w") as stderr:
            self._process = subprocess.Popen(
                [binary],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
                env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
            )

    def ask(self, *words):
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        net = threading.Timer(300, self._process.kill)  # where it hangs, the line below ends
        net.start()
        answer = self._process.stdout.readline()
        net.cancel()
        assert answer, f"it ended: {self._errors.read_text()}"
        return json.loads(answer)

    def load(self, path, how="load", *words):
        """The facts of a model that is asked from now on; it is opened once."""
        key = hexed(f"{how} {path} {words}")
        if key in self._kept:
            assert self.ask("take", key) is True
        else:
            answer = self.ask(how, hexed(str(path)), *words)
            if "task" not in answer:
                return answer
            assert self.ask("keep", key) is True
            self._kept[key] = answer
        return self._kept[key]

    def close(self) -> None:
        """It ends well, and the sanitizers found nothing, leaks at the end included."""
        self._process.stdin.close()
        self._process.stdout.close()
        ended = self._process.wait(timeout=60)
        assert (ended, self._errors.read_text()) == (0, "")


@pytest.fixture(scope="module")
def hosts(builds, tmp_path_factory):
    errors = tmp_path_factory.mktemp("hosts")
    made = {name: Host(binary, errors / name) for name, binary in builds.items()}
    yield made
    for host in made.values():
        host.close()


@pytest.fixture(scope="module")
def host(hosts) -> Host:
    return hosts["sanitized"]


@pytest.fixture(scope="module")
def models(bundles):
    return {name: ohlol.load(path) for name, path in bundles.items()}


def hexed(text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return data.hex() or "-"


def plain(answer, scheme):
    """A host's answer as `answers` have it, without what is the host's own."""
    if "labels" in answer:
        kept = {key: answer[key] for key in ("text", "labels", "probabilities")}
        parts = {key: [word for word, _ in answer[key]] for key in ("words", "sentences")}
        assert scheme or parts == {"words": [], "sentences": []}
        return kept | (parts if scheme else {})
    if "label" in answer:
        by_label = dict(answer["probabilities"])
        assert answer["probability"] == (by_label[answer["label"]] if by_label else None)
        assert [p for _, p in answer["probabilities"]] == sorted(by_label.values(), reverse=True)
        return {"text": answer["text"], "label": answer["label"], "probabilities": by_label}
    return answer


def characters(data: bytes, form: str):
    """`(character, (start, end))` of the normalised text, by Python: bytes that are no UTF-8 are U+FFFD each."""
    broken = []

    def note(error):
        broken.append((error.start, error.end))
        return "\ufffd", error.end

    codecs.register_error("ohlol-note", note)
    text = data.decode("utf-8", "ohlol-note")
    found, at = [], 0
    for character in text:
        if broken and broken[0][0] == at:
            start, at = broken.pop(0)
        else:
            start, at = at, at + len(character.encode())
        found.append((character, (start, at)))
    if form == "none":
        return found
    pieces = []
    for k, one in enumerate(found):
        if k == 0 or begins(one[0]) or _ends(found[k - 1][0]):
            pieces.append([])
        pieces[-1].append(one)
    normal = []
    for piece in pieces:
        given = "".join(character for character, _ in piece)
        changed = unicodedata.normalize(form, given)
        whole = (piece[0][1][0], piece[-1][1][1])
        normal += piece if changed == given else [(character, whole) for character in changed]
    assert "".join(character for character, _ in normal) == unicodedata.normalize(form, text)
    return normal


def assert_spans(answer, data: bytes, model):
    """Each label has its character, its place in the bytes given, and whether the model knows it."""
    expected = characters(data, model.manifest.alphabet.normalisation)
    assert [list(span) for _, span in expected] == answer["spans"]
    assert [ord(character) for character, _ in expected] == answer["characters"]
    known = model.manifest.alphabet.characters
    assert [character in known for character, _ in expected] == answer["known"]
    names = model.manifest.labels
    assert [names[k] for k in answer["ids"]] == answer["labels"]
    C = len(names)
    best = [answer["probabilities"][t * C + k] for t, k in enumerate(answer["ids"])]
    assert best == answer["best"]


@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_nasty_strings(build, hosts, bundles, models, nasty, answers, same):
    """Every task, cell and form: the same texts, labels, words and numbers as Python, alone and in one call."""
    host = hosts[build]
    for name, path in bundles.items():
        model, facts = models[name], host.load(path)
        assert facts == {
            "task": model.manifest.task,
            "scheme": model.manifest.label_scheme or "",
            "form": model.manifest.alphabet.normalisation,
            "labels": list(model.manifest.labels),
        }
        alone = [host.ask(ASK[facts["task"]], hexed(text)) for text in nasty.values()]
        together = host.ask("texts", *map(hexed, nasty.values()))
        for key, one, other in zip(nasty, alone, together, strict=True):
            same(plain(one, facts["scheme"]), answers[name][key])
            same(plain(other, facts["scheme"]), answers[name][key])
            if facts["task"] == "tag":
                assert_spans(one, nasty[key].encode(), model)


@pytest.mark.parametrize("name", ["words-lstm-both", "words-gru"])
def test_words_have_their_places(name, host, bundles, nasty):
    """A word and a sentence are the bytes from their first character to their last, where nothing was normalised."""
    host.load(bundles[name])
    found = []
    for text in nasty.values():
        answer = host.ask("tag", hexed(text))
        if unicodedata.is_normalized("NFC", text):
            places = [*answer["words"], *answer["sentences"]]
            found += places
            assert [text.encode()[start:end].decode() for _, (start, end) in places] == [w for w, _ in places]
    assert found


def assert_bytes(host, path, model, data, same, python):
    """Bytes have the answer that Python gives to what its decoder makes of them."""
    facts = host.load(path)
    answer = host.ask(ASK[facts["task"]], hexed(data))
    same(plain(answer, facts["scheme"]), python(model, data.decode("utf-8", "replace")))
    if facts["task"] == "tag":
        assert_spans(answer, data, model)


def test_surrogates(host, bundles, models, surrogates, same, python):
    """What would stand for a surrogate is no UTF-8: it is read as Python's decoder reads it."""
    for name, path in bundles.items():
        for text in surrogates.values():
            assert_bytes(host, path, models[name], text.encode("utf-8", "surrogatepass"), same, python)


BROKEN = st.lists(
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from(
            [b"\xe4\xb8", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80"]
        ),
        st.sampled_from(
            ["h", "e", "\u0301", "中", "😀", " ", "\0", "\u1100", "\u1161", "\u11a7", "\u11a8", "가"]
        ).map(str.encode),
    ),
    max_size=8,
).map(b"".join)


@given(data=BROKEN)
def test_bytes_that_are_no_utf8(data, host, bundles, models, same, python):
    """Each part that Unicode recommends is one U+FFFD, at its own bytes; in all forms."""
    for name in FORMS.values():
        assert_bytes(host, bundles[name], models[name], data, same, python)


# Characters that stand in Unicode since 3.2: Python and utf8proc may have later versions of it, not the same ones.
OLD = [
    c
    for c in map(chr, (*range(0xD800), *range(0xE000, 0x30000)))
    if unicodedata.ucd_3_2_0.category(c) != "Cn"
]
JOINERS = [c for c in OLD if not begins(c) or unicodedata.normalize("NFKD", c) != c]


@pytest.mark.parametrize("form", FORMS)
def test_every_character_in_every_form(form, host, bundles):
    """utf8proc, with what is done beside it, normalises as Python does: each character alone and after a letter."""
    host.load(bundles[FORMS[form]])
    for start in range(0, len(OLD), 4096):
        some = OLD[start : start + 4096]
        text = "\n".join(some) + "\n" + "e\u0323".join(some)
        expected = unicodedata.normalize(form, text) if form != "none" else text
        assert host.ask("normalise", hexed(text)) == expected


@example(text="가\u11a7")
@example(text="\u1100\u1161\u11a7\u0301\u11a8")
@given(
    text=st.text(
        st.one_of(st.sampled_from(JOINERS), st.sampled_from("e\u0301\u0323a가각\u1100\u1161\u11a7\u11a8 ")),
        max_size=12,
    )
)
def test_drawn_marks_and_jamo(text, host, bundles):
    """Runs of what joins what is before it, in any order."""
    for form, name in FORMS.items():
        host.load(bundles[name])
        expected = unicodedata.normalize(form, text) if form != "none" else text
        assert host.ask("normalise", hexed(text)) == expected


def test_a_million_marks(hosts, bundles):
    """Time grows with the length of a run of marks, not with its square."""
    host = hosts["plain"]
    host.load(bundles["tag-gru"])
    found = host.ask("normalise", hexed("e" + "\u0301\u0323" * 500_000))
    assert found == "e" + "\u0323" * 500_000 + "\u0301" * 500_000
    same = "e" + "\u0301" * 1_000_000
    assert host.ask("normalise", hexed(same)) == same


def fed(host, data, cuts):
    pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return host.ask("pieces", *map(hexed, pieces))


def whole_of(answers, task):
    """The answers for the pieces of a text as one for the whole."""
    if task == "tag":
        keys = ("labels", "spans", "characters", "probabilities")
        told = {key: [one for answer in answers for one in answer[key]] for key in keys}
        return told | {"text": "".join(answer["text"] for answer in answers)}
    if task == "classify":
        return plain(answers[-1], "") | {"text": "".join(answer["text"] for answer in answers)}
    counts = [len(answer["text"]) for answer in answers]
    counts[next((k for k, n in enumerate(counts) if n), 0)] -= 1  # the first character has no score
    nats = sum(
        answer["nats"] * n for answer, n in zip(answers, counts, strict=True) if answer["nats"] is not None
    )
    total = sum(counts)
    told = {key: answers[-1][key] for key in ("next", "probability")}
    return told | {
        "nats": nats / total if total > 0 else None,
        "text": "".join(answer["text"] for answer in answers),
    }


def test_streams_cut_anywhere(host, bundles, nasty, answers, same):
    """Pieces cut at any bytes, within characters too, have the answer and the places of the whole text."""
    drawn = random.Random(1)
    for name, path in bundles.items():
        if name.endswith("-both"):
            continue
        facts = host.load(path)
        for key, text in nasty.items():
            data = text.encode()
            for most in (2, 7, 60):
                cuts = sorted(drawn.randint(0, len(data)) for _ in range(min(most, len(data))))
                found = fed(host, data, cuts)
                assert (
                    found["again"]
                    == "the stream has ended, or was moved; begin another text with model.stream()"
                )
                assert found["characters"] == len(answers[name][key]["text"])
                told = whole_of(found["answers"], facts["task"])
                if facts["task"] == "tag":
                    expected = characters(data, facts["form"])
                    assert [list(span) for _, span in expected] == told.pop("spans")
                    assert [ord(character) for character, _ in expected] == told.pop("characters")
                keep = {k: v for k, v in answers[name][key].items() if k not in ("words", "sentences")}
                same(told, keep)


@given(data=BROKEN, numbers=st.lists(st.integers(0, 40), max_size=6))
def test_streams_of_broken_bytes(data, numbers, host, bundles, models, same):
    """Wherever they are cut, and where the text ends within a character."""
    cuts = sorted(number % (len(data) + 1) for number in numbers)
    for name in ("tag-lstm", "words-gru"):
        facts = host.load(bundles[name])
        told = whole_of(fed(host, data, cuts)["answers"], "tag")
        expected = characters(data, facts["form"])
        assert [list(span) for _, span in expected] == told["spans"]
        found = models[name](data.decode("utf-8", "replace"))
        assert (told["text"], told["labels"]) == (found.text, list(found.labels))


def test_what_a_stream_holds_back(host, bundles, models):
    """Piece by piece the same text, labels, words and sentences as Python's stream, and the same is held back."""
    text = "Hello e\u0301\u0323 wo\u1112\u1161\u11abrld.\n\u0301x 中\u00a0\u0308"
    host.load(bundles["words-gru"])
    stream = models["words-gru"].stream()
    expected = [*map(stream.feed, text), stream.finish()]
    answers = host.ask("pieces", *map(hexed, text))["answers"]
    for answer, found in zip(answers, expected, strict=True):
        told = plain(answer, "words")
        told.pop("probabilities")
        assert told == {
            "text": found.text,
            "labels": list(found.labels),
            "words": found.words,
            "sentences": found.sentences,
        }


@pytest.mark.parametrize("name", ["tag-lstm", "classify-gru", "lm-gru"])
def test_long_texts(name, host, bundles, models, same, python):
    """A text of more than 8,192 characters is read in parts, its state carried, alone and among short ones."""
    facts = host.load(bundles[name])
    texts = ["hello 中文 e\u0301 😀 " * 900, "hello", "", "한국 h" * 300]
    for answer, text in zip(host.ask("texts", *map(hexed, texts)), texts, strict=True):
        same(plain(answer, ""), python(models[name], text))
    assert facts["form"] != "none"


def test_a_long_text_that_is_read_whole(host, bundles, models):
    """Where the network reads both ways it is one call: the answer is that of the whole text."""
    text = "hello 中文 " * 1200
    host.load(bundles["tag-gru-both"])
    answer = host.ask("tag", hexed(text))
    points = np.array([[ord(character) for character in text]], dtype=np.int32)
    outputs = models["tag-gru-both"].outputs(points, np.array([len(text)], dtype=np.int32))
    assert outputs["label_ids"][0].tolist() == answer["ids"]


@pytest.mark.parametrize("name", ["lm-rnn", "lm-gru", "lm-lstm"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0, None, None), (1, None, None), (0.7, 5, None), (1.3, None, 0.8), (2, 20, 0.5), (1, 1, 0.01)],
)
def test_generate(name, temperature, top_k, top_p, host, bundles):
    """With the same random numbers, the same text as Python makes."""
    host.load(bundles[name])
    file = load_stream(bundles[name])
    numbers = np.random.Generator(np.random.PCG64(7)).random(60).tolist()
    for prompt in ("", "he", "中e\u0301"):
        sampling = Sampling(temperature, top_k, top_p)
        all_of_it = "".join(generate_in_python(file, prompt, length=60, sampling=sampling, seed=7))
        for stop in ((), ("o", "el"), (all_of_it[30:33], all_of_it[40:44]), (all_of_it[58:] + "x",)):
            made = generate_in_python(file, prompt, length=60, sampling=sampling, seed=7, stop=stop)
            numbers_as_words = [
                temperature,
                top_k or "-",
                top_p or "-",
                60,
                0,
                hexed(prompt),
                *map(hexed, stop),
                "/",
            ]
            answer = host.ask("made", *numbers_as_words, *numbers)
            assert answer["made"] == "".join(made) == "".join(answer["parts"])


def test_generate_as_told(host, bundles):
    """It ends where the app says so; without numbers of the app's it draws its own; none is asked for beyond `length`."""
    host.load(bundles["lm-gru"])
    answer = host.ask("made", 1, "-", "-", 50, 3, "-", "/")
    assert len(answer["parts"]) == 3
    assert answer["made"] == "".join(answer["parts"])
    texts = {host.ask("made", 1, "-", "-", 50, 0, "-", "/")["made"] for _ in range(5)}
    assert {len(text) for text in texts} == {50}
    assert len(texts) > 1
    assert host.ask("made", 1, "-", "-", 0, 0, hexed("he"), "/") == {"made": "", "parts": []}


def test_threads_under_their_sanitizer(program, ort_include, ort_library, bundles, models, tmp_path):
    """Four threads tag with one model and are the first to open its stream.onnx: no two touch the same thing at once."""
    link = ("-L", ort_library, f"-Wl,-rpath,{ort_library}", "-lonnxruntime", "-pthread")
    flags = (
        *STRICT,
        "-g1",
        "-fsanitize=thread",
        "-DOHLOL_NO_UTF8PROC",
        f"-I{EMBED}",
        "-isystem",
        ort_include,
    )
    command = [program("g++"), *flags, HERE / "threads.cpp", "-o", tmp_path / "threads", *link]
    subprocess.run(command, timeout=400, check=True)
    ran = subprocess.run(
        [tmp_path / "threads", bundles["tag-gru"]],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "".join(models["tag-gru"]("hello world").labels) * 2 + "\n"


def test_threads(host, bundles):
    """Four threads ask one model and feed streams of their own: each has the answer that one alone has."""
    host.load(bundles["lm-lstm"])
    assert host.ask("threads", *map(hexed, ("hello 中文 e\u0301" * 20, "wo", "rld"))) is True


@pytest.mark.parametrize("name", ["tag-rnn-both", "words-gru", "classify-lstm", "lm-gru", "hello"])
def test_the_proof_is_replayed(name, host, bundles):
    """`ohlol_verify.hpp` runs each file on each case of the bundle's own test data."""
    path = bundles.get(name, shipped())
    proof = host.ask("verify", hexed(str(path)))
    assert proof["passed"], proof
    files = {file for file, *_ in proof["rows"]}
    assert files == {file.name for file in path.glob("*.onnx")} - {"text.onnx"}
    assert len(proof["rows"]) == len(files) * len(list(path.glob("test_data_set_*")))


def sealed(bundle):
    """A bundle whose files were changed, its manifest as if they had been exported so."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_bytes())
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    file.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return bundle


def test_a_proof_that_does_not_hold(host, bundles, tmp_path):
    """A number that is off by more than is allowed fails, and so do other labels where the numbers are right."""
    for name in ("tag-gru", "lm-gru", "classify-lstm"):
        path = shutil.copytree(bundles[name], tmp_path / name)
        file = path / "test_data_set_1" / "output_0.pb"
        values = onnx.numpy_helper.to_array(onnx.load_tensor(str(file))).copy()
        values.reshape(-1)[0] += 0.001
        onnx.save_tensor(onnx.numpy_helper.from_array(values, "logits"), str(file))
        proof = host.ask("verify", hexed(str(sealed(path))))
        failed = {test for _, test, _, _, passed in proof["rows"] if not passed}
        assert (proof["passed"], failed) == (False, {"test_data_set_1"})
    shutil.copytree(bundles["tag-gru"], tmp_path / "labels")
    model = onnx.load(str(bundles["tag-gru"] / "model.onnx"))
    (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    del model.metadata_props[[entry.key for entry in model.metadata_props].index("ohlol.sha256")]
    (tmp_path / "labels" / "model.onnx").write_bytes(model.SerializeToString())
    rows = host.ask("verify", hexed(str(sealed(tmp_path / "labels"))))["rows"]
    of_model = [row[2:] for row in rows if row[0] == "model.onnx"]
    assert [(error < 1e-5, labels > 0, passed) for error, labels, passed in of_model] == [
        (True, True, False)
    ] * 10


def test_numbers_that_are_none(host, bundles, tmp_path):
    """No answer is made of them, at temperature 0 neither."""
    path = shutil.copytree(bundles["lm-gru"], tmp_path / "lm")
    for file in (path / "model.onnx", path / "stream.onnx"):
        model = onnx.load(str(file))
        for weight in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weight)
            if values.dtype == np.float32:
                weight.CopyFrom(onnx.numpy_helper.from_array(values * np.float32("nan"), weight.name))
        del model.metadata_props[[entry.key for entry in model.metadata_props].index("ohlol.sha256")]
        file.write_bytes(model.SerializeToString())
    host.load(sealed(path))
    expected = "the model gives numbers that are none; export it again"
    assert host.ask("score", hexed("hello"))["error"] == expected
    assert host.ask("made", 0, "-", "-", 5, 0, "-", "/")["error"] == expected


def test_test_data_outside_of_the_contract(host, bundles, tmp_path):
    """A length of 0 would end the process inside the runtime."""
    path = shutil.copytree(bundles["tag-gru"], tmp_path / "bundle")
    file = path / "test_data_set_0" / "input_1.pb"
    lengths = onnx.numpy_helper.to_array(onnx.load_tensor(str(file))) * 0
    onnx.save_tensor(onnx.numpy_helper.from_array(lengths, "lengths"), str(file))
    assert "input_1.pb: damaged or changed: its sha256 is" in host.ask("verify", hexed(str(path)))["error"]
    assert "a length is not that of a row" in host.ask("verify", hexed(str(sealed(path))))["error"]
    file.write_bytes(b"\xff" * 20)
    assert "input_1.pb: a number is cut off" in host.ask("verify", hexed(str(sealed(path))))["error"]
    file.unlink()
    assert "missing, or cannot be read" in host.ask("verify", hexed(str(path)))["error"]


# ---- What is refused ----


def changed(path, target, **facts):
    """A copy of an .onnx file with other metadata, as text; None takes one away."""
    model = onnx.load(str(path))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    for name, value in facts.items():
        entries[f"ohlol.{name}"] = value
        if value is None:
            del entries[f"ohlol.{name}"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    target.write_bytes(model.SerializeToString())
    return target


WRONG = {
    "another version": ({"contract_version": "2"}, "contract_version is 2, this ohlol.hpp knows 1 only"),
    "a version like it": ({"contract_version": "1.0"}, "contract_version is 1.0"),
    "no version": ({"contract_version": None}, "has no contract_version"),
    "another format": ({"format_version": "11"}, "format_version is 11"),
    "no task": ({"task": None}, "has no task"),
    "another task": ({"task": '"translate"'}, "task, labels, label_scheme or normalisation"),
    "labels twice": ({"labels": '["a", "a", "b", "c", "d", "e"]'}, "task, labels"),
    "labels of numbers": ({"labels": "[1, 2]"}, "expected a string at byte 1"),
    "labels cut off": ({"labels": '["a", "b"'}, "expected a comma"),
    "a comma too many": ({"labels": '["a", ]'}, "expected a value"),
    "more behind": ({"labels": '["a"] "b"'}, "there is more after the value"),
    "a lone surrogate": ({"labels": '["\\ud83d"]'}, "a lone surrogate"),
    "a pair turned round": ({"labels": '["\\ude00\\ud83d"]'}, "a lone surrogate"),
    "a bad escape": ({"labels": '["\\x"]'}, "no such escape"),
    "an escape cut off": ({"labels": '["\\u12'}, "no such escape"),
    "a control": ({"labels": '["a\nb"]'}, "holds a control character"),
    "a name twice": (
        {"alphabet": '{"characters": "a", "characters": "b", "normalisation": "NFC"}'},
        "a name is there twice",
    ),
    "a character twice": (
        {"alphabet": '{"characters": "aa", "normalisation": "NFC"}'},
        "a character twice, or NUL",
    ),
    "NUL": ({"alphabet": '{"characters": "a\\u0000", "normalisation": "NFC"}'}, "a character twice, or NUL"),
    "another form": (
        {"alphabet": '{"characters": "a", "normalisation": "nfc"}'},
        "normalisation are not those",
    ),
    "another scheme": ({"label_scheme": '"bies"'}, "label_scheme"),
    "a scheme of other labels": ({"label_scheme": '"words"'}, "label_scheme"),
    "a digest that is none": ({"sha256": "1"}, "expected a string"),
    "another digest": ({"sha256": '"00"'}, "its sha256 is not the one in its metadata"),
}


@pytest.mark.parametrize("case", WRONG)
def test_metadata_that_are_not_right(case, host, bundles, tmp_path):
    """One line that names the file and the fact."""
    facts, problem = WRONG[case]
    path = changed(bundles["tag-gru"] / "model.onnx", tmp_path / "model.onnx", **facts)
    error = host.load(path)["error"]
    assert error.startswith(f"{path}: cannot read it: ")
    assert problem in error
    assert error.endswith("; copy or export it again")
    assert "\n" not in error


def test_labels_of_all_kinds(host, bundles, tmp_path):
    """Escapes, pairs of surrogates and other planes in the metadata are read as JSON has them."""
    labels = ['\u00e9\n\t"\\/', "😀", "\u2028", "\x7f", "b\b", "f\f\r"]
    for escaped in (True, False):
        text = json.dumps(labels, ensure_ascii=escaped)
        path = changed(bundles["tag-gru"] / "model.onnx", tmp_path / "model.onnx", labels=f" {text}\n")
        assert host.ask("load", hexed(str(path)))["labels"] == labels


def test_files_that_are_not_right(host, bundles, tmp_path):
    """Absent, a pipe, another file of a bundle, a run, cut off, or with weights elsewhere: one line each."""
    tag = bundles["tag-gru"]
    assert "missing, or cannot be read" in host.load(tmp_path / "none")["error"]
    assert (
        f"{tmp_path}: has no manifest.json, so it is not a bundle; expected one made"
        in host.load(tmp_path)["error"]
    )
    run = tag.with_name("tag-gru.run")
    hint = f"it looks like a run: make a bundle of it with `ohlol export {run}`"
    assert host.load(run)["error"].endswith(hint)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "missing, or cannot be read" in host.load(tmp_path / "pipe.onnx")["error"]
    assert "takes codepoints state, so it is another file" in host.load(tag / "stream.onnx")["error"]
    assert "takes text, so it is another file" in host.load(shipped() / "text.onnx")["error"]
    (tmp_path / "empty.onnx").touch()
    assert "ohlol did not export it" in host.load(tmp_path / "empty.onnx")["error"]
    (tmp_path / "text.onnx").write_text("hello, I am no model\n" * 20)
    assert "a field is cut off" in host.load(tmp_path / "text.onnx")["error"]

    model = onnx.load(str(tag / "model.onnx"))
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="elsewhere")
    del model.metadata_props[[entry.key for entry in model.metadata_props].index("ohlol.sha256")]
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    assert "a weight of it stands in another file" in host.load(tmp_path / "outside.onnx")["error"]
    # protobuf leaves out what is above 32 bits: field 25, of functions, to a runtime, and none that we would know.
    hidden = (tag / "model.onnx").read_bytes() + b"\xca\x81\x80\x80\x10\x00"
    (tmp_path / "hidden.onnx").write_bytes(hidden)
    assert "the number of a field is too large" in host.load(tmp_path / "hidden.onnx")["error"]


def facts_changed(path, **facts):
    """The manifest with other facts, as JSON values."""
    manifest = json.loads((path / "manifest.json").read_bytes()) | facts
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def without(path, name):
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["files"][name]
    facts_changed(path, files=manifest["files"])


def linked(path, name, other):
    (path / name).rename(other / name)
    (path / name).symlink_to(other / name)


def relabelled(path):
    """One label in the metadata, which no digest inside the file covers."""
    whole = path.read_bytes()
    at = whole.index(b'"a"', whole.index(b"ohlol.labels"))
    path.write_bytes(whole[:at] + b'"A"' + whole[at + 3 :])


# What is done to the folder; the file that is named; what is wrong with it.
UNLIKE = {
    "a label": (
        lambda path, _: relabelled(path / "model.onnx"),
        "model.onnx",
        "damaged or changed: its sha256 is",
    ),
    "a byte more": (
        lambda path, _: (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes() + b"\0"),
        "model.onnx",
        "damaged or changed: it has",
    ),
    "another stream": (
        lambda path, bundles: shutil.copy(bundles["tag-lstm"] / "stream.onnx", path),
        "stream.onnx",
        "damaged or changed: it has",
    ),
    "a stream of another model": (
        lambda path, bundles: (shutil.copy(bundles["tag-lstm"] / "stream.onnx", path), sealed(path)),
        "stream.onnx",
        "its alphabet differs from that of manifest.json",
    ),
    "no stream": (
        lambda path, _: (path / "stream.onnx").unlink(),
        "stream.onnx",
        "missing, or cannot be read",
    ),
    "no model": (lambda path, _: (path / "model.onnx").unlink(), "model.onnx", "missing, or cannot be read"),
    "no model listed": (
        lambda path, _: without(path, "model.onnx"),
        "model.onnx",
        "the manifest does not list it",
    ),
    "a link": (
        lambda path, _: linked(path, "model.onnx", path.parent),
        "model.onnx",
        "a link that leaves the bundle",
    ),
    "another fact": (
        lambda path, _: facts_changed(path, task="classify"),
        "model.onnx",
        "its task differs from that of manifest.json",
    ),
    "a number of another kind": (
        lambda path, _: facts_changed(path, opset=17.0),
        "model.onnx",
        "its opset differs from that of manifest.json",
    ),
    "another version": (
        lambda path, _: facts_changed(path, format_version=2),
        "manifest.json",
        "format_version is 2, this ohlol.hpp knows 1 only",
    ),
    "another contract": (
        lambda path, _: facts_changed(path, contract_version=2),
        "manifest.json",
        "contract_version is 2, this ohlol.hpp knows 1 only",
    ),
    "another format": (
        lambda path, _: facts_changed(path, format="a-bundle"),
        "manifest.json",
        'its format is "a-bundle", so ohlol did not export it',
    ),
    "no files": (
        lambda path, _: facts_changed(path, files=[]),
        "manifest.json",
        "expected a list or an object",
    ),
    "no digest": (
        lambda path, _: facts_changed(path, files={"model.onnx": {"bytes": 1}}),
        "model.onnx",
        "the manifest has no sha256 and bytes of it",
    ),
    "a name twice": (
        lambda path, _: (path / "manifest.json").write_text('{"format": 1, "format": 2}'),
        "manifest.json",
        "a name is there twice",
    ),
    "nested too deep": (
        lambda path, _: (path / "manifest.json").write_text('{"a":' + "[" * 100_000),
        "manifest.json",
        "nested deeper than 32",
    ),
    "no JSON": (
        lambda path, _: (path / "manifest.json").write_bytes(b"\xff"),
        "manifest.json",
        "expected a list",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_a_bundle_that_is_not_what_its_manifest_says(case, host, bundles, tmp_path):
    """Refused by the file that is not right, before it is used, as by Python; and what to do."""
    change, file, problem = UNLIKE[case]
    path = shutil.copytree(bundles["tag-gru"], tmp_path / "bundle")
    change(path, bundles)
    answer = host.ask("load", hexed(str(path)))
    if file == "stream.onnx":  # which is opened when it is first needed
        assert answer["task"] == "tag"
        answer = host.ask("pieces", hexed("h"))
    assert answer["error"].startswith(f"{path / file}: ")
    assert problem in answer["error"]
    assert re.search("copy or export|expected a bundle", answer["error"])
    assert "\n" not in answer["error"]
    with pytest.raises(BundleError):
        load_stream(path)


def test_a_manifest_written_otherwise(host, bundles, tmp_path):
    """Names in another order, spaces, escapes, numbers in other digits: the same values are the same facts."""
    path = shutil.copytree(bundles["tag-gru"], tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["metrics"] = {"dev": {"loss": 0.00001}}
    for name in ("model.onnx", "stream.onnx"):
        changed(path / name, path / name, metrics='{"dev": {"loss": 1E-5}}')
    text = json.dumps(dict(reversed(manifest.items())), indent=3, ensure_ascii=True)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    sealed(path)
    (path / "manifest.json").write_text(
        json.dumps(json.loads((path / "manifest.json").read_bytes()), indent=3, ensure_ascii=True)
    )
    assert host.load(path)["task"] == "tag"
    assert len(host.ask("pieces", hexed("h"))["answers"]) == 2
    assert ohlol.load(path).manifest.task == "tag"


def test_damage_anywhere(host, tmp_path):
    """Whatever bytes of a file are changed, cut or doubled: an answer, or one line; never a crash."""
    whole = (shipped() / "model.onnx").read_bytes()
    drawn = random.Random(2)
    refused = 0
    for number in range(400):
        damaged = bytearray(whole)
        at, size = drawn.randrange(len(whole)), drawn.choice([1, 1, 1, 8, 300])
        match number % 4:
            case 0 | 1:
                damaged[at : at + size] = bytes(
                    byte ^ drawn.randrange(1, 256) for byte in damaged[at : at + size]
                )
            case 2:
                del damaged[at : at + size]
            case _:
                damaged[at:at] = damaged[at : at + size]
        (tmp_path / "model.onnx").write_bytes(damaged)
        answer = host.ask("load", hexed(str(tmp_path / "model.onnx")))
        refused += "error" in answer
        assert "task" in answer or ("\n" not in answer["error"] and str(tmp_path) in answer["error"])
    assert refused > 300


def test_what_cannot_be_meant(host, bundles):
    """Empty lists and numbers out of their range are std::invalid_argument; another task, or no stream, ohlol::Error."""
    path = bundles["tag-gru"]
    assert host.load(path, "load-threads", 0) == {"argument": "threads is 0, expected 1 to 1024"}
    host.load(path)
    assert host.ask("texts") == {"argument": "an empty list of texts; give at least one"}
    calls = "call tag(text) or stream<ohlol::Tagged>()"
    for words, call in (
        (("score", hexed("h")), "score(text)"),
        (("classify", hexed("h")), "classify(text)"),
        (("wrong-stream",), "stream<ohlol::Scored>()"),
        (("made", 1, "-", "-", 5, 0, "-", "/"), "generate(prompt)"),
    ):
        assert host.ask(*words)["error"] == f"this model is for tag and has no {call}: {calls}"
    host.load(bundles["classify-gru"])
    assert host.ask("tag", hexed("h"))["error"].endswith(
        "no tag(text): call classify(text) or stream<ohlol::Classified>()"
    )
    host.load(bundles["lm-gru"])
    assert host.ask("tag", hexed("h"))["error"].endswith(
        "no tag(text): call score(text), stream<ohlol::Scored>() or generate(prompt)"
    )
    host.load(path / "model.onnx")
    assert host.ask("pieces", hexed("h"))["error"] == (
        "no stream.onnx: load the folder of a bundle that has one (`ohlol export RUN --formats onnx,stream`), or give it "
        "whole texts"
    )
    for both in (bundles["tag-gru-both"], bundles["tag-gru-both"] / "model.onnx"):
        host.load(both)
        assert host.ask("pieces", hexed("h"))["error"] == (
            "the network reads both ways, so its answers need the end of the text; give it whole texts"
        )
    host.load(bundles["lm-gru"])
    for wrong, problem in (
        ((-1, "-", "-", 5, 0, "-", "/"), "temperature is -1, expected a number from 0 up"),
        (("nan", "-", "-", 5, 0, "-", "/"), "temperature is nan, expected a number from 0 up"),
        (("inf", "-", "-", 5, 0, "-", "/"), "temperature is inf, expected a number from 0 up"),
        ((1, 0, "-", 5, 0, "-", "/"), "top_k is 0, expected a whole number from 1 up"),
        ((1, "-", 0, 5, 0, "-", "/"), "top_p is 0, expected a number above 0 and at most 1"),
        ((1, "-", 1.5, 5, 0, "-", "/"), "top_p is 1.5, expected a number above 0 and at most 1"),
        ((1, "-", "-", 5, 0, "-", "-", "/"), "a stop string is empty, expected one character at least"),
        ((1, "-", "-", 5, 0, "-", "/", 1.0), "Sampling::random gave 1, expected a number from 0 to below 1"),
    ):
        assert host.ask("made", *wrong)["argument"] == problem


def test_a_stream_that_refuses_goes_on(host, bundles):
    """More marks than text has are refused."""
    host.load(bundles["tag-rnn"])
    error = host.ask("pieces", hexed("e" + "\u0301" * 5000))["error"]
    assert error.startswith(
        "5001 combining characters in a row: text in pieces is normalised (NFC) with at most 4096"
    )


def test_without_tables(hosts, bundles, models, nasty, answers, same, python):
    """Without utf8proc, texts that need none have their answers, and any other a line that says what to do."""
    host = hosts["without utf8proc"]
    refused = set()
    for name in FORMS.values():
        facts = host.load(bundles[name])
        for key, text in nasty.items():
            answer = host.ask("tag", hexed(text))
            if "error" in answer:
                refused.add(key)
                assert re.fullmatch(
                    rf"the text holds U\+[0-9A-F]+, and to bring that into the model's form, {facts['form']}, takes "
                    r"Unicode's tables: build with utf8proc \(-lutf8proc\), or give Options::normalise",
                    answer["error"],
                )
            else:
                same(plain(answer, ""), answers[name][key])
    assert {"decomposed", "emoji", "Hangul"} <= refused
    assert not refused & {"empty", "plain", "spaces", "NUL", "words"}
    host.load(bundles["tag-rnn"])
    for text in ("h\u00e9llo 中文 한글", "\u00e9" * 9000):
        same(plain(host.ask("tag", hexed(text)), ""), python(models["tag-rnn"], text))


@pytest.mark.parametrize("build", ["sanitized", "without utf8proc"])
def test_a_normaliser_of_the_apps_own(build, hosts, bundles, models, same, python):
    """`Options::normalise` is taken where it is given; whole and in pieces."""
    host = hosts[build]
    for name in ("tag-rnn", "tag-gru"):
        host.load(bundles[name], "load-own")
        for text in ("he\u0301llo h\u00e9", "e\u0301", "plain", "中e\u0301\u0301"):
            expected = python(models[name], text)
            answer = host.ask("tag", hexed(text))
            same(plain(answer, ""), expected)
            told = whole_of(fed(host, text.encode(), list(range(1, len(text.encode()))))["answers"], "tag")
            assert (told["text"], told["labels"]) == (expected["text"], expected["labels"])
            assert told["spans"] == answer["spans"]


def test_nothing_reports_home(builds, bundles, program, tmp_path):
    """Without a word of the app's: no socket is opened and no file made."""
    trace, home = tmp_path / "trace", tmp_path / "home"
    home.mkdir()
    ran = subprocess.run(
        [program("strace"), "-f", "-o", trace, "-e", "trace=%network,%file", builds["plain"]],
        input=f"load {hexed(str(bundles['tag-gru']))}\ntag {hexed('hello')}\n",
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert len(ran.stdout.splitlines()) == 2, ran.stderr
    calls = trace.read_text()
    assert "model.onnx" in calls
    assert (
        re.findall(r"^\d+ +(?:socket|connect|mkdir|mkdirat|rename|unlink).*|.*O_CREAT.*", calls, re.MULTILINE)
        == []
    )
    assert list(home.iterdir()) == []


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_of_docs(program, ort_include, ort_library, builds, tmp_path):
    """Its program, built by its lines for CMake on the wheel's library as it says, prints what the page says."""
    (tmp_path / "main.cpp").write_text(blocks("cpp")[0], encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(blocks("cmake")[0], encoding="utf-8")
    made = CliRunner().invoke(main, ["embed", "cpp", "-o", str(tmp_path / "ohlol")])
    assert made.exit_code == 0, made.output
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", "-euc", blocks("bash")[0]],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        timeout=120,
        check=True,
    )
    where = f"-DORT_INCLUDE={ort_include}", f"-DORT_LIBRARY={tmp_path / 'lib' / 'libonnxruntime.so'}"
    for command in (["-S", tmp_path, "-B", tmp_path / "build", *where], ["--build", tmp_path / "build"]):
        ran = subprocess.run(
            [program("cmake"), *command], capture_output=True, encoding="utf-8", timeout=400, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    for words, expected in (([shipped()], (0, blocks("text")[0], "")), ([], (1, "", "usage: app BUNDLE\n"))):
        ran = subprocess.run(
            [tmp_path / "build" / "app", *words],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == expected


def test_a_library_that_is_older_than_its_headers(program, ort_include, ort_library, tmp_path):
    """It would have no functions to call: an error says so."""
    folder = shutil.copytree(ort_include, tmp_path / "include")
    file = folder / "onnxruntime_c_api.h"
    later = re.sub(r"(#define ORT_API_VERSION) \d+", r"\1 999", file.read_text(encoding="utf-8"))
    file.write_text(later, encoding="utf-8")
    (tmp_path / "main.cpp").write_text("""
        #include <iostream>
        #include "ohlol.hpp"
        int main(int, char** argv) try { ohlol::Model model(argv[1]); }
        catch (const ohlol::Error& error) { std::cout << error.what(); }
    """)
    command = [
        program("g++"),
        *STRICT,
        f"-I{EMBED}",
        "-isystem",
        folder,
        tmp_path / "main.cpp",
        "-o",
        tmp_path / "main",
    ]
    command += ["-DOHLOL_NO_UTF8PROC", "-L", ort_library, f"-Wl,-rpath,{ort_library}", "-lonnxruntime"]
    subprocess.run(command, timeout=400, check=True)
    ran = subprocess.run(
        [tmp_path / "main", shipped()], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(
        r"ONNX Runtime's library is [0-9.]+, older than the headers this was built with \(API version 999\)",
        ran.stdout,
    )


def test_another_compiler(program, ort_include, tmp_path):
    """clang++ has no warning either, in C++17 and in C++20, and the header can be in two files of a program."""
    (tmp_path / "one.cpp").write_text('#include "ohlol_verify.hpp"\n#include "ohlol.hpp"\n')
    for standard in ("-std=c++17", "-std=c++20"):
        command = [
            program("clang++"),
            *STRICT,
            standard,
            "-fsyntax-only",
            f"-I{EMBED}",
            "-isystem",
            ort_include,
        ]
        ran = subprocess.run(
            [*command, tmp_path / "one.cpp"], capture_output=True, encoding="utf-8", timeout=200, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, "")

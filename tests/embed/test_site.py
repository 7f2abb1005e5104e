"""What `ohlol web` writes, where, and of what: no browser here."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from base64 import b64decode

import pytest
from click.testing import CliRunner

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import open_bundle, shipped
from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.written import RECORD
from ohlol.cli import main
from ohlol.embed import runtime, site
from ohlol.embed.runtime import MODULE, VERSION, WASM, Runtime, find

NAMES = {*site.PAGE, site.MODEL, site.RUNTIME}
TINY = Runtime("9.9.9", b"export const a = 1;", b"\0asm")


@pytest.fixture
def package(tmp_path):
    """Write a folder as npm's package has it: `package(folder, version, name)`."""

    def write(folder, version="9.9.9", name="onnxruntime-web"):
        (folder / "dist").mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
        (folder / MODULE).write_bytes(TINY.module)
        (folder / WASM).write_bytes(TINY.wasm)
        return folder

    return write


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A working directory with nothing above it, an empty cache and no npm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here" / "below")
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    """As though the tiny files were those that were released."""
    monkeypatch.setattr(runtime, "DIGESTS", {MODULE: sha256(TINY.module), WASM: sha256(TINY.wasm)})


def scripts(folder):
    """The values in the page's two scripts."""
    found = []
    for name, value in (("model.js", "MODEL"), ("runtime.js", "RUNTIME")):
        text = (folder / name).read_text(encoding="ascii")
        found.append(json.loads(text.partition(f"const {value} = ")[2].rstrip().removesuffix(";")))
    return found


def unpacked(text):
    return gzip.decompress(b64decode(text))


# ---- The folder ----


def test_the_files_are_those_of_the_bundle(tmp_path, golden):
    """model.onnx as it was proved, a manifest of what is there, and the runtime; the same bytes each time."""
    bundle = open_bundle(shipped())
    index = site.write(bundle, tmp_path / "a", TINY, "hello")
    site.write(bundle, tmp_path / "b", TINY, "hello")
    assert index == tmp_path / "a" / "index.html"
    names = sorted(file.name for file in index.parent.iterdir())
    assert names == sorted({*NAMES, RECORD})
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    model, run = scripts(tmp_path / "a")
    assert {name: unpacked(text) for name, text in model["files"].items() if name != "manifest.json"} == {
        "model.onnx": bundle.contents["model.onnx"]
    }
    proof = {name: data for name, data in bundle.contents.items() if name.startswith("test_data_set_")}
    assert {name: unpacked(text) for name, text in model["proof"].items()} == proof
    assert model["cases"] == {"packed": 10, "all": 10}
    manifest = Manifest.from_json(unpacked(model["files"]["manifest.json"]), "the page's manifest")
    entries = bundle.manifest.files
    assert manifest == bundle.manifest.with_files({name: entries[name] for name in ("model.onnx", *proof)})
    assert (model["title"], model["examples"]) == ("hello", ["hello"])
    assert ["sha256 of model.onnx", sha256(bundle.contents["model.onnx"])] in model["facts"]
    assert (unpacked(run["module"]), unpacked(run["wasm"]), run["version"]) == (
        TINY.module,
        TINY.wasm,
        "9.9.9",
    )
    notice = (tmp_path / "a" / "runtime.js").read_text().partition("*/")[0]
    assert "MIT License" in notice
    assert "`ohlol` is ohlol.mjs and `worker` a part of its page: Apache-2.0" in notice
    assert "https://github.com/microsoft/onnxruntime/blob/v9.9.9/ThirdPartyNotices.txt" in notice


def test_the_smaller_cases_of_a_large_proof(tmp_path, monkeypatch, golden):
    """As many as there is room for, the smallest, numbered from 0 up as ohlol.mjs counts; never what fp16 answered."""
    bundle = open_bundle(shipped())
    sizes = {}
    for name, data in bundle.contents.items():
        if name.startswith("test_data_set_"):
            sizes[name.partition("/")[0]] = sizes.get(name.partition("/")[0], 0) + len(data)
    least = sorted(sizes, key=sizes.get)[:3]
    for room, packed in ((sum(sizes[case] for case in least), 3), (1, 0)):
        monkeypatch.setattr(site, "MOST_PROOF", room)
        model, _ = scripts(site.write(bundle, tmp_path / f"{room}", TINY, "hello").parent)
        assert model["cases"] == {"packed": packed, "all": 10}
        assert {name.partition("/")[0] for name in model["proof"]} == {
            f"test_data_set_{k}" for k in range(packed)
        }
        manifest = Manifest.from_json(unpacked(model["files"]["manifest.json"]), "the page's manifest")
        for name, text in model["proof"].items():
            assert sha256(unpacked(text)) == manifest.files[name].sha256
        kept = sorted(case for case in least if packed)
        expected = [
            bundle.contents[f"{case}/{file}"]
            for case in kept
            for file in ("input_0.pb", "input_1.pb", "output_0.pb", "output_1.pb", "output_2.pb")
        ]
        assert [unpacked(model["proof"][name]) for name in sorted(model["proof"])] == expected


def test_every_file_of_the_page_is_used(tmp_path):
    """What index.html asks for is there, and nothing else."""
    index = site.write(open_bundle(shipped()), tmp_path / "a", TINY, "hello")
    text = index.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) - {"data:,"} == NAMES - {"index.html"}
    ids = set(re.findall(r'\bid="([^"]*)"', text))
    code = "".join(
        (tmp_path / "a" / name).read_text(encoding="utf-8") for name in site.PAGE if name.endswith(".js")
    )
    assert set(re.findall(r'\bat\("([^"]*)"\)', code)) - ids == set()


def test_examples_are_in_a_writing_that_the_model_knows(golden):
    """Most of their letters are known; without any such text, the alphabet itself."""
    for path in (golden / "words", golden / "classify", golden / "lm"):
        manifest = open_bundle(path).manifest
        characters = manifest.alphabet.characters
        found = site._examples(manifest)
        assert found
        for text in found:
            letters = [c for c in manifest.alphabet.normalise(text) if c.isalpha()]
            assert (
                sum(c in characters for c in letters) >= site.KNOWN * len(letters) or text == characters[:24]
            )


LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz .,!?'"


@pytest.mark.parametrize(
    ("characters", "first", "others"),
    [
        (LATIN, "The rain had", 0),
        ("abcdefghijklmnopqrstuvwxyz .", "the rain had", 0),
        (LATIN + "àéèùçêñäöüß", "L’été", 2),  # French or loans: nobody can tell, so the rest is offered too
        ("".join(sorted({*LATIN, *"".join(site.SENTENCES[:3])})), "Bạn đã ăn", 2),
        ("".join(sorted({*LATIN, *"".join(site.SENTENCES)})), "Το πρωί", 10),
    ],
)
def test_examples_of_ours(characters, first, others):
    """Only texts whose letters are all known, of a model of a writing of its own only those in it, and in small letters where there
    are no others."""
    found = site._best(Alphabet(characters), site.SENTENCES)
    assert (found[0][: len(first)], len(found) - 1) == (first, others)


def test_a_page_takes_the_place_of_a_page_alone(tmp_path):
    """An empty folder or a page of ours is replaced; a stranger's folder is not, nor one that looks like ours, nor ours
    with a stranger's file or with changes."""
    bundle, folder = open_bundle(shipped()), tmp_path / "site"
    folder.mkdir()
    site.write(bundle, folder, TINY, "one")
    site.write(bundle, folder, TINY, "two")
    assert scripts(folder)[0]["title"] == "two"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OhlolError, match=r"notes\.txt was added or changed since ohlol wrote the folder"):
        site.write(bundle, folder, TINY, "three")
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    with (folder / "page.css").open("a") as style:
        style.write("/* mine */")
    with pytest.raises(OhlolError, match=r"page\.css was added or changed since ohlol wrote the folder"):
        site.write(bundle, folder, TINY, "three")
    assert (folder / "page.css").read_text().endswith("/* mine */")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "index.html", other)
    (other / "page.js").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for place, message in (
        (other, "is there already, and not as ohlol writes it"),
        (file, "is a file, expected a folder"),
    ):
        with pytest.raises(OhlolError, match=message):
            site.write(bundle, place, TINY, "three")
    assert (other / "page.js").read_text() == "mine"
    assert file.read_text() == "mine"


def test_a_page_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """What fails half-way leaves the old page, and no rest beside it."""
    bundle, folder = open_bundle(shipped()), tmp_path / "site"
    site.write(bundle, folder, TINY, "one")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site, "_runtime", fail)
    with pytest.raises(OSError, match="No space"):
        site.write(bundle, folder, TINY, "two")
    assert scripts(folder)[0]["title"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_the_command_refuses_before_it_fetches(alone, package):
    """No bundle, no place: one message and exit code 1, with nothing written."""
    there = package(alone / "there")
    (alone / "full").mkdir()
    (alone / "full" / "mine").write_text("")
    for arguments, message in (
        (["nothing", "-o", str(alone / "site"), "--runtime", str(there)], "nothing: does not exist"),
        (
            [str(shipped() / "model.onnx"), "-o", str(alone / "site")],
            "model.onnx: is not a folder: name the one that it lies in; expected a bundle",
        ),
        (["hello", "-o", str(alone / "full")], "is there already, and not as ohlol writes it"),
        (
            ["hello", "-o", ".", "--runtime", str(there)],
            ".: is the working directory, which cannot be replaced",
        ),
        (
            ["hello", "-o", str(alone / "site")],
            "npm is not installed; where there is a network, run `npm install",
        ),
    ):
        ran = CliRunner().invoke(main, ["web", *arguments])
        assert ran.exit_code == 1
        assert ran.stdout == ""
        assert message in ran.stderr
        assert not (alone / "site").exists()
    assert CliRunner().invoke(main, ["web", "hello"]).exit_code == 2


# ---- The runtime ----


def test_the_runtime_is_looked_for(alone, package):
    """Where it is named; in node_modules here or above, the nearest first; in the cache."""
    said = []
    named = package(alone / "named", "1.0.0")
    assert find(named, said.append).version == "1.0.0"
    cached = package(alone / "cache" / "ohlol" / f"onnxruntime-web-{VERSION}", "1.0.1")
    assert find(None, said.append).version == "1.0.1"
    above = package(alone / "node_modules" / "onnxruntime-web", "1.0.2")
    assert find(None, said.append).version == "1.0.2"
    here = package(alone / "here" / "below" / "node_modules" / "onnxruntime-web", "1.0.3")
    assert find(None, said.append).version == "1.0.3"
    assert find(None, said.append).wasm == TINY.wasm
    assert said[:4] == [
        f"{folder}: onnxruntime-web 1.0.{k}; the page was tested with {VERSION}"
        for k, folder in enumerate((named, cached, above, here))
    ]


def test_what_is_not_the_runtime_is_refused(alone, package):
    """No package, another one, one without the files, one of the tested version with other content."""
    empty = alone / "empty"
    empty.mkdir()
    other = package(alone / "other", name="left-pad")
    lacking = package(alone / "lacking")
    (lacking / WASM).unlink()
    changed = package(alone / "changed", VERSION)
    for folder, message in (
        (empty, "not the folder of the npm package onnxruntime-web"),
        (other, "holds the package 'left-pad', expected onnxruntime-web"),
        (lacking, "no such file"),
        (changed, f"not the file of onnxruntime-web {VERSION}: its sha256 is"),
    ):
        with pytest.raises(OhlolError, match=re.escape(message)):
            find(folder, print)


@pytest.mark.parametrize(
    "version", ["1.99.0 */ alert(1) /* ", "1.99.0-β", "\ud800", "1.99.0\n", "", "1" * 61, [1, 99], None, 1.3]
)
def test_a_version_that_is_none(version, alone, package):
    """It stands in a comment of the page and in its facts: what could leave them is one clear message, and no page."""
    folder = package(alone / "there", version)
    ran = CliRunner().invoke(main, ["web", "hello", "-o", str(alone / "site"), "--runtime", str(folder)])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert f"{folder}: its version is " in ran.stderr
    assert f", expected one like {VERSION}; " in ran.stderr
    assert not (alone / "site").exists()


def test_the_tested_runtime_is_the_released_one(node_modules):
    """The digests are those of npm's package, and nothing is said of it."""
    folder = node_modules / "node_modules" / "onnxruntime-web"
    if not folder.is_dir():
        pytest.skip("onnxruntime-web is not among the npm packages of this machine")
    said = []
    assert find(folder, said.append).version == VERSION
    assert said == []


def npm(alone, source):
    """An npm that packs `source` whatever it is asked for, and notes what that was."""
    tar, gzip_there = shutil.which("tar", path="/usr/bin:/bin"), shutil.which("gzip", path="/usr/bin:/bin")
    if tar is None or gzip_there is None:
        pytest.skip("there is no tar or no gzip for the npm of this test")
    script = alone / "bin" / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {alone}/asked\nPATH=/usr/bin:/bin exec {tar} czf "$4/x.tgz" -C {source} package\n'
    )
    script.chmod(0o755)


def test_the_runtime_is_fetched_once(alone, package, tiny):
    """By npm, into the cache, with a line that says so; the next time without npm."""
    package(alone / "registry" / "package", VERSION)
    npm(alone, alone / "registry")
    said = []
    assert find(None, said.append) == Runtime(VERSION, TINY.module, TINY.wasm)
    cache = alone / "cache" / "ohlol" / f"onnxruntime-web-{VERSION}"
    assert said == [f"fetching onnxruntime-web {VERSION} with npm, once, into {cache}"]
    assert (alone / "asked").read_text().startswith(f"pack onnxruntime-web@{VERSION} --pack-destination ")
    (alone / "bin" / "npm").unlink()
    assert find(None, said.append).wasm == TINY.wasm
    assert len(said) == 1


def test_what_npm_brings_is_checked(alone, package):
    """Other content than was released is not kept, nor is a half of it."""
    package(alone / "registry" / "package", VERSION)
    npm(alone, alone / "registry")
    with pytest.raises(
        OhlolError, match=r"has not the dist/ort\.wasm\.bundle\.min\.mjs that was released; refused"
    ):
        find(None, lambda _: None)
    assert list((alone / "cache" / "ohlol").iterdir()) == []


SAID = """\
npm warn config something
npm error code ENOTFOUND
npm error network request to there failed
"""


def test_an_npm_that_fails(alone):
    """Its own words, and what to do."""
    (alone / "bin" / "npm").write_text(
        f"#!/bin/sh\ncat <<'end' >&2\n{SAID}end\nexit 1\n".replace("cat", "/bin/cat")
    )
    (alone / "bin" / "npm").chmod(0o755)
    with pytest.raises(
        OhlolError,
        match=r"\(code ENOTFOUND; network request to there failed\); .*npm install onnxruntime-web@.*--runtime",
    ):
        find(None, lambda _: None)

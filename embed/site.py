"""The page to play with: a folder of static files that runs a bundle's model in the browser."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ohlol.artifacts import describe
from ohlol.artifacts.bundle import Bundle, Layout
from ohlol.artifacts.errors import OhlolError, printable
from ohlol.artifacts.files import new_folder
from ohlol.artifacts.manifest import Manifest
from ohlol.embed.probe import probe
from ohlol.embed.runtime import Runtime

PAGE = (
    "index.html",
    "page.css",
    "text.js",
    "strip.js",
    "answers.js",
    "heat.js",
    "page.js",
)  # copied as they are
MODEL, RUNTIME = "model.js", "runtime.js"  # what the page is of, and what runs it
NAMES = frozenset((*PAGE, MODEL, RUNTIME))
MARK = b'<meta name="generator" content="ohlol web">'  # in index.html: the folder is ours to replace
MOST_EXAMPLES = 5
KNOWN = 0.8  # share of the characters of an example that a model knows, at least

# Texts to begin with where the bundle has none of its own: those in whose writing the model was trained.
NAMES_OF_PEOPLE = (
    "Kurosawa", "O'Brien", "Müller", "Nguyễn", "Dvořák", "Fernández", "Толстой", "Παπαδόπουλος", "黒澤明", "김민수", "محمود",
)  # fmt: skip
SENTENCES = (
    "Hà Nội là thủ đô của Việt Nam. Tôi rất thích thành phố này!",
    "The rain had stopped. Nobody in the street was awake yet.",
    "Der Zug fährt über die Brücke. Es ist schon spät.",
    "L’été dernier, nous étions à la mer. Il faisait très chaud.",
    "El niño comió una manzana. ¿Dónde está su hermana?",
    "Утро было тихое. Никто ещё не проснулся.",
    "Το πρωί ήταν ήσυχο. Κανείς δεν ξύπνησε.",
    "今天天气很好。我们去公园走走吧！",
    "今日はいい天気です。公園へ行きましょう。",
    "오늘은 날씨가 좋다. 공원에 가자.",
    "आज मौसम अच्छा है। चलो बाग़ चलें।",
    "วันนี้อากาศดี ไปสวนสาธารณะกันเถอะ",
    "الطقس جميل اليوم. لنذهب إلى الحديقة.",
    "מזג האוויר נאה היום. בואו נלך לגן.",
)

LICENCE = """\
ONNX Runtime Web {version}, unchanged, packed by gzip and base64. Copyright (c) Microsoft Corporation

MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write(bundle: Bundle, site: Path, runtime: Runtime, title: str, examples: Sequence[str] = ()) -> Path:
    """Write the page of `bundle` into the folder `site`, whole or not at all; its index.html.

    `examples` are texts to begin with; without them, those that the bundle was trained on where its recipe has them, else
    some in a writing that the model knows. Raises `OhlolError` where `site` is something else than a page of ours.
    """
    check_free(site)
    with new_folder(site.resolve()) as part:
        for name in PAGE:
            (part / name).write_bytes(_source("page", name))
        (part / MODEL).write_text(_model(bundle, title, examples), encoding="ascii")
        (part / RUNTIME).write_text(_runtime(runtime), encoding="ascii")
    return site / PAGE[0]


def check_free(site: Path) -> None:
    """Raise `OhlolError` where there is anything but what `write` wrote."""
    if not os.path.lexists(site) or (site.is_dir() and not any(site.iterdir())):
        return
    index = site / PAGE[0]
    if not index.is_file() or MARK not in index.read_bytes():
        raise OhlolError(
            f"{site}: is there and is not a page that `ohlol web` wrote; name another place with -o"
        )
    for file in sorted(site.iterdir()):
        if file.name not in NAMES:
            raise OhlolError(
                f"{site}: holds {file.name}, which `ohlol web` did not write; move it away, or name another -o"
            )


def _model(bundle: Bundle, title: str, examples: Sequence[str]) -> str:
    """A script with the files that the page runs, unchanged, and what it says of them."""
    manifest, model = bundle.manifest, bundle.contents[Layout.onnx]
    names = [Layout.onnx]
    if manifest.task == "lm" and Layout.stream in bundle.contents:
        names.append(Layout.stream)  # to generate
    kept = manifest.with_files({name: manifest.files[name] for name in names})
    found = probe(model, str(bundle.path / Layout.onnx))
    told: dict[str, Any] = {
        "title": title,
        "task": manifest.task,
        "labels": manifest.labels,
        "characters": manifest.alphabet.characters,
        "words": manifest.label_scheme is not None,
        "examples": list(examples) or _examples(manifest),
        "facts": [*_facts(bundle, names), ("sha256 of model.onnx", manifest.files[Layout.onnx].sha256)],
        "probe": found and {"names": found.names, "added": base64.b64encode(found.added).decode()},
        "files": {
            Layout.manifest: _packed(kept.to_json().encode()),
            **{name: _packed(bundle.contents[name]) for name in names},
        },
    }
    return f'"use strict";\nconst MODEL = {json.dumps(told, indent=1)};\n'


def _facts(bundle: Bundle, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    shown = {name: bundle.contents[name] for name in names}
    for name, value in describe.describe_manifest(bundle.manifest, shown):
        yield name, printable(value)


@cache  # packing takes most of a second
def _runtime(runtime: Runtime) -> str:
    """A script with ONNX Runtime and the modules that the page's worker is made of."""
    told = {
        "version": runtime.version,
        "worker": _source("page", "worker.js").decode(),
        "ohlol": _source("js", "ohlol.mjs").decode(),
        "module": _packed(runtime.module),
        "wasm": _packed(runtime.wasm),
    }
    notice = LICENCE.format(version=runtime.version)
    return f'/*\n{notice}*/\n"use strict";\nconst RUNTIME = {json.dumps(told, indent=1)};\n'


def _examples(manifest: Manifest) -> list[str]:
    """Texts of the recipe, where it holds its data itself; else of ours, in the writings that the model knows best."""
    recipe = manifest.provenance.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    rows = data.get("rows") if isinstance(data, dict) else None
    if isinstance(rows, list):
        texts = dict.fromkeys(
            row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], str)
        )
        if texts:
            return list(texts)[:MOST_EXAMPLES]
    characters = frozenset(manifest.alphabet.characters)
    ours = NAMES_OF_PEOPLE if manifest.task == "classify" else SENTENCES

    def known(text: str) -> float:
        letters = [c for c in manifest.alphabet.normalise(text) if c.isalpha()]
        return sum(c in characters for c in letters) / len(letters)

    def rare(text: str) -> int:  # letters that few models know
        return len({c for c in manifest.alphabet.normalise(text) if c in characters and not c.isascii()})

    found = sorted(
        (text for text in ours if known(text) >= KNOWN), key=lambda text: (-known(text), -rare(text))
    )
    return found[:MOST_EXAMPLES] or [manifest.alphabet.characters[:24]]


def _source(*names: str) -> bytes:
    return files("ohlol.embed").joinpath(*names).read_bytes()


def _packed(data: bytes) -> str:
    """gzip, which tells a browser whether it was damaged on the way, in base64, which a script can hold."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()

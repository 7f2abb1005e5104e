"""The page to play with: a folder of static files that runs a bundle's model in the browser."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from ohlol.artifacts import describe
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import Bundle, Layout
from ohlol.artifacts.errors import printable
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.written import check_free, write_folder
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
MOST_PROOF = 2**20  # bytes of test data in a page; of a language model of many characters there is more
MOST_EXAMPLES = 5
KNOWN = 0.8  # share of the letters of an example that a model knows, at least
SPECIAL = 5  # letters of an example beyond ASCII that tell a writing; an English model knows an é or two

# Texts to begin with where the bundle has none of its own: those in whose writing the model was trained.
NAMES_OF_PEOPLE = (
    "Kurosawa", "O'Brien", "Müller", "Nguyễn", "Dvořák", "Fernández", "Толстой", "Παπαδόπουλος", "黒澤明", "김민수", "محمود",
)  # fmt: skip
SENTENCES = (
    "Hà Nội là thủ đô của Việt Nam. Tôi rất thích thành phố này!",
    "Trời đã tạnh mưa. Ngoài phố chưa có ai thức dậy.",
    "Bạn đã ăn sáng chưa? Chúng ta đi uống cà phê nhé.",
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
`ohlol` is ohlol.mjs and `worker` a part of its page: Apache-2.0, http://www.apache.org/licenses/LICENSE-2.0

`module` and `wasm` are ONNX Runtime Web {version}, unchanged, packed by gzip and base64. What it holds of third parties, and
their notices: ThirdPartyNotices.txt in https://github.com/microsoft/onnxruntime/blob/v{version}/ThirdPartyNotices.txt

ONNX Runtime Web: Copyright (c) Microsoft Corporation

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
    some in a writing that the model knows. Raises `OhlolError` where `site` is something else than a page of ours, or one that
    was changed since.
    """
    check_free(site)
    files = {name: _source("page", name) for name in PAGE}
    files[MODEL] = _model(bundle, title, examples).encode("ascii")
    files[RUNTIME] = _runtime(runtime).encode("ascii")
    write_folder(site, files, "web")
    return site / PAGE[0]


def _model(bundle: Bundle, title: str, examples: Sequence[str]) -> str:
    """A script with the files that the page runs, unchanged, and what it says of them."""
    manifest, model = bundle.manifest, bundle.contents[Layout.onnx]
    names = [Layout.onnx]
    if manifest.task == "lm" and Layout.stream in bundle.contents:
        names.append(Layout.stream)  # to generate
    cases = _cases(bundle)
    packed = _fitting(bundle, cases)
    proof = {  # ohlol.mjs counts them from 0 up
        f"{Layout.test_data.format(k)}/{name.partition('/')[2]}": name
        for k, case in enumerate(packed)
        for name in case
    }
    origins = {name: name for name in names} | proof
    kept = manifest.with_files({name: manifest.files[origin] for name, origin in origins.items()})
    found = probe(model, str(bundle.path / Layout.onnx))
    told: dict[str, Any] = {
        "title": title,
        "task": manifest.task,
        "labels": manifest.labels,
        "words": manifest.label_scheme is not None,
        "examples": list(examples) or _examples(manifest),
        "facts": [*_facts(bundle, names), ("sha256 of model.onnx", manifest.files[Layout.onnx].sha256)],
        "probe": found and {"names": found.names, "added": base64.b64encode(found.added).decode()},
        "files": {
            Layout.manifest: _packed(kept.to_json().encode()),
            **{name: _packed(bundle.contents[name]) for name in names},
        },
        "cases": {"packed": len(packed), "all": len(cases)},
        "proof": {name: _packed(bundle.contents[origin]) for name, origin in proof.items()},
    }
    return f'"use strict";\nconst MODEL = {json.dumps(told, indent=1)};\n'


def _cases(bundle: Bundle) -> list[list[str]]:
    """Of each test of the bundle, the names of its files: the texts, and what `model.onnx` must answer."""
    expected = Layout.expected[Layout.onnx]
    cases: list[list[str]] = []
    while True:
        folder = Layout.test_data.format(len(cases))
        names = [
            name for name in bundle.contents if name.startswith((f"{folder}/input_", f"{folder}/{expected}_"))
        ]
        if not names:
            return cases
        cases.append(names)


def _fitting(bundle: Bundle, cases: list[list[str]]) -> list[list[str]]:
    """The smallest of the cases, `MOST_PROOF` bytes of them, in their order."""
    sizes = [sum(len(bundle.contents[name]) for name in case) for case in cases]
    smallest = sorted(range(len(cases)), key=sizes.__getitem__)
    together = accumulate(sizes[k] for k in smallest)
    kept = {k for k, total in zip(smallest, together, strict=True) if total <= MOST_PROOF}
    return [case for k, case in enumerate(cases) if k in kept]


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
    """Texts of the recipe, where it holds its data itself; else of ours, in a writing that the model knows, or, where it
    knows none of ours, what it knows."""
    recipe = manifest.provenance.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    rows = data.get("rows") if isinstance(data, dict) else None
    if isinstance(rows, list):
        own = dict.fromkeys(
            row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], str)
        )
        if own:
            return list(own)[:MOST_EXAMPLES]
    names = manifest.task == "classify"
    for ours in (NAMES_OF_PEOPLE, SENTENCES) if names else (SENTENCES, NAMES_OF_PEOPLE):
        if found := _best(manifest.alphabet, ours):
            return found[:MOST_EXAMPLES]
    return [manifest.alphabet.characters[:24]]


def _best(alphabet: Alphabet, texts: Sequence[str]) -> list[str]:
    """Of `texts`, those whose letters a model knows, in the writing that it knows and few others do, if it does."""

    def known(text: str) -> float:
        letters = [c for c in alphabet.normalise(text) if c.isalpha()]
        return sum(c in alphabet.characters for c in letters) / len(letters)

    def special(text: str) -> int:
        return len({c for c in alphabet.normalise(text) if c in alphabet.characters and not c.isascii()})

    shares = {text: known(text) for text in (max(text, text.lower(), key=known) for text in texts)}
    best = max(shares.values())
    found = [text for text, share in shares.items() if share == best >= KNOWN]
    most = max(map(special, found), default=0)
    if most >= SPECIAL:
        found = [text for text in found if special(text) >= most / 2]
    return sorted(found, key=special, reverse=True)


def _source(*names: str) -> bytes:
    return files("ohlol.embed").joinpath(*names).read_bytes()


def _packed(data: bytes) -> str:
    """gzip, which tells a browser whether it was damaged on the way, in base64, which a script can hold."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()

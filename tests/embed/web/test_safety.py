"""What means harm, what must not leave the page, and what is broken."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode, b64encode

import pytest

from ohlol.artifacts.bundle import shipped
from ohlol.artifacts.written import RECORD

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


EVIL = "<img src=x onerror=hacked=1><script>hacked=1</script>&amp;"


def test_what_comes_from_a_person_or_a_model_is_text(web, visit, tmp_path, cells):
    """Neither a title, an example nor a text puts HTML into the page."""
    site = web("hello", tmp_path / "site", "--title", EVIL, "--example", EVIL, "--example", "hello")
    page = visit((site / "index.html").as_uri())
    assert page.text_content("h1") == EVIL
    assert page.input_value("#text") == EVIL
    assert page.locator("#examples button").all_text_contents() == [EVIL, "hello"]
    assert "".join(c for c, *_ in cells(page)) == EVIL.replace(" ", "␣")
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("globalThis.hacked") is None


def test_labels_are_text(web, visit, tmp_path, type_in, cells, changed):
    """Labels of a bundle that means harm, in the strip, its small window, the legend and the facts."""
    onnx = pytest.importorskip("onnx")
    labels = ["*/hacked=1//", EVIL, "</script><script>hacked=1</script>", "<svg/onload=hacked=1>"]

    def change(manifest, folder):
        manifest["labels"] = labels
        model = onnx.load(folder / "model.onnx")
        for entry in model.metadata_props:
            if entry.key == "ohlol.labels":
                entry.value = json.dumps(labels)
        onnx.save(model, folder / "model.onnx")
        return ["model.onnx"]

    site = web(changed(shipped(), tmp_path / "bundle", change), tmp_path / "site")
    page = visit((site / "index.html").as_uri())
    type_in(page, "hello")
    assert {below for _, below, _ in cells(page)} == set(labels[1:])  # nothing is answered by the first
    page.locator("#strip .c").first.hover()
    assert sorted(page.locator("#tip span").all_text_contents()) == sorted(labels)
    assert page.locator("#legend").text_content().count("<script>") == 2
    assert page.locator("img, svg, main script").count() == 0
    assert page.evaluate("globalThis.hacked") is None


def test_nothing_leaves_the_page(sites, browser, host, idle):
    """The page's own policy refuses every request, its worker's too, whatever a script of it might try."""
    address, asked = host
    context = browser.new_context()
    page = context.new_page()
    asked.clear()
    page.goto(f"{address}/hello/index.html")
    idle(page)
    assert sorted(asked) == sorted(
        f"/hello/{file.name}" for file in sites["hello"].iterdir() if file.name != RECORD
    )
    asked.clear()
    tried = page.evaluate(
        """async () => {
          const found = [];
          const pass = code => Promise.resolve().then(code).then(() => "went", () => "refused");
          found.push(await pass(() => fetch("model.js")));
          found.push(await pass(() => new Promise((ok, no) => { const i = new Image(); i.onload = ok; i.onerror = no; i.src = "/hello/page.css"; })));
          const source = "fetch('" + location.href + "').then(() => postMessage('went'), () => postMessage('refused'))";
          const inside = new Worker(URL.createObjectURL(new Blob([source])));
          found.push(await new Promise(done => inside.onmessage = event => done(event.data)));
          return found;
        }"""
    )
    context.close()
    assert tried == ["refused"] * 3
    assert asked == []


def test_the_policy_names_no_address(sites):
    policy = re.search(
        r'Content-Security-Policy" content="([^"]*)"', (sites["hello"] / "index.html").read_text()
    )[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    for file in ("index.html", "page.css", "page.js", "strip.js", "heat.js", "answers.js", "text.js"):
        assert not re.search(
            r"https?://|innerHTML|insertAdjacent|document\.write", (sites["hello"] / file).read_text()
        ), file


def _script(site):
    text = (site / "model.js").read_text()
    head, _, rest = text.partition("const MODEL = ")
    return head + "const MODEL = ", json.loads(rest.rstrip().removesuffix(";"))


def _changed_weight(site):
    """A weight is another one, and the page's own packing is right."""
    head, model = _script(site)
    data = bytearray(gzip.decompress(b64decode(model["files"]["model.onnx"])))
    data[len(data) // 2] ^= 1
    model["files"]["model.onnx"] = b64encode(gzip.compress(bytes(data))).decode()
    (site / "model.js").write_text(f"{head}{json.dumps(model)};")


def _damaged(site):
    text = (site / "runtime.js").read_text()
    middle = len(text) // 2
    (site / "runtime.js").write_text(
        text[:middle] + ("B" if text[middle] == "A" else "A") + text[middle + 1 :]
    )


def _cut(site):
    text = (site / "model.js").read_text()
    (site / "model.js").write_text(text[: len(text) // 2])


BROKEN = {
    "runtime.js is missing": (
        lambda site: (site / "runtime.js").unlink(),
        "A file of this page is missing or damaged",
    ),
    "model.js is cut": (_cut, "A file of this page is missing or damaged"),
    "a bit is wrong": (_damaged, "The model cannot be loaded: a file of this page is damaged"),
    "a weight is changed": (_changed_weight, "The model cannot be loaded: model.onnx: damaged or changed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_page_says_so(case, web, browser, tmp_path):
    """One message that says what to do, in place of a page that does nothing."""
    breaks, message = BROKEN[case]
    site = web("hello", tmp_path / "site")
    breaks(site)
    context = browser.new_context()
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    playwright.expect(page.locator("#trouble")).to_contain_text(message)
    assert page.get_by_role("alert").count() == 1
    assert not page.is_visible("#loading")
    context.close()


@pytest.mark.parametrize(
    "missing",
    [
        "WebAssembly.validate = () => false",
        "delete globalThis.DecompressionStream",
        "delete globalThis.WebAssembly",
    ],
)
def test_an_old_browser_is_told(missing, sites, browser):
    """Without SIMD, or what unpacks the files: which browsers will do."""
    context = browser.new_context()
    context.add_init_script(missing)
    page = context.new_page()
    page.goto((sites["hello"] / "index.html").as_uri())
    playwright.expect(page.locator("#trouble")).to_contain_text("This browser is too old to run the model")
    assert not page.is_visible("#loading")
    context.close()

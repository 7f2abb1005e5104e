"""What the page answers and writes on, by clicks and keys, from the disk and from a static host; who can use it."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner

import ohlol
from ohlol.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


MOST = 1000  # characters that the page reads


def as_typed(text):
    """What a text area makes of a text, and what the page reads of it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")[:MOST]


# ---- What it answers ----


@pytest.mark.parametrize("place", ["disk", "host"])
def test_hello_by_keys(place, sites, host, visit, idle, cells):
    """Opened by double click or from a host: each key is answered, in place, as Python answers."""
    where = (sites["hello"] / "index.html").as_uri() if place == "disk" else f"{host[0]}/hello/index.html"
    page = visit(where)
    assert page.title() == "hello · ohlol"
    assert cells(page) == [[a, b, False] for a, b in zip("hello", "ohlol", strict=True)]  # its own example
    page.focus("#text")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    idle(page)
    assert cells(page) == []
    assert not page.is_visible("#strip")
    for end in range(1, 6):
        page.keyboard.type("hello"[end - 1])
        idle(page)
        assert [below for _, below, _ in cells(page)] == list("ohlol"[:end])
    assert re.match(
        r"Answered in [\d.]+ ms; the median of the last \d+ answers is [\d.]+ ms; the first came [\d.]+ m?s after opening\.",
        page.text_content("#latency"),
    )
    playwright.expect(page.locator("#summary")).to_have_text("5 characters; labels o h l o l.")
    page.keyboard.type(" h")
    idle(page)
    assert [unknown for *_, unknown in cells(page)] == [False] * 5 + [True, False]
    assert "unknown to the model: 1 character" in page.text_content("#legend")
    page.get_by_role("button", name="hello", exact=True).click()
    idle(page)
    assert "".join(c for c, *_ in cells(page)) == "hello"


def test_nasty_texts_have_pythons_answers(kind, page_of, models, nasty, type_in, cells):
    """Marks, joined emoji, other planes, NUL, right to left, line ends: the same labels and numbers on the page."""
    page, model = page_of(kind), models[kind]
    known = frozenset(model.manifest.alphabet.characters)
    for key, given in nasty.items():
        if key == "Kirat Rai":  # which Unicode 16 composes: browsers have that, this Python may not
            continue
        text = as_typed(given)
        type_in(page, given)
        expected, found = model(text), cells(page)
        shown = expected.text[:MOST]
        assert [unknown for *_, unknown in found] == [c not in known for c in shown], key
        below = [label for _, label, _ in found]
        if model.manifest.task == "tag":
            assert below == [label or "∅" for label in expected.labels[:MOST]], key
        if model.manifest.label_scheme:
            assert page.locator("#word-list li").all_text_contents() == expected.words, key
            assert page.locator("#sentence-list li").all_text_contents() == expected.sentences, key
        if model.manifest.task == "classify" and text:
            best = list(expected.probabilities.items())
            assert page.locator("#bars span").all_text_contents()[0] == (best[0][0] or "∅"), key
            percents = [float(p.split()[0]) / 100 for p in page.locator("#bars em").all_text_contents()]
            assert np.allclose(percents, [p for _, p in best], atol=6e-4), key
        if model.manifest.task == "lm" and len(expected.text) > 1:
            assert page.text_content("#bits") == f"{expected.bits_per_character:.3f} bits per character", key


def test_surprise_of_each_character(page_of, models, type_in):
    """The bits below the characters are −log2 of what Python's model gives them, and the mean of them is its score."""
    page, model, text = page_of("lm-lstm"), models["lm-lstm"], "hello wêt"
    type_in(page, text)
    points = np.array([[ord(c) for c in text]], dtype=np.int32)
    p = model.outputs(points, np.array([len(text)], dtype=np.int32))["probabilities"][0].astype(np.float64)
    ids = model.manifest.alphabet.ids(points)[0]
    bits = -np.log2(p[np.arange(len(text) - 1), ids[1:]])
    found = page.evaluate("strip.entries.map(e => e.below)")
    assert found[0] == ""
    assert np.allclose([float(b) for b in found[1:]], bits, atol=0.051)
    best = np.argsort(-p[-1])[:5]
    names = [
        "unknown"
        if k < 2
        else {"\n": "↵", " ": "␣"}.get(
            c := model.manifest.alphabet.characters[k - 2], "◌" + c if "\u0300" <= c <= "\u036f" else c
        )
        for k in best
    ]
    assert page.locator("#candidates span").all_text_contents() == names


def test_the_labels_of_words_are_told(page_of, type_in, cells):
    """B, I, O and S mean nothing to who sees them first: the legend has words for those that are there."""
    means = {"B": "a word begins", "I": "inside a word", "O": "outside of words", "S": "a sentence begins"}
    page = page_of("words-lstm-both")
    type_in(page, "hello wotld. hen cel")
    used = {below for _, below, _ in cells(page)}
    told = page.locator("#legend li").all_text_contents()
    assert [line for line in told if line[1] == ":"] == [
        f"{label}: {meaning}" for label, meaning in means.items() if label in used
    ]
    assert len(used) > 1


def test_a_text_that_the_model_knows_nothing_of(kind, page_of, type_in):
    """An honest line; a single known letter takes it away, a space does not."""
    page = page_of(kind)
    line = page.locator("#none")
    for text, said in (("ЖЖ Ж", True), ("ЖЖhЖ", False), (" ", False), ("Ж", True), ("", False)):
        type_in(page, text)
        assert line.is_visible() == said, text


def test_a_long_text_is_cut_and_said_so(page_of, models, type_in, cells):
    """More than the page reads: no more is drawn, the page says so, and a shorter text takes the words away."""
    page = page_of("tag-gru")
    type_in(page, "h😀" * MOST)
    assert len(cells(page)) == MOST
    playwright.expect(page.locator("#cut")).to_have_text("A long text: its first 1,000 characters are read.")
    assert page.evaluate("heat.T") == MOST
    type_in(page, "ế" * MOST)  # NFD: three characters of each
    assert len(cells(page)) == MOST
    playwright.expect(page.locator("#undrawn")).to_have_text("… and 2,000 more characters")
    type_in(page, "hello")
    assert len(cells(page)) == 5
    assert not page.is_visible("#cut")
    assert not page.is_visible("#undrawn")


def test_a_long_text_for_a_model_of_many_characters(wide, web, visit, tmp_path, type_in, cells):
    """As much is read as one call takes, and the page says how much; text that grows when it is normalised is cut too. No
    more would be answered by stream.onnx, without what was expected at each place."""
    page = visit((web(wide, tmp_path / "site") / "index.html").as_uri())
    model, fits = ohlol.load(wide), 2**22 // 5002
    text = "".join(model.manifest.alphabet.characters[:900])
    line = page.locator("#cut")
    for given, read, cut in (
        (text, text[:fits], True),
        (text[:fits], text[:fits], False),
        ("ế" * 500, unicodedata.normalize("NFD", "ế" * 500)[:fits], True),
        (text[:5], text[:5], False),
    ):
        type_in(page, given)
        assert len(cells(page)) == len(read)
        assert line.is_visible() == cut
        bits = model(read).bits_per_character
        assert page.text_content("#bits") == f"{bits:.3f} bits per character"
        if cut:
            playwright.expect(line).to_have_text(f"A long text: its first {fits} characters are read.")


def test_an_answer_that_cannot_be_drawn(page_of, idle, type_in, cells):
    """The page says so and goes on: the next text is answered, and takes the words away."""
    page = page_of("lm-lstm")
    page.evaluate(
        "() => { globalThis.kept = drawAnswer; drawAnswer = () => { throw new Error('no paint'); }; }"
    )
    type_in(page, "hello")
    playwright.expect(page.locator("#trouble")).to_have_text("The answer cannot be drawn: no paint")
    page.evaluate("() => { drawAnswer = kept; }")
    type_in(page, "wet")
    assert "".join(c for c, *_ in cells(page)) == "wet"
    assert not page.is_visible("#trouble")


def test_the_newest_text_wins(page_of, idle, cells):
    """Keys that come faster than answers are not answered one by one, and the last of them is."""
    page = page_of("words-lstm-both")
    asked = page.evaluate(
        """async () => {
          let count = 0;
          const post = worker.postMessage.bind(worker);
          worker.postMessage = message => { count += 1; post(message); };
          for (let k = 1; k <= 200; k++) { at("text").value = "hello ".repeat(k % 90) + k; ask(); }
          await new Promise(resolve => setTimeout(resolve));
          worker.postMessage = post;
          return count;
        }"""
    )
    idle(page)
    assert asked <= 2
    assert "".join(c for c, *_ in cells(page)) == ("hello␣" * (200 % 90)) + "200"


def test_one_request_at_a_time(page_of, idle, type_in, cells):
    """Where the worker cannot generate, the text that was typed meanwhile is answered, then what else was asked for: never
    two at once in a worker that has one place for the outputs."""
    page = page_of("lm-lstm")
    type_in(page, "hello")
    page.evaluate(
        """() => {
          globalThis.most = globalThis.open = 0;
          globalThis.sent = [];
          const post = worker.postMessage.bind(worker), answered = worker.onmessage;
          worker.postMessage = message => {
            if (message.kind !== "stop") { sent.push(message.kind); most = Math.max(most, ++open); }
            post(message);
          };
          worker.onmessage = event => { if (event.data.kind !== "made") open -= 1; answered(event); };
          const ask = length => request = { kind: "generate", prompt: "", seed: 1, temperature: 1, length };
          ask(-1);
          next();
          wanted = "wet";
          ask(20);
          replaying = true;
        }"""
    )
    idle(page, "!generating && !replaying")
    assert page.evaluate("[most, open, ...sent]") == [1, 0, "generate", "answer", "generate", "verify"]
    assert "".join(c for c, *_ in cells(page)) == "wet"
    page.evaluate("delete worker.postMessage")


def test_an_input_method_is_left_alone(page_of, idle, type_in, cells):
    """While a text is composed its labels are there already, and the composition goes on undisturbed."""
    page = page_of("hello")
    type_in(page, "")
    page.focus("#text")
    keys = page.context.new_cdp_session(page)
    for text in ("h", "he", "hel"):
        keys.send(
            "Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)}
        )
        idle(page)
        assert "".join(c for c, *_ in cells(page)) == text
    keys.send("Input.insertText", {"text": "hell"})
    idle(page)
    assert [below for _, below, _ in cells(page)] == list("ohlo")
    assert page.input_value("#text") == "hell"


def test_right_to_left(page_of, type_in):
    """Arabic and Hebrew run from the right, and the arrow keys go where they point."""
    page = page_of("tag-gru")
    type_in(page, "\u05e9\u05dc\u05d5\u05dd")
    boxes = page.evaluate("strip.cells.map(c => c.root.getBoundingClientRect().left)")
    assert boxes == sorted(boxes, reverse=True)
    page.evaluate("strip.cells[0].root.focus()")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("strip.cells.findIndex(c => c.root === document.activeElement)") == 1


# ---- Keys, screen readers, eyes ----


def test_the_characters_by_keyboard(page_of, models, type_in):
    """One stop of the tab key, arrow keys from there; each character says its label and how sure, and tells more."""
    page = page_of("hello")
    type_in(page, "hel o")
    page.get_by_role("button", name="hello", exact=True).focus()
    page.keyboard.press("Tab")
    name = "document.activeElement.getAttribute('aria-label')"
    result = models["hello"]("hel o")
    spoken = []
    for character, label, p in zip(result.text, result.labels, result.probability, strict=True):
        said = f"{'space' if character == ' ' else character}, label {label}, {100 * p:.1f} %"
        spoken.append(said + (", unknown to the model" if character == " " else ""))
    page.keyboard.press("Home")
    found = [page.evaluate(name)]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        found.append(page.evaluate(name))
    assert found == spoken
    page.keyboard.press("ArrowRight")
    assert page.evaluate(name) == spoken[-1], "the last one stays"
    page.keyboard.press("Home")
    assert page.evaluate(name) == spoken[0]
    tip = page.locator("#tip")
    playwright.expect(tip).to_be_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    best = sorted(zip(result.probabilities[0], "ehlo", strict=True), reverse=True)
    assert tip.locator("span").all_text_contents() == [label for _, label in best]
    assert [float(p.split()[0]) for p in tip.locator("em").all_text_contents()] == pytest.approx(
        [100 * p for p, _ in best], abs=0.06
    )
    page.keyboard.press("Escape")
    playwright.expect(tip).to_be_hidden()
    stops = page.evaluate("document.querySelectorAll('#strip [tabindex=\"0\"]').length")
    assert stops == 1
    assert page.evaluate("document.querySelectorAll('#strip [aria-selected=true]').length") == 1


@pytest.mark.parametrize("name", ["hello", "words-lstm-both", "classify-gru-both", "lm-lstm"])
def test_it_fits_and_can_be_read(name, sites, visit, node_modules, picture, type_in, write_on):
    """On a phone and on a desk, dark and light: nothing runs over the edge, and axe finds nothing to complain of."""
    page = visit((sites[name] / "index.html").as_uri(), bypass_csp=True)
    type_in(page, "hello wêt. Q 中文 ſ " * 3)
    if name == "lm-lstm":
        write_on(page)
    page.locator("summary").click()
    axe = node_modules / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not among the npm packages of this machine")
    page.evaluate(axe.read_text(encoding="utf-8"))
    for width, scheme in ((375, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.mouse.move(0, 0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        picture(page, f"{name}-{scheme}-{width}")
        page.locator("#strip .c").nth(2).hover()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        found = page.evaluate(
            "axe.run({ preload: false }).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
        )
        assert found == [], (width, scheme)


def test_dark_and_light_by_hand(page_of, type_in):
    """The switch changes the page, and the heat map with it, whatever the system says."""
    page = page_of("hello")
    type_in(page, "hello")
    seen = {}
    for colours in ("dark", "light"):
        page.select_option("#theme", colours)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        pixels = page.evaluate("[...at('cells').getContext('2d').getImageData(0, 0, 5, 8).data].join()")
        seen[colours] = (sum(map(int, re.findall(r"\d+", back))), pixels)
    assert seen["dark"][0] < 150 < 600 < seen["light"][0]
    assert seen["dark"][1] != seen["light"][1]
    page.select_option("#theme", "light dark")


# ---- A language model writes on ----


def test_generating(page_of, models, idle, type_in, write_on):
    """The slider by keyboard; at 0 the text is Python's; a seed gives the same text again, another one another."""
    page = page_of("lm-lstm")
    type_in(page, "he\u0301llo ")
    page.fill("#length", "50")
    page.focus("#temperature")
    page.keyboard.press("Home")
    assert page.text_content("#temperature-shown") == "0.00"
    expected = "".join(models["lm-lstm"].generate("he\u0301llo ", length=50, temperature=0))
    assert write_on(page) == expected
    assert page.text_content("#prompt") == "he\u0301llo "
    playwright.expect(page.locator("#written-summary")).to_have_text(f"Wrote 50 characters: {expected}")
    page.focus("#temperature")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#temperature-shown") == "1.00"
    page.fill("#seed", "7")
    first, again = write_on(page), write_on(page)
    page.fill("#seed", "8")
    other = write_on(page)
    assert len(first) >= 50
    assert first == again != other
    page.click("#take")
    idle(page)
    assert page.input_value("#text") == "he\u0301llo " + other


def test_generating_is_stopped(page_of, idle, type_in, cells):
    """By its button, and by typing, which is answered at once; a length out of range is not sent."""
    page = page_of("lm-lstm")
    type_in(page, "hello")
    page.fill("#length", "5000")
    page.fill("#seed", "1")
    page.evaluate("at('go').click(); at('go').click()")
    idle(page, "!generating")
    assert 0 < len(page.text_content("#written")) < 5000
    assert page.text_content("#go") == "Write on"
    assert page.text_content("#written-summary").startswith("Stopped after")
    page.evaluate("at('go').click(); at('text').value = 'hello w'; ask()")
    idle(page, "!generating")
    assert "".join(c for c, *_ in cells(page)) == "hello␣w"
    page.fill("#length", "5001")
    before = page.text_content("#written")
    page.click("#go")
    assert page.evaluate("[busy, generating, request]") == [False, False, None]
    assert page.text_content("#written") == before
    page.fill("#length", "50")


def test_without_a_stream_nothing_is_written_on(golden, runtime, visit, tmp_path):
    """The command says so, and the page has all but that card."""
    site = tmp_path / "site"
    ran = CliRunner().invoke(main, ["web", str(golden / "lm"), "-o", str(site), "--runtime", str(runtime)])
    assert ran.exit_code == 0
    assert ran.stderr == "the bundle has no stream.onnx: the page cannot generate; export it again\n"
    page = visit((site / "index.html").as_uri())
    assert page.is_visible("#candidates")
    assert not page.is_visible("#generate")

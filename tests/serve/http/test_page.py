"""The page at `/` in a real browser, while a load generator keeps the server busy beside it."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

pytest.importorskip("uvicorn", reason="the extra `http` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from ohlol.serve.http.page import HEADERS, HTML  # noqa: E402


@pytest.fixture
def visit(browser):
    """Open a page; whatever its console says against it fails the test."""
    contexts, complaints = [], []

    def open_page(url, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or complaints.append(request.url),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # That an answer was a 4xx is no complaint: the page shows what it said.
    assert [line for line in complaints if "responded with a status of 4" not in line] == []


def box(page, model):
    return page.locator("section").filter(has=page.get_by_role("heading", name=model, exact=True))


def cells(page, model, text):
    """Type a text; the characters and labels that are drawn for it."""
    section = box(page, model)
    section.get_by_role("textbox").fill(text)
    section.locator(".c").nth(len(text) - 1).wait_for()
    playwright.expect(section.locator(".c")).to_have_count(len(text))
    return section.locator(".c > span").all_text_contents(), section.locator(".c > i").all_text_contents()


@pytest.fixture
def load(connect):
    """Keep a server busy from another thread until the test is over; how many requests were answered."""
    stop = threading.Event()
    counts, threads = [], []

    async def client(port):
        one = await connect(port)
        while not stop.is_set():
            code, _, body = await one.post("/predict", {"texts": ["hello"] * 20, "model": "hello"})
            assert (code, json.loads(body)["results"][0]["labels"]) == (200, list("ohlol"))
            counts.append(1)
        one.close()

    async def clients(port):
        await asyncio.gather(*(client(port) for _ in range(16)))

    def start(port):
        threads.append(threading.Thread(target=lambda: asyncio.run(clients(port))))
        threads[0].start()
        return counts

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)


def test_a_model_is_tried_by_hand_under_load(shared, visit, load):
    """Labels in place, words, sentences, bars and the next character, each right, while sixteen clients ask for more."""
    counts = load(shared.port)
    page = visit(shared.url)
    assert cells(page, "hello", "hello") == (list("hello"), list("ohlol"))
    assert cells(page, "hello", "hell") == (list("hell"), list("ohlo"))
    first = box(page, "hello").locator(".c").first
    assert first.get_attribute("title").startswith("h → o, 9")
    hues = [first.evaluate("cell => getComputedStyle(cell).backgroundColor")]
    hues.append(
        box(page, "hello").locator(".c").nth(1).evaluate("cell => getComputedStyle(cell).backgroundColor")
    )
    assert hues[0] != hues[1], "labels have colours"
    text = "chào bạn. xin chào New York"
    characters, _ = cells(page, "words", text)
    assert "".join(characters) == text.replace(" ", "␣")
    words = box(page, "words").locator(".words li")
    playwright.expect(words).to_have_text(["chào", "bạn", ".", "xin chào", "New York"])
    playwright.expect(box(page, "words").locator(".lines li")).to_have_text(
        ["chào bạn.", "xin chào New York"]
    )
    box(page, "classify").get_by_role("textbox").fill("Rossi")
    playwright.expect(box(page, "classify").locator(".bars span")).to_have_text(["it", "ja", "de"])
    box(page, "lm").get_by_role("textbox").fill("hello 👋 ohl")
    playwright.expect(box(page, "lm").locator("kbd")).to_have_text("o")
    playwright.expect(box(page, "lm")).to_contain_text("0.078 bits per character")
    box(page, "hello").get_by_role("textbox").fill("")
    playwright.expect(box(page, "hello").locator(".c")).to_have_count(0)
    assert counts, "the load was there"


def test_what_comes_from_a_person_or_a_model_is_text(shared, visit):
    """Neither a text, a label nor a name can put HTML into the page, and no script but its own would run."""
    page = visit(shared.url)
    page.evaluate("window.hacked = 0")
    evil = "<img src=x onerror=hacked=1><script>hacked=1</script>&amp;"
    characters, _ = cells(page, "words", evil)
    assert "".join(characters) == evil.replace(" ", "␣")
    page.route(
        "**/models", lambda route: route.fulfill(json={"models": [{**MODEL, "name": evil, "labels": [evil]}]})
    )
    answer = {"model": evil, "results": [{"text": "x", "labels": [evil], "probabilities": [0.5]}]}
    page.route("**/predict", lambda route: route.fulfill(json=answer))
    page.evaluate("start()")
    page.get_by_role("heading", name=evil).wait_for()
    page.get_by_role("textbox").fill("x")
    playwright.expect(page.locator(".c > i")).to_have_text(evil)
    playwright.expect(page.locator(".c")).to_have_class("c unsure")
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.hacked") == 0


MODEL = {
    "name": "m",
    "task": "tag",
    "labels": ["a"],
    "label_scheme": None,
    "normalisation": "NFC",
    "sha256": None,
}


def test_the_policy_allows_the_page_itself_only():
    """No address but the server's own, no inline handler, no frame around it."""
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert b"http://" not in HTML
    assert b"https://" not in HTML
    assert b"innerHTML" not in HTML


def test_a_token_is_asked_for(serve, visit):
    """The page opens without the token, asks for it, says when it is wrong, and keeps it for its tab alone."""
    server = serve("hello", environment={"OHLOL_TOKEN": "right"})
    page = visit(server.url)
    field = page.get_by_label("This server asks for a token")
    playwright.expect(field).to_be_focused()
    field.fill("wrong")
    page.get_by_role("button").click()
    playwright.expect(
        page.get_by_role("alert").filter(has_text="this is not the server's token")
    ).to_be_visible()
    field.fill("right")
    page.get_by_role("button").click()
    assert cells(page, "hello", "hello")[1] == list("ohlol")
    playwright.expect(field).to_be_hidden()
    page.reload()
    assert cells(page, "hello", "hell")[1] == list("ohlo")
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"


def test_errors_are_told_on_the_page(serve, visit):
    """A refusal stands where the answer would; so does a server that is gone."""
    server = serve("hello", "--max-characters", "10")
    page = visit(server.url)
    section = box(page, "hello")
    section.get_by_role("textbox").fill("hello hello")
    playwright.expect(section.locator(".error")).to_contain_text("--max-characters")
    assert cells(page, "hello", "hello")[1] == list("ohlol")
    playwright.expect(section.locator(".error")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(shared, visit, picture, scheme, width):
    """On a phone and on a desk, light and dark: nothing runs over the edge, and text stands out from what is behind it
    by the 4.5 to 1 that WCAG asks for."""
    page = visit(shared.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    cells(page, "hello", "hello")
    cells(page, "words", "chào bạn. xin chào New York")
    box(page, "words").locator(".lines li").first.wait_for()
    box(page, "classify").get_by_role("textbox").fill("Rossi")
    box(page, "classify").locator(".bars b").first.wait_for()
    box(page, "lm").get_by_role("textbox").fill("hello 👋 ohl")
    box(page, "lm").locator("kbd").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    faint = page.evaluate(CONTRAST)
    assert faint == []
    unnamed = page.evaluate(
        "[...document.querySelectorAll('textarea, input')].filter(x => !x.labels.length).length"
    )
    assert unnamed == 0
    picture(page, f"{scheme}-{width}")


# Every element with a text of its own whose contrast is below 4.5, by the formula of WCAG 2.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = element => element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : ["white"];
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("body *")].filter(e => own(e) && e.offsetParent && !["SCRIPT"].includes(e.tagName)).map(e => {
    const below = behind(e), [a, b] = [luminance(pixel(...below)), luminance(pixel(...below, getComputedStyle(e).color))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + ": " + e.textContent.slice(0, 20)];
  }).filter(([ratio]) => ratio < 4.5);
}"""

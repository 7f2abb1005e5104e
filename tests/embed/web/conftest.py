"""Pages of `ohlol web` in a browser, and what their tests do with them."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

import ohlol
from ohlol.artifacts.bundle import shipped
from ohlol.artifacts.files import sha256
from ohlol.cli import main

KINDS = ("tag-gru", "words-lstm-both", "classify-gru-both", "lm-lstm")
SITES = ("hello", *KINDS)
IDLE = "!busy && !frame && !request && wanted === null && first !== null"


@pytest.fixture(params=KINDS)
def kind(request):
    """Each of the bundles of random weights that there is a page of."""
    return request.param


@pytest.fixture(params=SITES)
def name(request):
    """Each of them, and `hello`."""
    return request.param


@pytest.fixture(scope="session")
def runtime(node_modules):
    folder = node_modules / "node_modules" / "onnxruntime-web"
    if not folder.is_dir():
        pytest.skip("onnxruntime-web is not among the npm packages of this machine")
    return folder


@pytest.fixture(scope="session")
def web(runtime):
    """Run `ohlol web`; it must succeed."""

    def run(bundle, site, *options):
        ran = CliRunner().invoke(
            main, ["web", str(bundle), "-o", str(site), "--runtime", str(runtime), *options]
        )
        assert (ran.exit_code, ran.stdout) == (0, f"{site / 'index.html'}\n"), ran.output
        return site

    return run


@pytest.fixture(scope="session")
def paths(bundles):
    return {"hello": shipped(), **{name: bundles[name] for name in KINDS}}


@pytest.fixture(scope="session")
def sites(web, paths, tmp_path_factory):
    """A page of each of `SITES`, its folder in one with a space in its name."""
    root = tmp_path_factory.mktemp("my sites")
    return {name: web(path, root / name, "--title", name) for name, path in paths.items()}


@pytest.fixture(scope="session")
def models(paths):
    return {name: ohlol.load(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def visit(browser, idle):
    """Open a page. What its console says against it, and each request for what is not of it, fails the tests."""
    contexts, complaints = [], []

    def open_page(url, **options):
        base = url.rpartition("/")[0] + "/"
        contexts.append(browser.new_context(**options))
        contexts[-1].on(
            "request",
            lambda request: request.url.startswith((base, "blob:")) or complaints.append(request.url),
        )
        page = contexts[-1].new_page()
        page.on(
            "console",
            lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        idle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def page_of(sites, visit):
    """The page of one of `SITES`, from the disk; the same one for all tests, which type into it anew."""
    return functools.cache(lambda name: visit((sites[name] / "index.html").as_uri()))


@pytest.fixture(scope="session")
def host(sites):
    """The address of a static host that sends nothing but files, and the paths it was asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    root = next(iter(sites.values())).parent
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def idle():
    """Wait until the page has answered all, and `condition` holds. Playwright's own way needs `eval`, which the page's
    policy does not allow."""

    def wait(page, condition="true"):
        condition = f"{IDLE} && {condition}"
        page.evaluate(
            f"""() => new Promise((done, fail) => {{
              let tries = 0;
              const look = () => ({condition}) ? done() : ++tries < 6000 ? setTimeout(look, 5) : fail(new Error(`not {condition}`));
              look();
            }})"""
        )

    return wait


@pytest.fixture(scope="session")
def type_in(idle):
    def put(page, text):
        page.fill("#text", text)
        idle(page)

    return put


@pytest.fixture(scope="session")
def cells():
    """Of each character that is drawn: itself, what stands below it, and whether it is marked as unknown."""
    return lambda page: page.evaluate(
        "[...document.querySelectorAll('#strip .c')].map(c => [c.textContent, c.dataset.below ?? '', c.classList.contains('unknown')])"
    )


@pytest.fixture(scope="session")
def write_on(idle):
    """Click the button, and what was written when it is done."""

    def click(page):
        page.click("#go")
        idle(page, "!generating")
        return page.text_content("#written")

    return click


@pytest.fixture(scope="session")
def changed():
    """A copy of a bundle with files that `change(manifest, folder)` changed and names, and a manifest that says so."""

    def copy(bundle, folder, change):
        shutil.copytree(bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in change(manifest, folder):
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"sha256": sha256(data), "bytes": len(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return copy

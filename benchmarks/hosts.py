"""What it takes to run a model in each host: sizes, the time from start to the first answer, the time of an answer.

    python benchmarks/hosts.py RUN TEXT [RUN TEXT ...] [--node FOLDER] [--rounds 7] > hosts.md

Each RUN is exported here to a bundle with model.onnx, fp16 and int8, and to C with float32 and int8 tables. Hosts take
turns, `--rounds` times, and every answer must be Python's (int8 and fp16: their own in Python). `first` is from the start
of the process to the answer (in the browser, which runs already, from the navigation to a page that this machine serves
to the answer); `steady` is one answer, text in and labels out: the median of 1,000 after 200 that are not counted, and
of the rounds the median, with the least and the most. `session.run` is that of Python with the text's arrays made
before. Nothing else may run.

Node and the browser need FOLDER/node_modules with onnxruntime-node and onnxruntime-web, and chromium with Python's
playwright; C and C++ a compiler; C++ also ONNX Runtime's headers, whose folder OHLOL_ORT_INCLUDE names, and utf8proc. A host
that is absent is left out and named.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.parse import urlencode

import numpy as np

import ohlol
import ohlol.embed
from ohlol.artifacts.alphabet import codepoints
from ohlol.export import c
from ohlol.export.bundle import export

EMBED = Path(ohlol.embed.__file__).parent
HOSTS = Path(__file__).parent / "hosts"
CAPI = Path((find_spec("onnxruntime") or sys).origin or "").parent / "capi"  # type: ignore[union-attr]
FILES = {"f32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
SOURCES = {"f32": "float32", "int8": "int8"}
COUNT = 1_000

# Starts a host with a model of a precision; the answer, seconds to it, and the seconds of one more.
Host = Callable[["Model", str], tuple[str, float, float]]


@dataclass
class Model:
    """A run, exported for every host, and the text that all of them answer."""

    name: str
    text: str
    folder: Path
    sizes: dict[str, str] = field(default_factory=dict)

    def file(self, precision: str) -> Path:
        return self.folder / "bundle" / FILES[precision]

    def source(self, precision: str) -> Path:
        return self.folder / f"c-{precision}"


def made(run: Path, text: str, folder: Path) -> Model:
    model = Model(run.name, text, folder)
    export(run, folder / "bundle", ("onnx", "fp16", "int8"))
    for precision in FILES:
        if model.file(precision).exists():
            model.sizes[f"{precision}.onnx"] = kilobytes(model.file(precision).read_bytes())
    for precision, weights in SOURCES.items():
        c.export(run, "model", weights).write(model.source(precision))
        compiled = model.source(precision) / "model.o"
        subprocess.run(
            ["cc", "-std=c99", "-O2", "-c", "model.c", "-o", compiled], cwd=compiled.parent, check=True
        )
        one_label = int(ohlol.load(folder / "bundle").manifest.task == "classify")
        program = [
            "cc",
            "-O2",
            f"-DONE_LABEL={one_label}",
            f"-I{compiled.parent}",
            HOSTS / "host.c",
            compiled,
            "-lm",
        ]
        subprocess.run([*program, "-o", compiled.parent / "host"], check=True)
        told = subprocess.run(["size", compiled], capture_output=True, text=True, check=True).stdout
        model.sizes[f"{precision} C"] = f"{int(told.splitlines()[1].split()[0]) / 1e3:,.1f} kB"
    return model


def kilobytes(content: bytes) -> str:
    return f"{len(content) / 1e3:,.1f} kB ({len(gzip.compress(content)) / 1e3:,.1f} gzip)"


def process(command: list[str | Path]) -> tuple[str, float, float]:
    begun = perf_counter()
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, encoding="utf-8") as host:
        assert host.stdout is not None
        told = host.stdout.readline()
        first = perf_counter() - begun
        return json.loads(told), first, float(host.stdout.readline())


def python(model: Model, precision: str) -> tuple[str, float, float]:
    return process([sys.executable, HOSTS / "host.py", model.file(precision), model.text, str(COUNT)])


def session_run(model: Model, precision: str) -> tuple[str, float, float]:
    """onnxruntime by itself, from arrays; there is no first answer to time, since this process runs already."""
    loaded = ohlol.load(model.file(precision))  # which sets the variable that onnxruntime looks for
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.file(precision), options)
    points = codepoints(loaded.manifest.alphabet.normalise(model.text))[None]
    feed = {"codepoints": points, "lengths": np.array([points.shape[1]], dtype=np.int32)}
    times = []
    for _ in range(200 + COUNT):
        begun = perf_counter()
        session.run(None, feed)
        times.append(perf_counter() - begun)
    return str(loaded(model.text)), float("nan"), median(times[200:])


def c_program(model: Model, precision: str) -> tuple[str, float, float]:
    return process([model.source(precision) / "host", model.text, "50"])


def node(folder: Path) -> Host:
    module = EMBED / "js" / "ohlol.mjs"

    def run(model: Model, precision: str) -> tuple[str, float, float]:
        command = ["node", HOSTS / "host.mjs", module, folder, model.file(precision), model.text, str(COUNT)]
        return process(command)

    return run


def cpp(folder: Path) -> Host:
    program, (library,) = folder / "host", CAPI.glob("libonnxruntime.so.*")
    shutil.copy(library, folder / "libonnxruntime.so.1")  # the name by which it is looked for
    include = [f"-I{EMBED / 'cpp'}", "-isystem", os.environ["OHLOL_ORT_INCLUDE"]]
    link = [folder / "libonnxruntime.so.1", f"-Wl,-rpath,{folder}", "-lutf8proc"]
    subprocess.run(
        ["c++", "-std=c++17", "-O2", *include, HOSTS / "host.cpp", *link, "-o", program], check=True
    )
    return lambda model, precision: process([program, model.file(precision), model.text, str(COUNT)])


@contextmanager
def browser(modules: Path, folder: Path) -> Iterator[Host]:
    """Pages of a server that gives the runtime, the module and the models of `folder`."""
    from playwright.sync_api import sync_playwright

    roots = {
        "runtime": modules / "onnxruntime-web" / "dist",
        "js": EMBED / "js",
        "hosts": HOSTS,
        "models": folder,
    }

    class Files(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            root, _, rest = path.split("?")[0].strip("/").partition("/")
            return str(roots.get(root, folder / "nothing") / rest)

        def log_message(self, *_: object) -> None:
            pass

    Files.extensions_map = Files.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)

        def run(model: Model, precision: str) -> tuple[str, float, float]:
            page = chromium.new_context().new_page()  # with nothing in its cache
            where = f"/models/{model.file(precision).relative_to(folder)}"
            asked = urlencode({"model": where, "text": model.text, "count": COUNT})
            page.goto(f"http://127.0.0.1:{server.server_port}/hosts/page.html?{asked}")
            page.wait_for_function("window.steady")
            first = page.evaluate("window.first")
            steady = page.evaluate("window.steady")
            page.context.close()
            return first["answer"], first["seconds"], steady

        yield run
        chromium.close()
    server.shutdown()


def table(models: list[Model], times: dict[tuple[str, str, str], tuple[list[float], list[float]]]) -> str:
    lines = [
        "| model | host | weights | size of the model | first answer | an answer, µs |",
        "|---|---|---|---|---|---|",
    ]
    for (name, host, precision), (first, steady) in times.items():
        (model,) = (one for one in models if one.name == name)
        size = model.sizes[f"{precision} C" if host == "C" else f"{precision}.onnx"]
        began = "" if np.isnan(first[0]) else f"{median(first) * 1e3:,.1f} ms"
        spread = f"{micro(median(steady))} ({micro(min(steady))} to {micro(max(steady))})"
        lines.append(f"| {name} | {host} | {precision} | {size} | {began} | {spread} |")
    return "\n".join(lines)


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f}" if seconds < 1e-5 else f"{seconds * 1e6:,.0f}"


def libraries(modules: Path | None) -> str:
    """What an app ships besides the model."""

    def size(*paths: Path) -> str:
        files = [
            file
            for path in paths
            for file in (path.rglob("*") if path.is_dir() else [path])
            if file.is_file()
        ]
        return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"

    site = CAPI.parents[1]
    rows = {
        "Python: onnxruntime, numpy, click, ohlol": size(
            *(site / name for name in ("onnxruntime", "numpy", "numpy.libs", "click")),
            EMBED.parent / "serve",
            EMBED.parent / "artifacts",
        ),
        "C++: libonnxruntime, ohlol.hpp": size(*CAPI.glob("libonnxruntime.so.*"), EMBED / "cpp"),
        "C: nothing but libm": "0 MB",
    }
    if modules:
        machine = "x64" if platform.machine() in ("x86_64", "AMD64") else "arm64"
        (binding,) = (modules / "onnxruntime-node" / "bin").glob(f"napi-*/{sys.platform}/{machine}")
        web = [
            modules / "onnxruntime-web" / "dist" / name
            for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
        ]
        packed = sum(len(gzip.compress(file.read_bytes())) for file in web) / 1e6
        rows["Node: the binding for this platform, ohlol.mjs"] = size(binding, EMBED / "js")
        rows["browser: wasm and its module, ohlol.mjs"] = f"{size(*web, EMBED / 'js')} ({packed:.1f} gzip)"
    return "\n".join(
        ["| host | ships besides the model |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN TEXT")
    parser.add_argument("--node", type=Path, default=os.environ.get("OHLOL_NODE"))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    modules = given.node.resolve() / "node_modules" if given.node else None
    with TemporaryDirectory() as kept:
        folder = Path(kept).resolve()
        pairs = zip(given.runs[::2], given.runs[1::2], strict=True)
        models = [made(Path(run), text, folder / f"{k}") for k, (run, text) in enumerate(pairs)]
        hosts: dict[str, Host] = {"Python": python, "session.run": session_run}
        if modules and shutil.which("node"):
            hosts["Node"] = node(modules)
        if os.environ.get("OHLOL_ORT_INCLUDE"):
            hosts["C++"] = cpp(folder)
        hosts["C"] = c_program
        with browser(modules, folder) if modules and shutil.which("chromium") else nothing() as page:
            if page:
                hosts["browser"] = page
            for name in {"Node", "C++", "browser"} - hosts.keys():
                print(
                    f"{name} is left out: see the beginning of this file for what it needs", file=sys.stderr
                )
            times: dict[tuple[str, str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
            for _ in range(given.rounds):
                for model in models:
                    for name, host in hosts.items():
                        for precision in SOURCES if name == "C" else FILES:
                            if name != "C" and not model.file(precision).exists():
                                continue
                            expected = str(
                                ohlol.load(model.file("f32" if name == "C" else precision))(model.text)
                            )
                            told, first, steady = host(model, precision)
                            if told != expected:
                                raise SystemExit(
                                    f"{model.name} in {name}, {precision}: {told!r}, Python {expected!r}"
                                )
                            times[model.name, name, precision][0].append(first)
                            times[model.name, name, precision][1].append(steady)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {version('onnxruntime')}, {given.rounds} rounds\n"
    )
    print(libraries(modules))
    print()
    print(table(models, times))


@contextmanager
def nothing() -> Iterator[None]:
    yield None


if __name__ == "__main__":
    main()

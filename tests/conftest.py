"""Shared by all tests. Nothing here imports torch: tests/serve and tests/artifacts run without it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, on networks too small for threads

# Tests never look at the clock; in CI the examples are the same at every run.
settings.register_profile("ohlol", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ohlol")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Bundles of every released format version; they must load and answer the same for ever."""
    return ROOT / "tests" / "golden" / "v1"


@pytest.fixture(scope="session")
def recipes() -> Path:
    return ROOT / "recipes"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; where it is absent the test is skipped."""
    folder = os.environ.get("OHLOL_DATA")
    if not folder:
        pytest.skip("the variable OHLOL_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(
    scope="module"
)  # no longer: it keeps an event loop running, which tests of servers cannot have
def browser():
    """Chromium without a window; where it or playwright is absent the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = (
        os.environ.get("OHLOL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    if chromium is None:
        pytest.skip("no chromium on this machine: install Debian's package, or name one in OHLOL_CHROMIUM")
    flags = [
        *(
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
        ),
        *("--disable-component-update", "--disable-sync"),
    ]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def picture() -> Callable[[Any, str], None]:
    """Keep a picture of a page, for a person to look at, in the folder that OHLOL_SCREENSHOTS names, if it does."""
    folder = os.environ.get("OHLOL_SCREENSHOTS")

    def keep(page: Any, name: str) -> None:
        if folder:
            page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    return keep


# One version of each, so that what the tests saw is what docs/results.md names.
NODE_PACKAGES = (
    "onnxruntime-node@1.30.0",
    "onnxruntime-web@1.30.0",
    "playwright-core@1.64.1",
    "typescript@5.9.3",
    "axe-core@4.14.1",
)


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Where a program lies that not every machine has; where it is absent the test is skipped."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`shared_folder(name, make)`: a folder that `make` fills, once for all the processes that tests run in."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], None], where: Path | None = None) -> Path:
        from filelock import FileLock  # late: tests/serve runs without it

        folder = where or base / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def node_modules(program, shared_folder) -> Path:
    """A folder whose `node_modules` has `NODE_PACKAGES`, from the npm registry.

    It is made once: in the folder that the variable `OHLOL_NODE` names, else in a temporary one. Without node, npm
    or the packages, the test is skipped.
    """
    program("node")
    npm = program("npm")

    def install(folder: Path) -> None:
        # Only the CPU's library is needed, and it is in the package: its script would fetch that for CUDA.
        ran = subprocess.run(
            [
                npm,
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
                folder,
                *NODE_PACKAGES,
            ],
            env=os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
            check=False,
        )
        if ran.returncode:
            pytest.skip(f"npm cannot install {', '.join(NODE_PACKAGES)}: {ran.stderr.strip()[-300:]}")

    named = os.environ.get("OHLOL_NODE")
    return shared_folder("npm", install, Path(named) if named else None)

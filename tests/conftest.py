"""Shared by all tests. Nothing here imports torch: tests/serve and tests/artifacts run without it."""

from __future__ import annotations

import os
from pathlib import Path

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

"""`ohlol bench`: every file, every size, side by side."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from ohlol.artifacts.bundle import Layout, open_bundle
from ohlol.cli import main
from ohlol.serve import bench
from ohlol.serve.runtimes import installed


def test_every_file_is_timed_and_compared(golden):
    """A line for each size and file that takes whole texts; its difference from model.onnx is beside its speed."""
    bundle = open_bundle(golden / "files")
    timings = bench.bench(bundle, ["onnxruntime"], sizes=((1, 1), (3, 5)))
    files = [Layout.onnx, Layout.batch, Layout.half, Layout.int8]
    assert [(t.rows, t.characters, t.file) for t in timings] == [
        (B, T, f) for B, T in ((1, 1), (3, 5)) for f in files
    ]
    by_file = {t.file: t for t in timings[4:]}
    assert by_file[Layout.onnx].difference == 0
    assert 0 < by_file[Layout.batch].difference < 1e-5
    assert 1e-6 < by_file[Layout.half].difference < 1e-2
    assert 1e-5 < by_file[Layout.int8].difference < 0.2
    assert all(0 < t.least <= t.seconds <= t.most for t in timings)


def test_the_command(golden):
    """The table for a person; `--peers` adds the other runtimes that are installed."""
    lines = CliRunner().invoke(main, ["bench", "hello"]).stdout.splitlines()
    assert lines[0].split() == [
        "batch",
        "file",
        "runtime",
        "ms",
        "least–most",
        "characters/s",
        "ratio",
        "difference",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["1×1", "1×64", "32×64", "256×64"]
    if not find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    lines = CliRunner().invoke(main, ["bench", "hello", "--peers"]).stdout.splitlines()
    assert [line.split()[2] for line in lines[1:3]] == installed() == ["onnxruntime", "openvino"]

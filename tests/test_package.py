"""The wheel, as a user gets it: its files, and its answers where neither torch nor onnx is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {
    "ohlol": "ohlol",
    **{stage: f"ohlol/{stage}" for stage in ("artifacts", "train", "export", "serve", "embed")},
}


def outside(*command, cwd, **options):
    """Run a command that sees nothing of this checkout or of this environment."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "OHLOL_DATA")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what is in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    skip = shutil.ignore_patterns(
        ".git", ".venv", "runs", "__pycache__", "*.egg-info", "build", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, copy, ignore=skip, symlinks=True)
    outside(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, copy, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_the_tree_holds(wheel):
    """Every module and every file of the shipped bundle, under `ohlol/` and nowhere else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{inside}/{file.relative_to(ROOT / stage).as_posix()}"
        for stage, inside in STAGES.items()
        for file in (ROOT / stage).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment of its own with the wheel and the base dependencies, from the pinned versions."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    outside(*pip, wheel, cwd=folder)
    return folder, python, pip


def test_the_base_install_answers(clean):
    """`ohlol predict hello hello` prints `ohlol`; torch and onnx are not there, and training says what it needs."""
    folder, python, _ = clean
    command = python.parent / "ohlol"
    assert outside(command, "predict", "hello", "hello", cwd=folder) == "ohlol\n"
    assert outside(command, "verify", "hello", cwd=folder).count(" ok\n") == 3  # model, stream, text
    found = "import importlib.util as u; print([m for m in ('torch', 'onnx', 'pydantic') if u.find_spec(m)])"
    assert outside(python, "-c", found, cwd=folder) == "[]\n"
    use = "import ohlol; model = ohlol.load('hello'); print(model('hello'), ohlol.__file__)"
    answer, _, where = outside(python, "-c", use, cwd=folder).partition(" ")
    assert answer == "ohlol"
    assert where.startswith(str(folder))
    training = subprocess.run([command, "demo"], cwd=folder, capture_output=True, text=True, check=False)
    assert training.returncode == 1
    assert "pip install 'ohlol[train]'" in training.stderr
    assert "Traceback" not in training.stderr


def test_the_serving_tests_pass_without_torch(clean):
    """The tests of serve and artifacts, against the wheel, where there is no torch at all.

    Those that only try more inputs on the same code have been run once already.
    """
    folder, python, pip = clean
    outside(*pip, "pytest", "hypothesis", cwd=folder)
    shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    serving = (folder / "tests" / "serve", folder / "tests" / "artifacts")
    again = [f"--ignore-glob=*test_{name}.py" for name in ("fuzz_*", "broken", "never", "jobs", "traced")]
    told = outside(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *again, *serving, cwd=folder)
    assert " passed" in told
    assert "failed" not in told

"""The commands that train, export and look, as a person types them."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from ohlol.cli import main

ONNX_RUNTIMES = [name for name in ("onnxruntime", "onnx", "openvino") if find_spec(name)]

RECIPE = """
[task]
kind = "classify"
[data]
format = "tsv"
train = "t.tsv"
split = [0.5, 0.25, 0.25]
[model]
hidden_size = 4
embedding_size = 4
[train]
epochs = 2
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A recipe beside its data, trained and exported."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "r.toml").write_text(RECIPE)
    (folder / "t.tsv").write_text(
        "".join(f"{'ab' * n}{n % 7}\t{'even' if n % 2 else 'odd'}\n" for n in range(40))
    )
    result = run("train", folder / "r.toml", "-o", folder / "run")
    assert "20 train, 10 dev, 10 test rows" in result.stderr
    assert "dev accuracy" in result.stderr
    run("export", folder / "run")
    return folder


def test_figures_on_data_that_has_changed_are_told_apart(project, tmp_path):
    """Rows that were trained on may be measured then: run, bundle and report say what has changed."""
    for name in ("r.toml", "t.tsv"):
        shutil.copy(project / name, tmp_path)
    shutil.copytree(project / "run", tmp_path / "run")
    assert "note" not in run("evaluate", tmp_path / "run", "--data", tmp_path).stderr
    (tmp_path / "t.tsv").write_text((tmp_path / "t.tsv").read_text().replace("even", "odd"))
    for command in (["evaluate", "run"], ["evaluate", "run/bundle"], ["report", "run"]):
        result = run(command[0], tmp_path / command[1], "--data", tmp_path)
        assert "note: the train data is another: it had " in result.stderr


def test_demo():
    """`hello` is trained before one's eyes, exported, proved and answered; the answer alone is on stdout."""
    result = run("demo")
    assert result.stdout == "hello → ohlol\n"
    epochs = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 20
    assert epochs[-1].startswith("epoch 20/20  hello -> ohlol  loss 0.0")
    table = [line for line in result.stderr.splitlines() if line.endswith("  ok")]
    files = Counter(line.split("  ")[0] for line in table)  # a line for each runtime
    graphs = len(ONNX_RUNTIMES)
    expected = {"(PyTorch, float32)": 1, "model.torchscript.pt": 1, "text.onnx": 1}
    assert files == expected | {"model.onnx": graphs, "stream.onnx": graphs}


def test_demo_keeps_its_files_where_told(tmp_path):
    """With -o the run and the bundle stay, and answer."""
    run("demo", "-o", tmp_path)
    assert run("predict", tmp_path / "bundle", "hello").stdout == "ohlol\n"
    assert "epochs" in run("inspect", tmp_path / "run").stdout


def test_the_run_and_its_bundle_have_the_same_metrics(project):
    """The exported file is as good as the checkpoint: same split, same figures, and those that training told."""
    results = json.loads((project / "run" / "results.json").read_text())
    for split in ("dev", "test"):
        by_run = run("evaluate", project / "run", "--split", split).stdout
        by_bundle = run("evaluate", project / "run" / "bundle", "--split", split, "--data", project).stdout
        assert by_run == by_bundle
        assert f"accuracy              {results[split]['accuracy']:.4f}" in by_run


def test_inspect(project, golden):
    """A run, a bundle and a single file say what they are."""
    told = run("inspect", project / "run").stdout
    assert "layers.0.0.weight_hh_l0" in told
    assert "(16, 4)" in told
    told = run("inspect", project / "run" / "bundle").stdout
    assert "logits (batch, classes=2) float32" in told or "logits (batch, 2) float32" in told
    assert "model.onnx" in told
    alone = run("inspect", golden / "words" / "model.onnx").stdout
    assert "4: B, I, O, S" in alone
    assert "does not exist" in run("inspect", project / "nothing", code=1).stderr


def test_every_mistake_of_a_recipe_at_once(project):
    """Exit 1 and a list, before any data is read."""
    wrong = run(
        "train",
        project / "r.toml",
        "--set",
        "model.cel=lstm",
        "--set",
        "train.epochs=-1",
        "-o",
        project / "x",
        code=1,
    )
    assert "2 mistakes" in wrong.stderr
    assert "did you mean `cell`?" in wrong.stderr
    assert not (project / "x").exists()


def test_mistakes_with_paths(project, tmp_path):
    """Missing recipes, data and runs are named; an existing run is not overwritten."""
    assert "no such file" in run("train", tmp_path / "none.toml", code=1).stderr
    shutil.copy(project / "r.toml", tmp_path)
    assert "OHLOL_DATA" in run("train", tmp_path / "r.toml", "-o", tmp_path / "run", code=1).stderr
    assert "--resume" in run("train", project / "r.toml", "-o", project / "run", code=1).stderr
    assert "missing" in run("export", tmp_path / "none", code=1).stderr
    assert "--formats" in run("export", project / "run", "--formats", "onx", code=2).stderr
    assert "does not exist" in run("evaluate", tmp_path / "none", code=1).stderr
    (tmp_path / "file").write_text("")
    assert "file" in run("train", project / "r.toml", "-o", tmp_path / "file" / "run", code=1).stderr


def test_data_elsewhere(project, tmp_path, monkeypatch):
    """Data is found by --data, else beside the recipe, else in OHLOL_DATA."""
    shutil.copy(project / "r.toml", tmp_path)
    run("train", tmp_path / "r.toml", "-o", tmp_path / "a", "--data", project)
    monkeypatch.setenv("OHLOL_DATA", str(project))
    run("train", tmp_path / "r.toml", "-o", tmp_path / "b")
    assert (tmp_path / "a" / "best" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "best" / "model.safetensors"
    ).read_bytes()


def test_a_run_stopped_in_its_first_epoch_is_not_exported(project, tmp_path):
    """A proof says that the files answer as the network does; nothing says that an untrained one is any use."""
    run("train", project / "r.toml", "-o", tmp_path / "run")
    state = tmp_path / "run" / "last" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "epoch": 0, "best_epoch": 0}))
    assert "nothing to export" in run("export", tmp_path / "run", code=1).stderr
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_run_has_a_report(project, tmp_path):
    """Training leaves it and names it; `ohlol report` writes it anew, on any split there is."""
    told = run("train", project / "r.toml", "-o", tmp_path / "run").stderr
    page = tmp_path / "run" / "report.html"
    assert f"{page} shows it" in told
    assert "On <b>dev</b>, 10 rows" in page.read_text(encoding="utf-8")
    left = page.read_bytes()
    page.unlink()
    assert str(page) in run("report", tmp_path / "run").stderr
    assert page.read_bytes() == left
    run("report", tmp_path / "run", "--split", "train")
    assert "On <b>train</b>, 20 rows" in page.read_text(encoding="utf-8")
    assert "missing" in run("report", tmp_path, code=1).stderr


def test_runs_side_by_side(project, tmp_path):
    """Text and JSON say the same; a bundle has as many parameters as the run it is of."""
    run("train", project / "r.toml", "-o", tmp_path / "b", "--set", "model.cell=gru")
    paths = [project / "run", project / "run" / "bundle", tmp_path / "b"]
    told = json.loads(run("compare", *paths, "--format", "json").stdout)
    by_run, by_bundle, other = told["runs"]
    assert by_run["parameters"] == by_bundle["parameters"] > other["parameters"]
    assert by_run["metrics"] == by_bundle["metrics"]
    assert told["differences"] == {"model.cell": ["lstm", "lstm", "gru"]}
    table = run("compare", *paths).stdout
    assert f"{other['metrics']['test']['accuracy']:.4f}" in table
    assert "missing" in run("compare", project / "run", tmp_path, code=1).stderr


def test_tensorboard(project, tmp_path, monkeypatch):
    """Events lie in the run, which is resumed all the same; without the package, nothing is begun."""
    arguments = ("train", project / "r.toml", "-o", tmp_path / "run", "--tensorboard")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
            patch.delitem(sys.modules, name)
        assert "pip install 'ohlol[tensorboard]'" in run(*arguments, code=1).stderr
    assert not (tmp_path / "run").exists()
    run(*arguments)
    run(*arguments, "--resume", "--set", "train.epochs=3")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2

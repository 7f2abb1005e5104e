"""`ohlol init`: what is guessed from a look at the data, what is said, and that the recipe trains."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohlol.artifacts.errors import DataError
from ohlol.cli import main
from ohlol.train import guess as module
from ohlol.train.data import load
from ohlol.train.guess import guess
from ohlol.train.recipe import Recipe

WORDS = [f"{'ab' * (n % 5 + 1)}c{n}" for n in range(60)]
KINDS = ["even", "odd"]
UPPER = [word.upper().replace("B", "A") for word in WORDS]  # a label for each character


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tsv(*columns: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def many(number: int) -> str:
    """As many different rows of a `tag` task."""
    return "".join(f"{n:05} abc\t{n:05}OBII\n" for n in range(number))


def csv(header: str, *columns: list[str]) -> str:
    return "\n".join([header, *(",".join(row) for row in zip(*columns, strict=True))]) + "\n"


def jsonl(**columns: list[Any]) -> str:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows)


def conllu(number: int, mark: str = "", every: int = 1) -> str:
    token = "\t_" * 8 + "\n"
    sentence = "1\tone" + token + "2\ttwo" + token + "\n"
    return "".join((f"{mark}\n" if mark and n % every == 0 else "") + sentence for n in range(number))


def alternating() -> list[str]:
    return [KINDS[n % 2] for n in range(60)]


def keys(path: Path, **options: Any) -> dict[str, Any]:
    """What is guessed, by key."""
    return {key.name: key.value for key in guess(path, path.parent, **options).keys}


# file, content, what must be guessed of it
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tag, tsv": ("t.tsv", tsv(WORDS, UPPER), {"task.kind": "tag", "data.text": 0, "data.label": 1}),
    "tag, label first": (
        "t.tsv",
        tsv(["X" * len(w) for w in WORDS], WORDS),
        {"data.text": 1, "data.label": 0},
    ),
    "tag, spaces": (
        "t.tsv",
        tsv(WORDS, [" ".join(label) for label in UPPER]),
        {"task.kind": "tag", "data.label_separator": " "},
    ),
    "tag, third column": (
        "t.tsv",
        tsv([str(n) for n in range(60)], ["X" * len(w) for w in WORDS], WORDS),
        {"task.kind": "tag", "data.text": 2, "data.label": 1},
    ),
    "tag, list": (
        "t.jsonl",
        jsonl(id=list(range(60)), it=WORDS, tags=[["B"] + ["I"] * (len(w) - 1) for w in WORDS]),
        {"task.kind": "tag", "data.text": "it", "data.label": "tags"},
    ),
    "tag, not normalised": (
        "t.tsv",
        tsv([w + "e\u0301" for w in WORDS], [label + "EA" for label in UPPER]),
        {"task.kind": "tag", "data.normalisation": "none"},
    ),
    "tag, conllu": ("t.conllu", conllu(30), {"task.kind": "tag", "data.row": "sentence"}),
    "classify, tsv": ("t.tsv", tsv(WORDS, alternating()), {"task.kind": "classify", "data.label": 1}),
    "classify, csv": (
        "t.csv",
        csv("kind,id,it", alternating(), [str(n) for n in range(60)], [f'"{w}, {w}"' for w in WORDS]),
        {"task.kind": "classify", "data.text": "it", "data.label": "kind"},
    ),
    "classify, jsonl": (
        "t.ndjson",
        jsonl(it=WORDS, kind=alternating()),
        {"task.kind": "classify", "data.text": "it", "data.label": "kind"},
    ),
    "classify, one length": ("t.tsv", tsv(["abcd"] * 60, ["good", "evil"] * 30), {"task.kind": "classify"}),
    "classify, labels of that length": (
        "t.tsv",
        tsv([str(n) for n in range(1000, 1060)], ["good", "evil"] * 30),
        {"task.kind": "classify", "data.text": 0, "data.label": 1},
    ),
    "lm, tsv": ("t.tsv", tsv(WORDS), {"task.kind": "lm", "data.format": "tsv"}),
    "lm, csv": ("t.csv", csv("it", WORDS), {"task.kind": "lm", "data.text": "it"}),
    "lm, text": ("t.txt", "the quick brown fox\n" * 200, {"task.kind": "lm", "data.format": "text"}),
    "by content, tsv": ("t.txt", tsv(WORDS, UPPER), {"data.format": "tsv", "task.kind": "tag"}),
    "by content, jsonl": ("t", jsonl(text=WORDS), {"data.format": "jsonl", "task.kind": "lm"}),
    "by content, conllu": ("t.conll", conllu(30), {"data.format": "conllu"}),
    "a few rows": ("t.tsv", tsv(WORDS[:3], UPPER[:3]), {"task.kind": "tag", "data.split": None}),
    "a label that is rare": (
        "t.tsv",
        tsv(WORDS, [*alternating()[:57], "one", "none", "none"]),
        {"data.labels": ["even", "none", "odd", "one"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_guessed_trains(case: str, tmp_path: Path) -> None:
    """Task, format and columns of a file are found, and the recipe trains as it stands."""
    name, content, expected = CASES[case]
    write(tmp_path / name, content)
    said = run("init", tmp_path / name, "-o", tmp_path / "recipe.toml").stderr
    assert f"next: ohlol train {tmp_path / 'recipe.toml'}" in said
    raw = tomllib.loads((tmp_path / "recipe.toml").read_text())
    found = {f"{table}.{key}": value for table, values in raw.items() for key, value in values.items()}
    assert expected.items() <= (dict.fromkeys(expected) | found).items()
    assert all(f"{key} = " in said for key in found)  # each guess is said
    assert raw["model"]["bidirectional"] == (raw["task"]["kind"] != "lm")
    small = ("--set", "train.epochs=1", "--set", "model.hidden_size=4")
    run("train", tmp_path / "recipe.toml", "-o", tmp_path / "run", *small)


def test_a_folder_of_texts_trains(tmp_path: Path) -> None:
    """A *.txt file for each label, from a recipe in another folder: the path is relative to it."""
    for kind in KINDS:
        write(tmp_path / "data" / f"{kind}.txt", "\n".join([*WORDS, WORDS[0]]))
    recipe = write(tmp_path / "elsewhere" / "here", "").with_name("recipe.toml")
    run("init", tmp_path / "data", "-o", recipe)
    told = tomllib.loads(recipe.read_text())["data"]
    assert told == {"format": "folder", "train": "../data", "deduplicate": True, "split": [0.8, 0.1, 0.1]}
    assert "2 of 122 rows" in recipe.read_text()
    run("train", recipe, "-o", tmp_path / "run", "--set", "train.epochs=1", "--set", "model.hidden_size=4")


def test_folders_beside_it(tmp_path: Path) -> None:
    """The folder `dev` beside the folder `train`."""
    for part in ("train", "dev"):
        for kind in KINDS:
            write(tmp_path / part / f"{kind}.txt", "\n".join(WORDS))
    found = keys(tmp_path / "train")
    assert (found["data.train"], found["data.dev"], found.get("data.split")) == ("train", "dev", None)


@pytest.mark.parametrize(
    ("train", "dev", "test"),
    [
        ("train.tsv", "dev.tsv", "test.tsv"),
        ("train.tsv", "valid.tsv", None),
        ("my_train.tsv", "my_validation.tsv", "my_test.tsv"),
        ("xx-ud-train.tsv", "xx-ud-dev.tsv", "xx-ud-test.tsv"),
        ("train.tsv", None, "test.tsv"),
        ("trains.tsv", None, None),
    ],
)
def test_files_beside_it(tmp_path: Path, train: str, dev: str | None, test: str | None) -> None:
    """dev and test files are found by their names and take the place of a split; their labels are listed."""
    write(tmp_path / train, tsv(WORDS, alternating()))
    write(tmp_path / "devs.tsv", "")
    for name in filter(None, (dev, test)):
        write(tmp_path / name, tsv(["it"], ["neither"]))
    found = keys(tmp_path / train)
    assert (found.get("data.dev"), found.get("data.test")) == (dev, test)
    assert ("data.split" in found) == (not dev and not test)
    assert ("train.early_stopping" in found) == bool(dev or not test)
    assert found.get("data.labels") == (["even", "neither", "odd"] if dev or test else None)
    run("init", tmp_path / train, "-o", tmp_path / "r.toml")
    load(Recipe.load(tmp_path / "r.toml"), tmp_path)


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (conllu(90, "# newpar", every=3), "paragraph"),
        (conllu(90, "# newdoc id = x", every=3), "document"),
        (conllu(90, "# newdoc\n# newpar", every=3), "paragraph"),
        (conllu(90, "# newdoc", every=90), "sentence"),
    ],
)
def test_rows_of_a_treebank(tmp_path: Path, content: str, row: str) -> None:
    """Paragraphs or documents where enough of them are marked, else sentences."""
    assert keys(write(tmp_path / "t.conllu", content))["data.row"] == row


def test_rows_that_do_not_fit_are_said(tmp_path: Path) -> None:
    """A tag file with a few mistakes is still one, and the mistakes are counted and shown."""
    found = guess(write(tmp_path / "t.tsv", tsv([*WORDS, "abc", "d"], [*UPPER, "x", "xy"])), tmp_path)
    assert found.keys[0].value == "tag"
    assert found.notes == [
        "2 of 62 rows do not fit, and `ohlol train` reports them as mistakes: mend or remove them. "
        "The first: 't.tsv:61: 3 characters but 1 labels'"
    ]


def test_a_header_is_not_one_of_the_mistakes(tmp_path: Path) -> None:
    """Each is told by itself."""
    content = "text\tlabel\n" + tsv([*WORDS, "abc"], [*UPPER, "x"])
    header, mistake = guess(write(tmp_path / "t.tsv", content), tmp_path).notes
    assert "header" in header
    assert mistake.startswith("1 of 61 rows")


@pytest.mark.parametrize(
    ("first", "columns", "task"),
    [
        ("text\tlabel", (WORDS, alternating()), "classify"),
        ("surname\tnation", (WORDS, alternating()), "classify"),
        ("text\ttags", (WORDS[:4], UPPER[:4]), "tag"),
        ("surname\tmarks", (WORDS, UPPER), "tag"),
        ("text", (WORDS,), "lm"),
    ],
)
def test_the_header_of_a_tsv_is_said(tmp_path: Path, first: str, columns: Any, task: str) -> None:
    """TSV has no header: one that looks like it is told and not counted, and an ordinary row is not told."""
    found = guess(write(tmp_path / "t.tsv", f"{first}\n{tsv(*columns)}"), tmp_path)
    assert found.keys[0].value == task
    assert [note for note in found.notes if "header" in note and "delete it" in note] == found.notes[:1] != []
    assert not any("do not fit" in note for note in found.notes)
    without = guess(write(tmp_path / "t.tsv", tsv(*columns)), tmp_path)
    assert not any("header" in note for note in without.notes)
    assert without.keys == found.keys


@pytest.mark.parametrize(
    ("name", "content", "task", "expected"),
    [
        ("t.txt", "", None, "empty"),
        ("t.txt", " \n\u3000\n", None, "empty"),
        ("t.txt", b"ab\0c\n", None, "binary"),
        ("t.txt", b"ab\nc\xe9d\n", None, ":2: not UTF-8: byte 0xe9"),
        ("t.txt", "running text\n", "tag", 'format is "text"'),
        ("t.json", '[\n{"text": "a"}\n]\n', None, "not one object a line"),
        ("t.jsonl", "[1]\n", None, "no line is a JSON object"),
        ("t.jsonl", '{"text": "a", "label": 1}\n', None, "'label' is 1; expected a string"),
        ("t.jsonl", '{"n": 1}\n', None, "found as columns of strings: none"),
        ("t.csv", "text;label\na;b\n", None, "expected commas"),
        ("t.csv", "text,label\n", None, "no rows below the header"),
        ("t.csv", csv("good film,even", WORDS, alternating()), None, "looks like an example"),
        ("t.csv", "text,label\na\rb,c\n", None, "new-line"),
        (
            "t.tsv",
            tsv(WORDS),
            "classify",
            "expected a text and a label, found as columns of strings: column 0",
        ),
        ("t.tsv", "text\tlabel\n", None, "no rows below the header"),
        ("t.conllu", "no treebank\n", None, "CoNLL-U has 10"),
    ],
)
def test_what_cannot_be_guessed(
    tmp_path: Path, name: str, content: str | bytes, task: str | None, expected: str
) -> None:
    """One message that names the file, exit code 1, and no recipe."""
    path = write(tmp_path / name, content)
    error = run("init", path, "-o", tmp_path / "r.toml", *(["--task", task] if task else []), code=1).stderr
    assert error.startswith(f"Error: {path}")
    assert expected in error
    assert not (tmp_path / "r.toml").exists()


def test_folders_that_cannot_be_guessed(tmp_path: Path) -> None:
    """No texts, one text alone, or data files among them; and a path where nothing is."""
    assert "no such file or folder" in run("init", tmp_path / "none", code=1).stderr
    assert "found none" in run("init", tmp_path, code=1).stderr
    write(tmp_path / "a.txt", "a\n")
    assert "found only 'a.txt'" in run("init", tmp_path, code=1).stderr
    write(tmp_path / "b.txt", "b\n")
    assert keys(tmp_path)["data.format"] == "folder"
    write(tmp_path / "x.tsv", "b\n")
    assert f"such as {tmp_path / 'x.tsv'}" in run("init", tmp_path, code=1).stderr


def test_an_existing_recipe_stays(tmp_path: Path) -> None:
    """It is refused before the data is looked at; `-` is stdout, with nothing but the recipe on it."""
    recipe = write(tmp_path / "recipe.toml", "mine")
    data = write(tmp_path / "t.tsv", tsv(WORDS, UPPER))
    assert "stays as it is" in run("init", data, "-o", recipe, code=1).stderr
    assert recipe.read_text() == "mine"
    printed = run("init", data, "-o", "-").stdout
    assert Recipe.parse(tomllib.loads(printed), "-").task.kind == "tag"


def test_the_task_that_is_asked_for(tmp_path: Path) -> None:
    """--task goes before the guess."""
    path = write(tmp_path / "t.tsv", tsv(WORDS, alternating()))
    assert [keys(path, task=task)["task.kind"] for task in (None, "lm", "classify")] == [
        "classify",
        "lm",
        "classify",
    ]
    with pytest.raises(DataError, match="as many labels"):
        guess(write(tmp_path / "u.tsv", tsv(["abc"], ["xy"])), tmp_path, "tag")


def test_of_a_huge_file_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said; the amount of data is that of the whole; what follows is not even decoded."""
    path = write(tmp_path / "t.tsv", many(60_000).encode() + b"\xff")
    monkeypatch.setattr(module, "LOOK", path.stat().st_size // 4 + 1)
    found = guess(path, tmp_path)
    assert "25.0% of the file" in found.notes[0]
    assert "data.labels" not in {key.name for key in found.keys}
    (amount,) = (key.why for key in found.keys if key.name == "model.hidden_size")
    assert 450_000 < int(amount.split()[0].replace(",", "")) < 550_000  # 9 characters in 60,000 rows


def test_sizes_grow_with_the_data(tmp_path: Path) -> None:
    """More text, a larger network and fewer epochs; long rows are cut; rare characters are unknown."""
    small, large = (keys(write(tmp_path / "t.tsv", many(n))) for n in (60, 20_000))
    assert small["model.hidden_size"] < large["model.hidden_size"]
    assert small["model.num_layers"] < large["model.num_layers"]
    assert small["train.epochs"] > large["train.epochs"]
    assert "data.max_length" not in large
    rare = "".join(map(chr, range(0x4E00, 0x4E20)))
    long = keys(write(tmp_path / "t.tsv", many(6000) + f"{rare * 2}{'a' * 600}\t{'x' * 664}\n"))
    assert (long["data.max_length"], long["data.min_count"]) == (500, 3)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    text=names.filter(str.strip),
    label=names,
    labels=st.lists(names.filter(str.strip), min_size=2, max_size=3, unique=True),
)
def test_any_names_make_a_recipe(tmp_path: Path, text: str, label: str, labels: list[str]) -> None:
    """Whatever columns and labels are called, the recipe is TOML and reads the file."""
    if text == label:
        return
    rows = [{text: f"{'long' * 9}{n}", label: labels[n % len(labels)]} for n in range(9)]
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.toml").write_text(guess(path, tmp_path, "classify").recipe(path))
    data = load(Recipe.load(tmp_path / "r.toml"), tmp_path)
    assert set(data.vocabulary.labels) <= set(labels) | {row[text] for row in rows}


cells = st.text('ab B\u0301"{}[],:\t\r\n\\#1\u3000', max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    suffix=st.sampled_from([".tsv", ".csv", ".jsonl", ".conllu", ".txt"]),
    content=st.lists(st.lists(cells, min_size=1, max_size=3), min_size=1, max_size=25),
    separator=st.sampled_from(["\t", ",", "\t_\t"]),
    as_json=st.booleans(),
    task=st.sampled_from([None, "tag", "classify", "lm"]),
)
def test_whatever_stands_in_a_file(
    tmp_path: Path, suffix: str, content: list[list[str]], separator: str, as_json: bool, task: Any
) -> None:
    """One of our errors, or a recipe that can be read; and where nothing is noted, data that can be loaded."""
    lines = [json.dumps(dict(enumerate(row))) if as_json else separator.join(row) for row in content]
    path = write(tmp_path / f"t{suffix}", "\n".join(lines))
    try:
        found = guess(path, tmp_path, task)
    except DataError as error:
        assert str(error).startswith(str(path))
        return
    (tmp_path / "r.toml").write_text(found.recipe(path))
    recipe = Recipe.load(tmp_path / "r.toml")
    if not any("do not fit" in note or "header" in note for note in found.notes) and recipe.task.kind != "lm":
        load(recipe, tmp_path)


def test_no_torch_is_needed() -> None:
    """A guess is made at once."""
    code = "import sys, ohlol.train.guess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_surrogate_is_refused(tmp_path: Path) -> None:
    """JSON can say what UTF-8 cannot; it is told, not thrown."""
    path = write(tmp_path / "t.jsonl", '{"\\ud800": "abc"}\n')
    assert "which no recipe can" in run("init", path, "-o", tmp_path / "r.toml", code=1).stderr


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("ud_vi_vtb/vi_vtb-ud-train.conllu", 1400),
        ("ud_en_ewt/en_ewt-ud-train.conllu", None),
        ("names18/data/names", 14410),
        ("tinyshakespeare/input.txt", 6972),
    ],
)
def test_real_data(tmp_path: Path, real_data: Path, data: str, rows: int | None) -> None:
    """The data of the project's own recipes is read by the guessed recipe, dev and test included."""
    run("init", real_data / data, "-o", tmp_path / "r.toml")
    found = load(Recipe.load(tmp_path / "r.toml"), tmp_path)
    assert rows in (None, len(found.train.rows))
    assert found.dev
    assert found.test

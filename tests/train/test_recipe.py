"""A recipe's mistakes are reported all at once, each with the key, what was found and what is allowed."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.errors import RecipeError
from ohlol.train.mistakes import METRICS_OF
from ohlol.train.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"

MINIMAL: dict[str, Any] = {"task": {"kind": "tag"}, "data": {"format": "tsv", "train": "train.tsv"}}
LM: dict[str, Any] = {"task": {"kind": "lm"}, "data": {"format": "text", "train": "all.txt"}}
CLASSIFY: dict[str, Any] = {"task": {"kind": "classify"}, "data": {"format": "folder", "train": "names"}}
NONE: dict[str, Any] = {
    "task": {"kind": "tag"},
    "data": {"format": "none", "alphabet": "ab", "labels": ["x"]},
}
INLINE: dict[str, Any] = {"task": {"kind": "tag"}, "data": {"format": "inline", "rows": [["hello", "ohlol"]]}}

KEYS = [
    (section, key) for section, table in Recipe.model_validate(MINIMAL).model_dump().items() for key in table
]


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`base` with keys set by `section_key=value`."""
    raw = copy.deepcopy(base)
    for name, value in changes.items():
        section, _, key = name.partition("_")
        raw.setdefault(section, {})[key] = value
    return raw


def mistakes(raw: dict[str, Any]) -> list[str]:
    """The lines of the error, the first of which counts them."""
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(raw, "it.toml")
    first, *lines = str(caught.value).splitlines()
    assert f"it.toml: {len(lines)} mistake{'s' if len(lines) > 1 else ''}" == first
    return [line.strip() for line in lines]


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_mistake_is_reported_at_once() -> None:
    """One round of mending is enough, whatever is wrong where."""
    raw = {
        "task": {"kind": "tagg"},
        "data": {"format": "tsv", "train": 5, "trian": "x"},
        "model": {"hiden_size": 3, "num_layers": 0, "dropout": 0.5, "colour": "red"},
        "train": {"epochs": "many", "optimizer": "adm", "learning_rate": 0.0},
        "extra": {},
    }
    expected = {
        'task.kind: found \'tagg\', expected "tag" or "classify" or "lm"; did you mean "tag"?',
        "data.train: found 5, expected a string",
        "data.trian: unknown key; did you mean `train`?",
        "model.hiden_size: unknown key; did you mean `hidden_size`?",
        "model.num_layers: found 0, expected at least 1",
        "model.colour: unknown key; allowed: input, embedding_size, cell, hidden_size, num_layers, bidirectional, "
        "dropout, embedding_dropout, output_dropout, character_dropout, locked_dropout, initialisation, tied, head, loop",
        "train.epochs: found 'many', expected a whole number",
        'train.optimizer: found \'adm\', expected "adam" or "adamw" or "sgd"; did you mean "adam"?',
        "train.learning_rate: found 0.0, expected more than 0.0",
        "extra: unknown key; allowed: task, data, model, train",
    }
    assert expected == set(mistakes(raw))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "task: missing; expected a table"),
        ({**MINIMAL, "model": 3}, "model: found 3, expected a table"),
        ({"task": {}, "data": MINIMAL["data"]}, 'task.kind: missing; expected "tag" or "classify" or "lm"'),
        (changed(MINIMAL, data_text=1.5), "data.text: found 1.5, expected a string or a whole number"),
        (changed(MINIMAL, data_labels="ab"), "data.labels: found 'ab', expected a list of strings"),
        (changed(MINIMAL, data_labels=["a", 1]), "data.labels: found ['a', 1], expected a list of strings"),
        (changed(MINIMAL, data_split=[1.0]), "data.split: found [1.0], expected three numbers"),
        (
            changed(INLINE, data_rows=[["a"]]),
            "data.rows: found [['a']], expected a list of [text, label] pairs",
        ),
        (changed(MINIMAL, model_bidirectional=1), "model.bidirectional: found 1, expected true or false"),
        (changed(MINIMAL, model_hidden_size=True), "model.hidden_size: found True, expected a whole number"),
        (changed(MINIMAL, model_hidden_size=2.0), "model.hidden_size: found 2.0, expected a whole number"),
        (
            changed(MINIMAL, model_hidden_size=10**6),
            "model.hidden_size: found 1000000, expected at most 65536",
        ),
        (changed(MINIMAL, model_dropout=1.0), "model.dropout: found 1.0, expected less than 1.0"),
        (changed(MINIMAL, train_seed=-1), "train.seed: found -1, expected at least 0"),
        (
            changed(MINIMAL, train_learning_rate=float("inf")),
            "train.learning_rate: found inf, expected a number",
        ),
        (changed(MINIMAL, train_clip_norm=float("nan")), "train.clip_norm: found nan, expected a number"),
        (
            changed(MINIMAL, data_split=[float("nan")] * 3),
            "data.split: found [nan, nan, nan], expected three numbers",
        ),
        (
            changed(MINIMAL, model_cell="LSTM"),
            'model.cell: found \'LSTM\', expected "rnn" or "gru" or "lstm"',
        ),
    ],
    ids=lambda value: value.partition(",")[0] if isinstance(value, str) else "",
)
def test_a_wrong_value_is_told_with_what_is_allowed(raw: dict[str, Any], message: str) -> None:
    """The message holds the key as a person writes it, what was found, and what may stand there."""
    assert message in mistakes(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            changed(LM, data_format="folder"),
            "data.format: found 'folder'; a lm task reads text, tsv, jsonl, csv",
        ),
        (changed(LM, model_bidirectional=True), "model.bidirectional: an lm task reads one way"),
        (changed(LM, data_labels=["a"]), "data.labels: an lm task has none"),
        (changed(LM, data_max_length=5), "data.max_length: only rows of a tag task can be cut"),
        (
            changed(LM, train_monitor="accuracy"),
            "train.monitor: found 'accuracy'; a lm task has nats_per_character",
        ),
        (
            changed(CLASSIFY, data_label_scheme="words"),
            "data.label_scheme: only a tag task labels characters",
        ),
        (changed(CLASSIFY, train_monitor="words_f1"), "train.monitor: found 'words_f1'; a classify task has"),
        (changed(MINIMAL, train_monitor="words_f1"), 'train.monitor: needs data.label_scheme = "words"'),
        (changed(MINIMAL, model_dropout=0.5), "model.dropout: acts between layers, and there is one"),
        (
            changed(LM, model_input="one_hot", model_tied=True, model_embedding_size=64),
            'model.tied: needs model.input = "embedding"',
        ),
        (changed(LM, train_class_weights=0.5), "train.class_weights: an lm task has no labels"),
        (
            changed(MINIMAL, model_input="one_hot", model_embedding_dropout=0.1),
            'model.embedding_dropout: needs model.input = "embedding"',
        ),
        (
            changed(MINIMAL, model_locked_dropout=True),
            "model.locked_dropout: says how dropout is drawn, and there is none",
        ),
        (
            changed(MINIMAL, model_tied=True),
            "model.tied: only an lm task answers with the characters it reads",
        ),
        (changed(LM, model_tied=True, model_head="none"), 'model.tied: needs model.head = "linear"'),
        (
            changed(LM, model_tied=True, model_embedding_size=8, model_hidden_size=9),
            "model.tied: needs model.embedding_size (8) and model.hidden_size (9) alike",
        ),
        (
            changed(MINIMAL, train_carry_state=True),
            'train.carry_state: only format = "text" is one running text',
        ),
        (
            changed(LM, train_carry_state=True, model_loop=True),
            "train.carry_state: a loop of cells begins at zero",
        ),
        (changed(MINIMAL, data_labels=["a", "a"]), "data.labels: a label stands there twice"),
        (changed(MINIMAL, data_alphabet="aba"), "data.alphabet: a character stands there twice"),
        (changed(MINIMAL, data_train=None), "data.train: missing; expected the path of the training data"),
        (changed(MINIMAL, data_rows=[["a", "b"]]), 'data.rows: only format = "inline" has rows'),
        (
            changed(MINIMAL, data_split=[0.5, 0.5, 0.5]),
            "data.split: found [0.5, 0.5, 0.5]; expected parts that sum",
        ),
        (
            changed(MINIMAL, data_split=[0.0, 0.5, 0.5]),
            "data.split: found [0.0, 0.5, 0.5]; expected parts that sum",
        ),
        (
            changed(MINIMAL, data_split=[1.5, -0.5, 0.0]),
            "data.split: found [1.5, -0.5, 0.0]; expected parts that",
        ),
        (
            changed(MINIMAL, data_split=[0.8, 0.1, 0.1], data_dev="d"),
            "data.split: there are dev or test files",
        ),
        (changed(INLINE, data_train="x"), "data.train: inline data has `rows`, no files"),
        (changed(MINIMAL, data_train=""), "data.train: found '', expected"),
        (changed(INLINE, data_rows=None), "data.rows: missing"),
        (changed(INLINE, data_split=[0.5, 0.5, 0.0]), "data.split: inline data is all for training"),
        (changed(NONE, data_alphabet=None), 'data.alphabet: missing; format = "none" has no data'),
        (changed(NONE, data_labels=None), 'data.labels: missing; format = "none" has no data'),
        (changed(NONE, data_test="t"), 'data.test: format = "none" says that there is no data'),
        (changed(NONE, data_rows=[["a", "x"]]), 'data.rows: format = "none" says that there is no data'),
        (changed(MINIMAL, data_train=None, data_test="t"), "data.train: missing"),
        (
            changed(MINIMAL, data_train=None, data_alphabet="a", data_split=[0.5, 0.5, 0.0]),
            "data.train: missing",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keys_that_contradict_each_other_are_told(raw: dict[str, Any], message: str) -> None:
    """Two good keys that cannot both hold are one mistake, at the key to blame."""
    (found,) = mistakes(raw)
    assert found.startswith(message)


def test_contradictions_are_reported_beside_wrong_values() -> None:
    """A wrong value elsewhere does not hide what lies between two others; a wrong key is blamed once."""
    found = mistakes(changed(LM, model_bidirectional=True, train_epochs=-1, data_max_length=0))
    assert len(found) == 3
    assert sorted(m.split(":")[0] for m in found) == [
        "data.max_length",
        "model.bidirectional",
        "train.epochs",
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, ("task", None), ("data", None), ("new", "key"), ("train", "kay")]),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=5)
            | st.lists(st.floats() | st.text(max_size=2), max_size=3)
            | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
            | st.sampled_from(["tag", "lm", "classify", "text", "inline", "words", "loss", [["a", "b"]]]),
        ),
        max_size=5,
    )
)
def test_any_tables_are_a_recipe_or_refused(changes: list[tuple[tuple[str, str | None], Any]]) -> None:
    """Whatever stands in the file, the only error is ours; what is accepted can be written and read again."""
    raw = copy.deepcopy(MINIMAL)
    for (section, key), value in changes:
        if key is None or not isinstance(raw.get(section, {}), dict):
            raw[section] = value
        else:
            raw.setdefault(section, {})[key] = value
    try:
        recipe = Recipe.parse(raw, "it")
    except RecipeError as error:
        assert str(error).startswith("it: ")
    else:
        assert recipe == parsed_again(recipe)


def parsed_again(recipe: Recipe) -> Recipe:
    return Recipe.parse(tomllib.loads(recipe.to_toml()), "again")


@pytest.mark.parametrize("raw", [MINIMAL, LM, CLASSIFY, INLINE, NONE])
def test_to_toml_says_every_default(raw: dict[str, Any]) -> None:
    """The recipe kept with a run means the same when a default changes later."""
    recipe = Recipe.parse(raw, "it")
    assert recipe == parsed_again(recipe)
    assert "learning_rate = 0.001" in recipe.to_toml()


@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20).map(
        lambda text: "".join(dict.fromkeys(text))
    )
)
def test_to_toml_keeps_every_character(alphabet: str) -> None:
    """Quotes, control characters and emoji in an alphabet come back as they were."""
    recipe = Recipe.parse(changed(MINIMAL, data_alphabet=alphabet), "it")
    assert alphabet == parsed_again(recipe).data.alphabet


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("model.hidden_size=7", "model", "hidden_size", 7),
        (" model.hidden_size = 7 ", "model", "hidden_size", 7),
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("model.bidirectional=true", "model", "bidirectional", True),
        ("model.cell=gru", "model", "cell", "gru"),
        ('model.cell="gru"', "model", "cell", "gru"),
        ("model.cell='gru'", "model", "cell", "gru"),
        ("data.train=some folder/a=b.tsv", "data", "train", "some folder/a=b.tsv"),
        ('data.label_separator=" "', "data", "label_separator", " "),
        ("data.text=3", "data", "text", 3),
        ('data.text="3"', "data", "text", "3"),
        ("data.split=[0.8, 0.1, 0.1]", "data", "split", [0.8, 0.1, 0.1]),
    ],
)
def test_set_replaces_one_key(
    tmp_path: Path, override: str, section: str, key: str, expected: object
) -> None:
    """`--set` takes TOML values, and a bare word is a string."""
    path = write(tmp_path, Recipe.parse(MINIMAL, "it").to_toml())
    found = getattr(getattr(Recipe.load(path, [override]), section), key)
    assert (expected, type(expected)) == (found, type(found))


def test_set_makes_a_section_and_the_last_one_holds(tmp_path: Path) -> None:
    """A section that the recipe does not have can be set; of two overrides the second holds."""
    path = write(tmp_path, '[task]\nkind = "tag"\n[data]\nformat = "tsv"\ntrain = "t"\n')
    assert Recipe.load(path, ["train.epochs=1", "train.epochs=2"]).train.epochs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=5", "expected section.key=value"),
        ("train.epochs", "expected section.key=value"),
        ("train.=5", "expected section.key=value"),
        ("", "expected section.key=value"),
        ("train.epochs=", "train.epochs: found '', expected a whole number"),
        ("train.epochs=five", "train.epochs: found 'five', expected a whole number"),
        ("train.epoch=5", "train.epoch: unknown key; did you mean `epochs`?"),
        ("trian.epochs=5", "trian: unknown key; did you mean `train`?"),
        ("model.cell=GRU", "model.cell: found 'GRU'"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    """A slip on the command line is told like one in the file."""
    path = write(tmp_path, Recipe.parse(MINIMAL, "it").to_toml())
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, [override])
    assert message in str(caught.value)


def test_an_override_of_a_key_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """A recipe with `train = 5` and an override below it is told which one is no table."""
    with pytest.raises(RecipeError, match="`train` is not a table"):
        Recipe.load(write(tmp_path, "train = 5"), ["train.epochs=1"])


@pytest.mark.parametrize("text", ["[task", "a = ", 'x = "', "a = 1\na = 2", "hello"])
def test_toml_syntax_errors_name_file_and_line(tmp_path: Path, text: str) -> None:
    """Who mistypes TOML is told where."""
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=r"not TOML: .*(line \d|end of document)") as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, and bytes that are no text are ours to report."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path, message in [
        ("none.toml", "no such file"),
        (".", "cannot be read"),
        ("bytes.toml", "cannot be read"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Recipe.load(tmp_path / path)


def test_a_recipe_from_windows_is_read(tmp_path: Path) -> None:
    """Line ends and the mark that Notepad writes first change nothing."""
    text = Recipe.parse(MINIMAL, "it").to_toml()
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert Recipe.parse(MINIMAL, "it") == Recipe.load(path)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_recipe_loads(path: Path) -> None:
    """No recipe that ships has a mistake."""
    recipe = Recipe.load(path)
    assert recipe == parsed_again(recipe)


@pytest.mark.parametrize(
    ("raw", "monitor", "scheme"),
    [
        (LM, "nats_per_character", None),
        (CLASSIFY, "accuracy", None),
        (MINIMAL, "accuracy", None),
        (changed(MINIMAL, data_label_scheme="words"), "words_f1", "words"),
        (changed(MINIMAL, data_format="conllu"), "words_f1", "words"),
        (changed(MINIMAL, train_monitor="macro_f1"), "macro_f1", None),
    ],
)
def test_what_is_watched_follows_the_task(raw: dict[str, Any], monitor: str, scheme: str | None) -> None:
    """The best checkpoint is picked by the metric of the task, unless the recipe names one."""
    recipe = Recipe.parse(raw, "it")
    assert (monitor, scheme) == (recipe.monitor, recipe.label_scheme)
    assert recipe.monitor in METRICS_OF[recipe.task.kind]

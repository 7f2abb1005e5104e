"""From examples to batches: nothing is lost, doubled or put beside the wrong answer."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.errors import DataError
from ohlol.train.batches import Rows
from ohlol.train.data import Dataset, Split, data_folders, load, load_split
from ohlol.train.dry import summary
from ohlol.train.recipe import Recipe


def recipe(kind: str, form: str, **data: Any) -> Recipe:
    return Recipe.parse({"task": {"kind": kind}, "data": {"format": form, "train": "train", **data}}, "it")


def loaded(folder: Path, kind: str, form: str, content: str, **data: Any) -> Dataset:
    (folder / "train").write_bytes(content.encode())
    return load(recipe(kind, form, **data), folder)


def texts(split: Split | None) -> list[str]:
    return [example.text for example in split.examples] if split else []


def names(count: int) -> str:
    return "".join(f"n{number}\t{'AB'[number % 2]}\n" for number in range(count))


def ids_of(rows: Rows) -> list[int]:
    """Of every row, end to end."""
    return [int(k) for row in range(len(rows)) for k in rows.batch(np.array([row])).ids[0]]


# Splits


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [
        (100, [0.7, 0.15, 0.15], (70, 15, 15)),
        (7, [0.7, 0.15, 0.15], (5, 1, 1)),
        (3, [1.0, 0.0, 0.0], (3, 0, 0)),
        (10, [0.9, 0.1, 0.0], (9, 1, 0)),
        (10, [0.9, 0.0, 0.1], (9, 0, 1)),
    ],
)
def test_a_split_uses_every_example_once(
    tmp_path: Path, count: int, parts: list[float], sizes: tuple[int, int, int]
) -> None:
    """The parts have the sizes asked for, and together they are the file."""
    data = loaded(tmp_path, "classify", "tsv", names(count), split=parts)
    found = [texts(split) for split in (data.train, data.dev, data.test)]
    assert sizes == tuple(map(len, found))
    assert sorted(f"n{number}" for number in range(count)) == sorted(text for part in found for text in part)


def test_a_split_follows_its_seed_alone(tmp_path: Path) -> None:
    """The same seed gives the same test set for ever, another seed another one."""
    parts = [0.6, 0.2, 0.2]
    first, again, other = (
        texts(loaded(tmp_path, "classify", "tsv", names(50), split=parts, split_seed=seed).test)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_duplicates_are_removed_before_splitting(tmp_path: Path) -> None:
    """The same name in another language stays; the same line twice would leak into the test set."""
    content = "Lee\tKorean\nLee\tChinese\nLee\tKorean\nKim\tKorean\n" * 5
    keys = {"labels": ["Chinese", "Korean"], "split": [0.34, 0.33, 0.33]}
    data = loaded(tmp_path, "classify", "tsv", content, deduplicate=True, **keys)
    found = [
        (e.text, *e.labels) for split in (data.train, data.dev, data.test) if split for e in split.examples
    ]
    assert sorted(found) == [("Kim", "Korean"), ("Lee", "Chinese"), ("Lee", "Korean")]
    assert len(loaded(tmp_path, "classify", "tsv", content).train.examples) == 20


def test_duplicates_are_rows_not_their_pieces(tmp_path: Path) -> None:
    """What is cut out of a row twice is there twice; rows that stand twice are there once."""
    data = loaded(tmp_path, "tag", "tsv", "ha ha\txxxxx\n" * 2, deduplicate=True, max_length=3)
    assert texts(data.train) == ["ha ", "ha"]
    data = loaded(tmp_path, "tag", "tsv", "ha ha ha \txxxxxxxxx\n" * 2, deduplicate=True, max_length=3)
    assert texts(data.train) == ["ha "] * 3


def test_too_few_examples_to_split_are_refused(tmp_path: Path) -> None:
    """An empty training set is told before training."""
    with pytest.raises(DataError, match="1 examples are too few to split"):
        loaded(tmp_path, "classify", "tsv", names(1), split=[0.2, 0.4, 0.4])


def test_a_split_that_comes_out_empty_is_told(tmp_path: Path) -> None:
    """Two rows do not make three parts: what was asked for and is not there is said."""
    data = loaded(tmp_path, "classify", "tsv", names(2), split=[0.8, 0.1, 0.1])
    assert (data.empty, data.dev, data.test) == (("dev", "test"), None, None)
    assert "note: data.split leaves no dev rows; give it a larger part" in list(summary(data))
    assert loaded(tmp_path, "classify", "tsv", names(10), split=[0.9, 0.1, 0.0]).empty == ()


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """In a folder of texts the file's name is the label."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "\udcff.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(DataError, match="is a label, and is not UTF-8; rename it"):
        load(recipe("classify", "folder"), tmp_path)


def test_load_split_finds_the_same_rows(tmp_path: Path) -> None:
    """Evaluating later, under the run's alphabet and labels, sees what training saw."""
    data = loaded(tmp_path, "classify", "tsv", names(20), split=[0.5, 0.5, 0.0])
    wanted = recipe("classify", "tsv", split=[0.5, 0.5, 0.0])
    found = load_split(wanted, data.vocabulary, "dev", tmp_path, None)
    assert data.dev is not None
    assert list(data.dev.examples) == list(found.examples)
    assert ids_of(data.dev.rows) == ids_of(found.rows)
    with pytest.raises(DataError, match="the recipe has no test data"):
        load_split(wanted, data.vocabulary, "test", tmp_path, None)


# Running text


@given(st.text("abc é\n", min_size=2, max_size=60), st.integers(1, 20))
def test_lm_windows_cover_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, length: int) -> None:
    """Each character but the last is an input once, and its target is the one that follows."""
    folder = tmp_path_factory.getbasetemp()
    data = loaded(folder, "lm", "text", text, sequence_length=length)
    rows = data.train.rows
    assert text[:-1] == "".join(map(str, map(data.vocabulary.alphabet.character, ids_of(rows))))
    assert text[1:] == "".join(map(str, map(data.vocabulary.alphabet.character, rows.targets.tolist())))
    assert max(rows.lengths) <= length
    assert all(rows.lengths[:-1] == length)


def test_lm_parts_are_the_text_in_order(tmp_path: Path) -> None:
    """The first part trains, the following ones measure: cut by characters, none in two parts."""
    text = "".join(chr(0x4E00 + number) for number in range(100))
    data = loaded(tmp_path, "lm", "text", text, sequence_length=7, split=[0.8, 0.1, 0.1])
    found = [texts(split) for split in (data.train, data.dev, data.test)]
    assert [[text[:80]], [text[80:90]], [text[90:]]] == found
    assert data.dev is not None
    assert (len(data.train.rows), len(data.dev.rows)) == (12, 1)  # what is measured is read whole


@pytest.mark.parametrize(
    ("text", "keys"),
    [("a", {}), ("abcdefghij", {"split": [0.1, 0.9, 0.0]}), ("abcd", {"split": [0.01, 0.99, 0.0]})],
)
def test_too_little_text_to_train_is_refused(tmp_path: Path, text: str, keys: dict[str, Any]) -> None:
    """One character has no next one to predict, and that is told as such."""
    with pytest.raises(DataError, match="no text of two characters or more"):
        loaded(tmp_path, "lm", "text", text, **keys)


def test_dev_data_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    """Without it no epoch would be better than another, and nobody would be told."""
    (tmp_path / "dev").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match="dev data: no text of two characters or more"):
        loaded(tmp_path, "lm", "tsv", "ab\n", dev="dev")


def test_lm_rows_of_lines_end_at_the_line(tmp_path: Path) -> None:
    """No line's last character predicts the next line's first; a line of one character predicts nothing."""
    rows = loaded(tmp_path, "lm", "tsv", "ab\nc\ndef\n").train.rows
    assert (rows.lengths.tolist(), ids_of(rows), rows.targets.tolist()) == ([1, 2], [2, 5, 6], [3, 6, 7])


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_min_count_counts_a_character_of_running_text_once(tmp_path: Path, length: int) -> None:
    """Where rows meet, the character that both hold is still one occurrence."""
    data = loaded(tmp_path, "lm", "text", "abcaa", sequence_length=length, min_count=2)
    assert data.vocabulary.alphabet.characters == "a"


# Rows and pieces


@pytest.mark.parametrize(
    ("limit", "pieces"), [(4, ["ab ", "cdef", "gh i"]), (100, ["ab cdefgh i"]), (1, list("ab cdefgh i"))]
)
def test_long_rows_are_cut_after_a_space_where_there_is_one(
    tmp_path: Path, limit: int, pieces: list[str]
) -> None:
    """Pieces keep within the limit and together are the row, each character with its label."""
    text = "ab cdefgh i"
    data = loaded(tmp_path, "tag", "tsv", f"{text}\t{text.upper()}\n", max_length=limit)
    assert pieces == texts(data.train)
    assert [tuple(piece.upper()) for piece in pieces] == [example.labels for example in data.train.examples]


@given(st.text("ab ", min_size=1, max_size=40), st.integers(1, 12))
def test_pieces_are_the_row(tmp_path_factory: pytest.TempPathFactory, text: str, limit: int) -> None:
    """Cutting loses and changes nothing, whatever the text and the limit."""
    folder = tmp_path_factory.getbasetemp()
    found = texts(loaded(folder, "tag", "tsv", f"{text}\t{text.upper()}\n", max_length=limit).train)
    assert text == "".join(found)
    assert limit >= max(map(len, found))


def test_only_training_rows_are_cut(tmp_path: Path) -> None:
    """What is measured is measured whole."""
    (tmp_path / "dev").write_text("abcdef\txxxxxx\n", encoding="utf-8")
    data = loaded(tmp_path, "tag", "tsv", "abcdef\txxxxxx\n", dev="dev", max_length=3)
    assert (texts(data.train), texts(data.dev)) == (["abc", "def"], ["abcdef"])


def test_the_alphabet_comes_from_training_rows_alone(tmp_path: Path) -> None:
    """A character that only the dev set has is unknown, as it will be in use."""
    (tmp_path / "dev").write_text("abz\txxx\n", encoding="utf-8")
    data = loaded(tmp_path, "tag", "tsv", "aab\txyx\n", dev="dev")
    assert (data.vocabulary.alphabet.characters, data.vocabulary.labels) == ("ab", ("x", "y"))
    assert data.dev is not None
    assert ids_of(data.dev.rows) == [2, 3, 1]


def test_alphabet_and_labels_may_be_given(tmp_path: Path) -> None:
    """Their order in the recipe is the order of the ids."""
    data = loaded(tmp_path, "tag", "tsv", "ab\txy\n", alphabet="ba", labels=["y", "z", "x"])
    assert (ids_of(data.train.rows), data.train.rows.targets.tolist()) == ([3, 2], [2, 0])


def test_the_words_scheme_has_its_four_labels(tmp_path: Path) -> None:
    """All four are there even where the training rows lack one, and no other is."""
    data = loaded(tmp_path, "tag", "tsv", "ab\tSI\n", label_scheme="words")
    assert data.vocabulary.labels == ("B", "I", "O", "S")
    with pytest.raises(DataError, match="label 'X', which is not one of B, I, O, S"):
        loaded(tmp_path, "tag", "tsv", "ab\tSX\n", label_scheme="words")


def test_an_unknown_label_in_dev_is_reported(tmp_path: Path) -> None:
    """File, line, split, label and the known ones are named, of every row at once up to a limit."""
    rows = "a\tA\na\tC\n" + "b\tD\n" * 30
    for name in ("dev", "test"):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, "classify", "tsv", names(4), dev="dev", test="test")
    first, second, *_, last = str(caught.value).splitlines()
    assert first.startswith(
        f"{tmp_path / 'dev'}:2: dev data has the label 'C', which is not one of A, B; list every"
    )
    assert f"{tmp_path / 'dev'}:3: dev data has the label 'D'" in second
    assert last == "… and 42 more"


def test_the_mistakes_of_every_file_are_reported_at_once(tmp_path: Path) -> None:
    """One round of mending is enough, whichever files are wrong; a missing one is among them."""
    (tmp_path / "dev").write_text("b\tBB\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, "tag", "tsv", "a\tAA\n", dev="dev", test="test")
    found = str(caught.value).splitlines()
    starts = [
        f"{tmp_path / 'train'}:1: 1 char",
        f"{tmp_path / 'dev'}:1: 1 char",
        f"{tmp_path / 'test'}: no such file",
    ]
    assert [line.startswith(start) for line, start in zip(found, starts, strict=True)] == [True] * 3


def test_rows_of_train_that_stand_in_dev_or_test_are_counted(tmp_path: Path) -> None:
    """A text that was trained on flatters the figure, whatever its label."""
    (tmp_path / "dev").write_text("n1\tA\nn1\tB\nx\tA\n", encoding="utf-8")
    (tmp_path / "test").write_text("y\tA\n", encoding="utf-8")
    data = loaded(tmp_path, "classify", "tsv", names(4), dev="dev", test="test")
    assert data.repeated() == {"dev": 2, "test": 0}
    assert loaded(tmp_path, "lm", "text", "abab", split=[0.5, 0.5, 0.0]).repeated() == {}


def test_texts_of_one_character_have_one_answer_a_row(tmp_path: Path) -> None:
    """`classify` targets are `(B,)` even where rows and characters are equally many."""
    rows = loaded(tmp_path, "classify", "tsv", "a\tA\nb\tB\n").train.rows
    assert rows.batch(np.array([0, 1])).targets.shape == (2,)


# Files


def test_data_folders_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--data` stands alone; else the recipe's folder comes first and OHLOL_DATA fills what it lacks."""
    monkeypatch.setenv("OHLOL_DATA", "variable")
    assert (Path("given"), None) == data_folders(Path("given"), Path("beside"))
    assert (Path("beside"), Path("variable")) == data_folders(None, Path("beside"))
    monkeypatch.setenv("OHLOL_DATA", "")
    assert (Path("beside"), None) == data_folders(None, Path("beside"))


def test_the_fallback_is_for_files_that_the_folder_lacks(tmp_path: Path) -> None:
    """A file beside the recipe is taken before one of the same name elsewhere."""
    near, far = tmp_path / "near", tmp_path / "far"
    for folder, text in ((near, "near"), (far, "far")):
        folder.mkdir()
        (folder / "train").write_text(f"{text}\tA\n", encoding="utf-8")
    (far / "dev").write_text("only\tA\n", encoding="utf-8")
    data = load(recipe("classify", "tsv", dev="dev"), near, far)
    assert (texts(data.train), texts(data.dev)) == (["near"], ["only"])
    with pytest.raises(DataError, match=str(near / "dev")):
        load(recipe("classify", "tsv", dev="dev"), near)


def test_digests_are_of_the_files_as_they_are(tmp_path: Path) -> None:
    """The record names each file as the recipe does, with the sha256 of its bytes."""
    data = loaded(tmp_path, "classify", "tsv", names(4))
    content = names(4).encode()
    digest = hashlib.sha256(content).hexdigest()
    assert data.digests == {"train": {"path": "train", "sha256": digest, "bytes": len(content)}}
    inline = Recipe.parse({"task": {"kind": "tag"}, "data": {"format": "inline", "rows": [["a", "b"]]}}, "it")
    assert load(inline, tmp_path).digests == {"train": {"rows": 1}}


def test_the_digest_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    """Another name or content is other data; a README beside the texts is not data."""

    def digest() -> Any:
        return load(recipe("classify", "folder"), tmp_path).digests["train"]["sha256"]

    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "A.txt").write_text("x\n", encoding="utf-8")
    seen = [digest()]
    (folder / "README").write_text("y\n", encoding="utf-8")
    seen.append(digest())
    (folder / "A.txt").rename(folder / "B.txt")
    seen.append(digest())
    (folder / "B.txt").write_text("z\n", encoding="utf-8")
    seen.append(digest())
    assert list(Counter(seen).values()) == [2, 1, 1]

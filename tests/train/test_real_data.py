"""Real data sets are read as their publishers count them. Skipped where OHLOL_DATA names no folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ohlol.artifacts.words import sentence_spans
from ohlol.train.data import load
from ohlol.train.readers import read, running
from ohlol.train.recipe import Data, Recipe


def data_of(form: str, **keys: Any) -> Data:
    return Data.model_validate({"format": form, "train": "it", **keys})


@pytest.mark.parametrize(
    ("file", "row", "rows", "sentences"),
    [
        ("ud_vi_vtb/vi_vtb-ud-train", "sentence", 1400, 1400),
        ("ud_vi_vtb/vi_vtb-ud-dev", "sentence", 800, 800),
        ("ud_vi_vtb/vi_vtb-ud-test", "sentence", 800, 800),
        ("ud_en_ewt/en_ewt-ud-train", "sentence", 12543, 12543),
        ("ud_en_ewt/en_ewt-ud-dev", "sentence", 2001, 2001),
        ("ud_en_ewt/en_ewt-ud-dev", "paragraph", 0, 2001),
        ("ud_en_ewt/en_ewt-ud-dev", "document", 0, 2001),
        ("ud_en_ewt/en_ewt-ud-test", "sentence", 2077, 2077),
        ("ud_en_ewt/en_ewt-ud-test", "paragraph", 0, 2077),
        ("ud_en_ewt/en_ewt-ud-test", "document", 0, 2077),
    ],
)
def test_treebanks_have_the_sentences_they_say(
    real_data: Path, file: str, row: str, rows: int, sentences: int
) -> None:
    """Every sentence is read, its text is the treebank's own, and larger rows hold the same sentences."""
    path = real_data / f"{file}.conllu"
    examples = read(path, data_of("conllu", row=row), "tag")
    comments = [line for line in path.read_text(encoding="utf-8").split("\n") if line.startswith("# new")]
    marks = Counter(comment.split()[1] for comment in comments)
    documents = marks["newdoc"]
    begun = {"sentence": rows, "document": documents, "paragraph": _paragraphs(path)}[row]
    assert begun == len(examples)
    assert sentences == sum(len(sentence_spans(example.labels)) for example in examples)


def _paragraphs(path: Path) -> int:
    """Sentences with `# newpar` or `# newdoc` above them."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return sum("# newpar" in block or "# newdoc" in block for block in blocks)


def test_names_of_eighteen_languages(real_data: Path) -> None:
    """20,050 names; 2,038 of them stand there twice within a language."""
    folder = real_data / "names18/data/names"
    examples = read(folder, data_of("folder"), "classify")
    lines = sum(len(file.read_bytes().splitlines()) for file in folder.glob("*.txt"))
    distinct = {(example.text, example.labels) for example in examples}
    found = (
        lines,
        len(examples),
        len({example.labels for example in examples}),
        len(examples) - len(distinct),
    )
    assert found == (20050, 20050, 18, 2038)


def test_names_are_split_without_a_name_in_two_parts(real_data: Path, recipes: Path) -> None:
    """The ready recipe's parts share no line, and together are every distinct one."""
    dataset = load(Recipe.load(recipes / "names18.toml"), real_data)
    assert dataset.dev is not None
    assert dataset.test is not None
    parts = [
        {(example.text, example.labels) for example in split.examples}
        for split in (dataset.train, dataset.dev, dataset.test)
    ]
    assert 20050 - 2038 == len(set.union(*parts)) == sum(map(len, parts))
    assert len(dataset.vocabulary.labels) == 18


def test_shakespeare_has_all_its_characters(real_data: Path, recipes: Path) -> None:
    """1,115,394 characters, of which the last tenth is for validation; 65 are distinct."""
    pieces = running(real_data / "tinyshakespeare/input.txt", data_of("text"))
    text = "".join(piece.text for piece in pieces)
    assert (len(text), len(set(text))) == (1_115_394, 65)
    dataset = load(Recipe.load(recipes / "tinyshakespeare.toml"), real_data)
    assert dataset.dev is not None
    assert dataset.test is None
    assert (dataset.train.rows.characters, dataset.dev.rows.characters) == (1_003_854, 111_538)

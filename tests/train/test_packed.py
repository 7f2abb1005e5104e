"""Packed examples are the examples, in memory and in the cache, whoever builds it and whatever became of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.errors import DataError
from ohlol.train import batches as batches_module
from ohlol.train import data as data_module
from ohlol.train import packed as packed_module
from ohlol.train.data import load
from ohlol.train.loop import train
from ohlol.train.packed import Examples, Packed, cached, pack
from ohlol.train.readers import Example
from ohlol.train.recipe import Recipe

texts = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)  # lone surrogates too
labels = st.text(min_size=1, max_size=3)
tagged = texts.flatmap(
    lambda text: st.tuples(st.just(text), st.lists(labels, min_size=len(text), max_size=len(text)).map(tuple))
)
answered = {
    "tag": tagged,
    "classify": st.tuples(texts, labels.map(lambda label: (label,))),
    "lm": st.tuples(texts, st.just(())),
}


@pytest.mark.parametrize("task", answered)
@given(data=st.data())
def test_what_is_packed_is_unpacked(tmp_path_factory: pytest.TempPathFactory, task: str, data: Any) -> None:
    """The same texts, labels and lines, in memory and on disk, in a part of them, forgotten or not."""
    pairs = data.draw(st.lists(answered[task], min_size=1, max_size=20))
    lines = data.draw(st.lists(st.integers(1, 2**40), min_size=len(pairs), max_size=len(pairs)))
    examples = [Example(text, own, line) for (text, own), line in zip(pairs, lines, strict=True)]
    part = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=5)), dtype=np.int64)
    facts = {"examples": [*map(repr, examples)], "task": task}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_module, "BLOCK", data.draw(st.sampled_from([1, 30, 1 << 20])))
        folder = tmp_path_factory.getbasetemp() / "cache"
        both = pack(examples, task == "classify"), cached(examples, task == "classify", facts, folder)
    for packed in both:
        assert examples == list(Examples(packed))
        packed.forget()
        assert [text for (text, _) in pairs] == list(Examples(packed).texts())
        assert [examples[k] for k in part] == list(Examples(packed, part))
        assert packed.codes.dtype == np.min_scalar_type(packed.highest)


def tagging(folder: Path, size: int = 40, **changes: Any) -> Recipe:
    """Rows of two columns of text, so that another one can be read; some long enough to be cut."""
    words = ["hello", "naïve", "日本", "a 😀 b", "ohlol and more of it"]
    rows = [f"{w}\t{w[::-1]}\t{'x' * len(w)}\n" for w in (words * size)[:size]]
    (folder / "train").write_text("".join(rows), encoding="utf-8")
    data = {"format": "tsv", "train": "train", **changes.pop("data", {})}
    tables = {"data": data, "model": {"hidden_size": 4, "embedding_size": 3}, "train": {"epochs": 2}}
    return Recipe.parse({"task": {"kind": "tag"}, **tables, **changes}, "it")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file, however small, goes to this cache."""
    monkeypatch.setattr(data_module, "CACHE_FROM", 0)
    monkeypatch.setenv("OHLOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    "keys", [{}, {"max_length": 4}, {"split": [0.7, 0.3, 0.0], "max_length": 4}, {"split": [0.7, 0.3, 0.0]}]
)
@pytest.mark.parametrize("singly", [1 << 20, 7])
def test_from_the_cache_training_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], singly: int
) -> None:
    """To the byte, also where neighbours are shuffled together; built now or found."""
    monkeypatch.setattr(batches_module, "SHUFFLED_SINGLY", singly)
    monkeypatch.setenv("OHLOL_CACHE", str(tmp_path / "cache"))
    recipe, found = tagging(tmp_path, data=keys), set()
    for name, limit in (("memory", 1 << 30), ("built", 0), ("found", 0)):
        monkeypatch.setattr(data_module, "CACHE_FROM", limit)
        train(recipe, load(recipe, tmp_path), tmp_path / name)
        found.add((tmp_path / name / "last" / "model.safetensors").read_bytes())
    assert len(found) == 1
    assert entries(tmp_path / "cache")


def test_a_batch_is_let_go_while_it_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows lie anywhere, and for each the system may map 2 MB: a large batch would map a large file."""
    rows = load(tagging(tmp_path, size=100), tmp_path).train.rows
    forgotten = []
    monkeypatch.setattr(Packed, "forget", lambda packed: forgotten.append(packed))
    rows.batch(np.arange(100))
    assert len(forgotten) >= 100 // packed_module.FEW


def test_the_name_follows_what_is_read(tmp_path: Path, cache: Path) -> None:
    """Another content or way to read it is another entry; what is done with it later is not."""
    (tmp_path / "same").mkdir()
    for same in ({}, {"train": {"epochs": 9}}, {"model": {"hidden_size": 9}}, {"data": {"min_count": 2}}):
        load(tagging(tmp_path, **same), tmp_path)
        assert len(entries(cache)) == 1, same
    count = 1
    for other in (
        {"label": 2},
        {"normalisation": "NFD", "label": 2},
        {"max_length": 5},
        {"label_separator": ""},
    ):
        if other.get("normalisation") == "NFD":
            (tmp_path / "train").write_text("a\ta\tx\n")
            load(
                Recipe.parse(
                    {"task": {"kind": "tag"}, "data": {"format": "tsv", "train": "train", **other}}, "it"
                ),
                tmp_path,
            )
        else:
            load(tagging(tmp_path, data=other), tmp_path)
        count += other != {"label_separator": ""}
        assert len(entries(cache)) == count, other
    load(tagging(tmp_path, size=41), tmp_path)
    assert len(entries(cache)) == count + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: os.truncate(entry / "codes", 3),
        lambda entry: (entry / "offsets").unlink(),
        lambda entry: (entry / "facts.json").write_text("[]"),
        lambda entry: (entry / "facts.json").write_text('{"names": 3}'),
        lambda entry: (entry / "facts.json").write_text("{"),
    ],
    ids=["truncated", "missing", "list", "foreign", "torn"],
)
def test_a_damaged_entry_is_built_anew(tmp_path: Path, cache: Path, damage: Any) -> None:
    """Nobody has to know what a cache is; the file it was made of is there."""
    recipe = tagging(tmp_path)
    expected = list(load(recipe, tmp_path).train.examples)
    (name,) = entries(cache)
    damage(cache / name)
    assert list(load(recipe, tmp_path).train.examples) == expected
    assert entries(cache) == {name}


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, cache: Path) -> None:
    """The folder and the variable that names another one."""
    cache.write_text("a file")
    with pytest.raises(
        DataError, match=re.escape(f"{cache}: the packed data cannot be kept") + ".*OHLOL_CACHE"
    ):
        load(tagging(tmp_path), tmp_path)


SLOW = """
import sys, time
from pathlib import Path
from ohlol.train.packed import Examples, cached
from ohlol.train.readers import Example

def examples():
    for number in range(200):
        print(number, flush=True)
        time.sleep(0.005)
        yield Example(f"text {number}", (), number)

print(len(cached(examples(), False, {"a": "b"}, Path(sys.argv[1]))), "examples")
"""


def builder(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(cache)], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_one_entry(tmp_path: Path) -> None:
    """The second one waits for the first, reads nothing itself, and both have all of it."""
    with builder(tmp_path) as one, builder(tmp_path) as two:
        said = [one.communicate()[0], two.communicate()[0]]
    assert all(text.endswith("200 examples\n") for text in said)
    assert sorted(len(text.splitlines()) for text in said) == [1, 201]
    assert len(entries(tmp_path)) == 1


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    """No half entry; the next one builds all of it."""
    with builder(tmp_path) as killed:
        assert killed.stdout is not None
        while killed.stdout.readline().strip() != "20":
            pass
        killed.send_signal(signal.SIGKILL)
    assert [name[0] for name in entries(tmp_path)] == ["."]
    with builder(tmp_path) as after:
        assert after.communicate()[0].endswith("200 examples\n")
    (name,) = entries(tmp_path)
    assert name[0] != "."
    assert json.loads((tmp_path / name / "facts.json").read_bytes())["highest"] == ord("x")


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc says what is in memory, on Linux")
def test_forgetting_gives_memory_back(tmp_path: Path) -> None:
    """What was read from the cache is in memory until it is let go, and can be read again."""
    size = 64 << 20
    examples = (Example("x" * (1 << 20), (), number) for number in range(size >> 20))
    packed: Packed = cached(examples, False, {}, tmp_path)
    before = resident()
    total = int(packed.codes.sum(dtype=np.int64))
    read = resident()
    packed.forget()
    assert read - before > size // 2
    assert read - resident() > size // 2
    assert total == int(packed.codes.sum(dtype=np.int64))

"""The report: a page that any browser shows, whatever stands in the data, with the right figures."""

from __future__ import annotations

import logging
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.run import Layout
from ohlol.train import report, worst
from ohlol.train.certainty import surprises
from ohlol.train.checkpoint import load_network
from ohlol.train.confusion import Confusion
from ohlol.train.data import load
from ohlol.train.evaluate import answers, evaluate_network
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe
from ohlol.train.report import measured, visible, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>&amp;"
RIGHT_TO_LEFT, ACCENT = "\u202eabc", "\u0301e"
TEXTS = [HOSTILE, RIGHT_TO_LEFT, ACCENT, "\x00\x07\x1b[31m", "שלום", "a\nb", "plain", "other", "ab" * 600]
LABELS = ["<b>one</b>", "二", "\u202ethree"]


class Page(HTMLParser):
    """A page's elements as (tag, attributes, text); what is not closed in order fails."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that are never closed"

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, kind=None):
        return [e for e in self.elements if e[0] == tag and kind in (None, *e[1].get("class", "").split())]

    def texts(self, tag, kind=None):
        return [text for _, _, text in self.all(tag, kind)]

    def table(self, kind):
        """The cells of the table of that class, row by row."""
        start = next(k for k, e in enumerate(self.elements) if e[0] == "table" and e[1].get("class") == kind)
        rows = []
        for tag, _, text in self.elements[start + 1 :]:
            if tag == "table":
                break
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(text)
        return rows


def trained(folder, task, data, epochs=1, **model):
    """A small run on `data`, and its parts."""
    raw = {
        "task": {"kind": task},
        "data": data,
        "model": {"hidden_size": 4, "embedding_size": 4, **model},
        "train": {"epochs": epochs, "learning_rate": 0.01},
    }
    recipe = Recipe.parse(raw, "a recipe")
    parts = load(recipe, folder)
    finish(train(recipe, parts, folder / "run"), parts)
    return load_network(folder / "run")[0], parts


def page_of(folder, network, split, name="train"):
    return Page(write_report(folder / "run", network, name, split).read_text(encoding="utf-8"))


@pytest.fixture
def hostile(tmp_path):
    """A classifier of texts that would like to be more than text."""
    rows = [[text, LABELS[k % 3]] for k, text in enumerate(TEXTS * 4)]
    return (*trained(tmp_path, "classify", {"format": "inline", "rows": rows}), tmp_path)


def test_text_stays_text(hostile):
    """Markup shows as text, signs that turn or break a page show as what they are, and nothing runs or loads."""
    network, data, folder = hostile
    page = page_of(folder, network, data.train)
    raw = (folder / "run" / Layout.report).read_text(encoding="utf-8")
    assert {tag for tag, _, _ in page.elements} & {"script", "b"} == {"b"}
    assert "<b>one</b>" in page.texts("td") + page.texts("th")
    assert not any(LABELS[0] in text for text in page.texts("b"))
    for character in raw:
        assert character == "\n" or (character.isprintable()), f"U+{ord(character):04X}"
    linked = [value for _, a, _ in page.elements for key, value in a.items() if key in ("src", "href")]
    assert linked
    assert all(value.startswith("data:") for value in linked)
    assert not re.search(r"url\(|@import|https?:", raw)
    assert "default-src 'none'" in raw


def test_what_is_shown_of_a_character_that_has_no_sign():
    """Each is told from the others; letters of every script stay as they are."""
    assert visible("a\tb\nc\x7f\u202e\u200d\ud800\ufeff") == "a␉b↵\nc[U+007F][U+202E][U+200D][U+D800][U+FEFF]"
    assert visible("\u0301e") == "◌\u0301e"
    assert visible("Tiếng Việt שלום 漢字 ไทย") == "Tiếng Việt שלום 漢字 ไทย"
    assert visible("") == ""


def test_the_figures_are_those_of_the_answers(hostile):
    """Matrix, table of labels and worst examples, recounted one answer at a time."""
    network, data, folder = hostile
    page = page_of(folder, network, data.train)
    labels = data.vocabulary.labels
    names = [visible(label) for label in labels]
    pairs = [
        (labels[gold], labels[ids[0]])
        for gold, ids in zip(data.train.rows.targets, answers(network, data.train), strict=True)
    ]
    head, *rows = page.table("matrix")
    assert head[1:] == names == [row[0] for row in rows]
    for gold, row in zip(labels, rows, strict=True):
        assert [int(cell or 0) for cell in row[1:]] == [pairs.count((gold, p)) for p in labels]

    scores = {row[0]: row[1:] for row in page.table("scores")[1:]}
    assert set(scores) == set(names)
    for label, name in zip(labels, names, strict=True):
        right = pairs.count((label, label))
        support, found = sum(g == label for g, _ in pairs), sum(p == label for _, p in pairs)
        expected = [
            f"{part / whole:.3f}" if whole else "–"
            for part, whole in ((right, found), (right, support), (2 * right, support + found))
        ]
        assert scores[name] == [*expected, str(support)]

    shown = page.table("worst")[1:]
    assert [float(row[3]) for row in shown] == sorted((float(row[3]) for row in shown), reverse=True)
    assert len(shown) == min(sum(g != p for g, p in pairs), worst.SHOWN)
    assert all(row[1] != row[2] for row in shown)
    assert all(len(row[0]) < worst.LONGEST * 2 for row in shown), "long texts are cut"
    accuracy = sum(g == p for g, p in pairs) / len(pairs)
    assert f"accuracy {accuracy:.4f}" in " ".join(page.texts("p")).replace("\n", " ")


def test_the_probability_is_that_of_the_answer(tmp_path):
    """The worst examples name the probability that a text alone, unpadded, gets."""
    rows = [[word, label] for word in ("a", "bb", "ccc", "dddd") for label in ("x", "y")]
    network, data = trained(tmp_path, "classify", {"format": "inline", "rows": rows}, bidirectional=True)
    for text, gold, answer, probability in page_of(tmp_path, network, data.train).table("worst")[1:]:
        ids = torch.from_numpy(data.vocabulary.alphabet.encode(text))[None]
        alone = network(ids, torch.tensor([len(text)])).softmax(-1)[0].detach()
        assert gold != answer == data.vocabulary.labels[alone.argmax()]
        assert float(probability) == pytest.approx(float(alone.max()), abs=6e-4)


def test_a_tagged_row_shows_its_mistakes(tmp_path):
    """The wrong characters are marked with gold and answer; the text is otherwise there as it is."""
    rows = [["hello world <i>", "AAAAABAAAAABCCC"], ["oh", "AB"]]
    network, data = trained(tmp_path, "tag", {"format": "inline", "rows": rows})
    page = page_of(tmp_path, network, data.train)
    shown = page.texts("p", "text")
    labels = data.vocabulary.labels
    for (text, gold), ids in zip(rows, answers(network, data.train), strict=True):
        wrong = {f"{g} → {labels[k]}" for g, k in zip(gold, ids, strict=True) if g != labels[k]}
        for note in wrong:
            assert note in page.texts("rt")
        if wrong:
            assert text in [re.sub(r". → .", "", line) for line in shown]


def test_words_stand_as_they_are_divided(tmp_path):
    """Gold first, then the answer; joined, either line is the text, and what only one has is marked."""
    rows = [["xin chào Việt Nam.", "SIIOBIIIOBIIIIIIIB"], ["ab cd", "SIOBI"]]
    data = {"format": "inline", "rows": rows, "label_scheme": "words"}
    network, parts = trained(tmp_path, "tag", data)
    lines = page_of(tmp_path, network, parts.train).texts("p", "text")
    assert sorted(lines) == sorted(text for text, _ in rows for _ in range(2))

    gold, found = "SIOBIIBI", "SIOBIIII"
    windows = [(0, len(gold))]
    pieces = list(worst._words("ab cdefg", gold, found, windows))
    assert [(p.text, p.kind) for p in pieces] == [
        ("ab", "word sentence"), (" ", ""), ("cde", "word wrong"), ("fg", "word wrong"),
    ]  # fmt: skip
    pieces = list(worst._words("ab cdefg", found, gold, windows))
    assert [(p.text, p.kind) for p in pieces][2:] == [("cdefg", "word wrong")]


def test_a_long_row_is_shown_around_its_mistakes():
    """What is left out has a mark; every mistake is inside a window until there is enough."""
    wrong = np.zeros(10_000, dtype=bool)
    wrong[[500, 510, 9_990]] = True
    windows = worst._around(wrong)
    around = worst.AROUND
    assert windows == [(500 - around, 511 + around), (9_990 - around, 10_000)]
    assert list(worst._with_gaps(windows, 10_000)) == [(-1, -1), windows[0], (-1, -1), windows[1]]
    wrong[:] = True
    assert sum(end - start for start, end in worst._around(wrong)) <= worst.LONGEST + 2 * around + 1


def test_passages_with_the_most_surprise(tmp_path):
    """The figure of each character is −ln p of it; an accent's is its letter's too."""
    whole = "the cat sat on the mat\n<em>\n" * 20 + "zzyxq e\u0301\u0323 zz"
    (tmp_path / "t.txt").write_text(whole, "utf-8")
    rows = [whole[k : k + 41] for k in range(0, len(whole) - 1, 40)]
    data = {"format": "text", "train": "t.txt", "sequence_length": 40, "normalisation": "none"}
    network, parts = trained(tmp_path, "lm", data)
    nats = surprises(network, parts.train)
    metrics = evaluate_network(network, parts.train, parts.vocabulary)
    total = sum(float(row.sum(dtype=float)) for row in nats)
    assert total / len(parts.train.rows.targets) == pytest.approx(metrics["nats_per_character"], rel=1e-5)

    page = page_of(tmp_path, network, parts.train)
    texts = page.texts("p", "nats")
    order = np.argsort([-row.mean() for row in nats], kind="stable")
    assert texts == [visible(rows[k]) for k in order[: worst.SHOWN]]

    k = next(k for k, row in enumerate(rows) if "e\u0301\u0323" in row)
    text = rows[k]
    where = text.index("e\u0301\u0323")
    pieces = list(worst._shaded(text, [None, *nats[k].tolist()]))
    assert pieces[0].nats is None
    cluster = next(piece for piece in pieces if piece.text == "e\u0301\u0323")
    assert cluster.nats == pytest.approx(float(nats[k][where - 1 : where + 2].sum()), rel=1e-5)
    ids = torch.from_numpy(parts.vocabulary.alphabet.encode(text))
    logits = network(ids[None, :-1], torch.tensor([len(ids) - 1]))[0].log_softmax(-1)
    alone = -logits[torch.arange(len(ids) - 1), ids[1:]]
    assert nats[k] == pytest.approx(alone.detach().numpy(), abs=1e-4)


def test_a_passage_is_shown_as_it_is_read():
    """A character that the network does not know is one sign, whatever it is."""
    assert "".join(worst._character(k, Alphabet("ab")) for k in (2, 1, 3)) == "a�b"


def test_the_worst_part_of_a_long_row():
    """Where a row is longer than what is shown, the part with the most nats is."""
    nats = np.full(2_000, 0.1, dtype=np.float32)
    nats[1_200 : 1_200 + worst.LONGEST] = 3.0
    assert worst._heaviest(nats) == 1_201  # of the text, whose first character has no nats
    assert worst._heaviest(nats[:10]) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60), st.integers(1, 6))
def test_the_confusion_by_counting(pairs, most):
    """Small and sparse, it holds what counting pair by pair finds; every mistake is among the most confused."""
    gold, predicted = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    confusion = Confusion.of(gold, predicted, "abcdef")
    every = confusion.matrix(range(6))
    assert every.tolist() == [[pairs.count((g, p)) for p in range(6)] for g in range(6)]
    ids = confusion.most_confused(most)
    assert len(ids) == most
    assert confusion.matrix(ids).tolist() == every[np.ix_(ids, ids)].tolist()
    mistakes = [(every + every.T)[k].sum() - 2 * every[k, k] for k in range(6)]
    assert sum(mistakes[k] for k in ids) == sum(sorted(mistakes)[-most:])
    frequent = confusion.most_frequent(most)
    assert all(g != p for g, p, _ in frequent)
    counts = sorted((every[g, p] for g in range(6) for p in range(6) if g != p), reverse=True)
    assert [count for _, _, count in frequent] == [count for count in counts[:most] if count]
    f1 = [score.f1 for score in confusion.scores() if score.f1 is not None]
    assert f1 == sorted(f1)


def test_many_labels(tmp_path):
    """The most confused ones are in the matrix, all in the table; the page stays small."""
    rows = [[f"{k}", f"label {k:03}"] for k in range(150)]
    network, data = trained(tmp_path, "classify", {"format": "inline", "rows": rows})
    page = page_of(tmp_path, network, data.train)
    assert len(page.table("matrix")) == report.MOST + 1
    assert {row[0] for row in page.table("scores")[1:]} == {label for _, label in rows}
    assert "Of 150 labels, the 40 that are confused most" in "".join(page.texts("p"))
    assert (tmp_path / "run" / Layout.report).stat().st_size < 300_000


def test_the_same_run_has_the_same_report(hostile):
    """Written anew, byte for byte; matplotlib's logger is left as it was, and said nothing."""
    network, data, folder = hostile
    level = logging.getLogger("matplotlib").level
    first = write_report(folder / "run", network, "train", data.train).read_bytes()
    assert write_report(folder / "run", network, "train", data.train).read_bytes() == first
    assert logging.getLogger("matplotlib").level == level


def test_curves():
    """A plot for each kind of figure that the history has; none where there is no history."""
    history = [{"epoch": k, "loss": 1 / k, "dev_accuracy": 0.5, "learning_rate": 0.1} for k in (1, 2, 3)]
    titles = [title for title, _ in report.curves(history, best_epoch=2)]
    assert titles == ["loss", "dev metrics", "learning rate"]
    assert [title for title, _ in report.curves([{"epoch": 1, "loss": math.pi}], 1)] == ["loss"]
    assert report.curves([], 0) == []


def test_nothing_trained_and_nothing_wrong(tmp_path):
    """A run of no epochs has a page; so has a network that makes no mistake."""
    network, data = trained(tmp_path, "tag", {"format": "inline", "rows": [["ab", "XX"]]}, epochs=0)
    told = "".join(page_of(tmp_path, network, data.train).texts("p"))
    assert "No epoch is complete." in told
    assert "There is no mistake in train." in told


def test_which_split_is_measured():
    """dev where there is one, else test, else train."""

    def of(**data):
        raw = {"task": {"kind": "tag"}, "data": {"format": "tsv", "train": "t", **data}}
        return measured(Recipe.parse(raw, "a recipe"))

    assert [of(), of(dev="d", test="t"), of(test="t")] == ["train", "dev", "test"]
    assert [of(split=[0.5, 0.5, 0.0]), of(split=[0.5, 0.0, 0.5])] == ["dev", "test"]

"""Every data format: what is read, and what is said about what cannot be."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import DataError
from ohlol.artifacts.words import sentence_spans, word_spans
from ohlol.train import conllu, readers
from ohlol.train.readers import Example, read, read_inline, running
from ohlol.train.recipe import Data

Pair = tuple[str, tuple[str, ...]]


def options(form: str, **keys: Any) -> Data:
    return Data.model_validate({"format": form, "train": "it", **keys})


def write(folder: Path, content: str | bytes, name: str = "it") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def whole(path: Path, data: Data) -> str:
    return "".join(example.text for example in running(path, data))


def pairs(folder: Path, content: str | bytes, form: str, task: Task = "tag", **keys: Any) -> list[Pair]:
    """The texts and labels of a file with this content."""
    return [(e.text, e.labels) for e in read(write(folder, content), options(form, **keys), task)]


def refusal(folder: Path, content: str | bytes, form: str, task: Task = "tag", **keys: Any) -> list[str]:
    """The lines of the error, each without the path."""
    with pytest.raises(DataError) as caught:
        pairs(folder, content, form, task, **keys)
    return [line.removeprefix(f"{folder / 'it'}") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("form", "content", "task", "keys", "expected"),
    [
        ("tsv", "ab\txy\nc\tz\n", "tag", {}, [("ab", ("x", "y")), ("c", ("z",))]),
        ("tsv", "ab\txy", "tag", {}, [("ab", ("x", "y"))]),
        ("tsv", "ab\tB I\n", "tag", {"label_separator": " "}, [("ab", ("B", "I"))]),
        ("tsv", "1\txy\tab\n", "tag", {"text": 2, "label": 1}, [("ab", ("x", "y"))]),
        ("tsv", "Smith\tEnglish\n", "classify", {}, [("Smith", ("English",))]),
        ("tsv", "ab\nc\n", "lm", {}, [("ab", ()), ("c", ())]),
        ("tsv", "x\tab\n", "lm", {"text": 1}, [("ab", ())]),
        ("tsv", ' a"b \tx,y"z\n', "tag", {}, [(' a"b ', tuple('x,y"z'))]),
        ("jsonl", '{"text": "ab", "label": "xy"}\n', "tag", {}, [("ab", ("x", "y"))]),
        ("jsonl", '{"label": ["B", "I"], "text": "ab", "n": 1}\n', "tag", {}, [("ab", ("B", "I"))]),
        ("jsonl", '{"n": "ab", "l": "E"}\n', "classify", {"text": "n", "label": "l"}, [("ab", ("E",))]),
        ("jsonl", '{"text": "a\\nb"}\n', "lm", {}, [("a\nb", ())]),
        ("csv", "text,label\nab,xy\n", "tag", {}, [("ab", ("x", "y"))]),
        ("csv", "id,y,x\n1,E,ab\n", "classify", {"text": "x", "label": "y"}, [("ab", ("E",))]),
        ("csv", 'text,label\n"a,""b""",E\n', "classify", {}, [('a,"b"', ("E",))]),
        ("csv", 'text,label\n"a\nb",E\n', "classify", {}, [("a\nb", ("E",))]),
        ("csv", 'text\n"a\r\n\r\nb"\r\n', "lm", {}, [("a\n\nb", ())]),
    ],
)
def test_rows_are_read(
    tmp_path: Path, form: str, content: str, task: Task, keys: dict[str, Any], expected: list[Pair]
) -> None:
    """Each format with its options, for each task it serves."""
    assert expected == pairs(tmp_path, content, form, task, **keys)


SIMPLE = {
    "tsv": "ab\txy\ncd\tzz\n",
    "jsonl": '{"text": "ab", "label": "xy"}\n{"text": "cd", "label": "zz"}\n',
    "csv": "text,label\nab,xy\ncd,zz\n",
}
TWO = [("ab", ("x", "y")), ("cd", ("z", "z"))]


@pytest.mark.parametrize("form", SIMPLE)
@pytest.mark.parametrize(
    "variant",
    [
        lambda raw: raw,
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace(b"\n", b"\n\n"),
        lambda raw: raw.replace(b"\n", b"\r\n\r\n"),
        lambda raw: raw.rstrip(b"\n"),
    ],
    ids=["plain", "CRLF", "BOM", "blank lines", "blank CRLF lines", "no last newline"],
)
def test_line_ends_marks_and_blank_lines_do_not_matter(tmp_path: Path, form: str, variant: Any) -> None:
    """A file from another system reads the same."""
    assert pairs(tmp_path, variant(SIMPLE[form].encode()), form) == TWO


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize(("form", "row"), [("tsv", "a{}b\tE\n"), ("csv", "text,label\na{}b,E\n")])
def test_only_a_newline_ends_a_line(tmp_path: Path, form: str, row: str, separator: str) -> None:
    """The characters that `str.splitlines` splits at are characters like others."""
    expected = [(f"a{separator}b", ("E",))]
    assert expected == pairs(tmp_path, row.format(separator), form, "classify", normalisation="none")
    line = json.dumps({"text": f"a{separator}b", "label": "E"}, ensure_ascii=False)
    assert expected == pairs(tmp_path, line, "jsonl", "classify", normalisation="none")


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    """An example knows its line, blank lines and quoted newlines counted; a row's line is its first."""
    data = options("csv")
    path = write(tmp_path, 'text,label\n\n"a\nb",E\nc,E\n')
    assert [example.line for example in read(path, data, "classify")] == [3, 5]
    path = write(tmp_path, "a\tx\n\nb\tx\n")
    assert [example.line for example in read(path, options("tsv"), "classify")] == [1, 3]


@pytest.mark.parametrize(
    ("form", "content", "task", "keys", "expected"),
    [
        ("tsv", "ab\txy\nabc\n", "tag", {}, [":2: 1 column(s) between tabs, expected 2 or more"]),
        ("tsv", "a\tx\n", "tag", {"label": 4}, [":1: 2 column(s) between tabs, expected 5 or more"]),
        ("tsv", "ab\tx\n", "tag", {}, [":1: 2 characters but 1 labels"]),
        ("tsv", "ab\tB I O\n", "tag", {"label_separator": " "}, [":1: 2 characters but 3 labels"]),
        ("tsv", "\tx\n", "tag", {}, [":1: the text is empty"]),
        ("tsv", "a\t\n", "classify", {}, [":1: the label should be a string, found ''"]),
        ("tsv", "a\tx\n", "tag", {"text": "name"}, [": data.text is 'name', format tsv expects a column's number"]),
        ("tsv", "a\tx\n", "tag", {"label": -1}, [": data.label is -1, format tsv expects a column's number"]),
        ("csv", "text,label\na,x\n", "tag", {"text": 0}, [": data.text is 0, format csv expects a name"]),
        ("csv", "text,lable\na,x\n", "tag", {}, [":1: no column 'label'; the header has text, lable"]),
        ("csv", "", "tag", {}, [":1: no column 'text'; the header has nothing"]),
        ("csv", "text,label\na,x,y\n", "tag", {}, [":2: 3 fields, the header has 2"]),
        ("csv", 'text,label\n"a,x\n\nb\n', "tag", {}, [":2: not CSV: unexpected end of data"]),
        ("csv", 'text,label\na,x\n"a"b,x\n', "tag", {}, [":3: not CSV: "]),
        ("jsonl", '{"text": "a"\n', "tag", {}, [":1: not JSON: "]),
        ("jsonl", "[" * 100_000, "tag", {}, [":1: not JSON: "]),
        ("jsonl", "[1]\n", "tag", {}, [":1: expected an object with 'text' and 'label'"]),
        ("jsonl", '{"text": "a"}\n', "tag", {}, [":1: expected an object with 'text' and 'label'"]),
        ("jsonl", '{"text": "a", "label": 1}\n', "tag", {}, [":1: 'text' and 'label' should be strings"]),
        ("jsonl", '{"text": 1, "label": "a"}\n', "tag", {}, [":1: 'text' and 'label' should be strings"]),
        ("jsonl", '{"text": "a", "label": ["E"]}', "classify", {}, [":1: the label should be a string, found ['E']"]),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_reported(
    tmp_path: Path, form: str, content: str, task: Task, keys: dict[str, Any], expected: list[str]
) -> None:
    """The message names file, line and reason."""
    found = refusal(tmp_path, content, form, task, **keys)
    assert len(expected) == len(found)
    assert all(have.startswith(want) for want, have in zip(expected, found, strict=True)), found


@pytest.mark.parametrize("form", SIMPLE)
def test_bytes_that_are_no_text_are_reported_with_their_line(tmp_path: Path, form: str) -> None:
    """A byte that is not UTF-8 is reported with line and column, and later lines keep their numbers."""
    first, rest = SIMPLE[form].encode().split(b"\n", 1)
    header = [first] if form == "csv" else []
    bad = [*header, b"a\xffb", rest.split(b"\n")[0] if form != "csv" else first, b"\xfe"]
    start = len(header) + 1
    found = refusal(tmp_path, b"\n".join(bad), form, "lm" if form == "tsv" else "classify")
    assert f":{start}: not UTF-8: byte 0xff at column 2" == found[0]
    assert f":{start + 2}: not UTF-8: byte 0xfe at column 1" == found[-1]


def test_a_bad_byte_does_not_shift_the_lines_of_csv(tmp_path: Path) -> None:
    """A mistake after a line that is no text is reported where it is."""
    found = refusal(tmp_path, b"text,label\n\xff,x\nab,x\n", "csv")
    assert found == [":2: not UTF-8: byte 0xff at column 1", ":3: 2 characters but 1 labels"]


def test_a_csv_header_that_is_no_text_is_reported_as_that(tmp_path: Path) -> None:
    """The cause is told, not that columns are missing."""
    assert refusal(tmp_path, b"\xfftext,label\nab,xy\n", "csv")[0] == ":1: not UTF-8: byte 0xff at column 1"


def test_mistakes_are_reported_together_up_to_a_limit(tmp_path: Path) -> None:
    """Twenty mistakes are shown, the rest are counted."""
    found = refusal(tmp_path, "ab\tx\n" * 20, "tsv")
    assert [f":{line}: 2 characters but 1 labels" for line in range(1, 21)] == found
    found = refusal(tmp_path, "ab\tx\n" * 23, "tsv")
    assert (len(found), found[-1]) == (21, "… and 3 more")


def test_mistakes_of_a_folder_keep_to_the_limit(tmp_path: Path) -> None:
    """Twenty in all, not twenty a file."""
    for name in ("a.txt", "b.txt"):
        write(tmp_path, b"\xff\n" * 15, name)
    with pytest.raises(DataError) as caught:
        read(tmp_path, options("folder"), "classify")
    *shown, last = str(caught.value).splitlines()
    assert [str(tmp_path / "a.txt")] * 15 + [str(tmp_path / "b.txt")] * 5 == [m.split(":")[0] for m in shown]
    assert last == "… and 10 more"


def test_labels_that_fit_the_text_before_normalisation_get_a_hint(tmp_path: Path) -> None:
    """Who labelled NFD text is told why the counts differ, and two ways out."""
    row = unicodedata.normalize("NFD", "é") + "\txy\n"
    (found,) = refusal(tmp_path, row, "tsv")
    assert found.startswith(":1: 1 characters but 2 labels; they fit the text before NFC normalisation")
    assert pairs(tmp_path, row, "tsv", normalisation="none") == [("e\u0301", ("x", "y"))]


@pytest.mark.parametrize(("form", "expected"), [("NFC", "é"), ("NFD", "e\u0301"), ("none", "e\u0301")])
def test_text_is_normalised_as_the_recipe_says(tmp_path: Path, form: str, expected: str) -> None:
    """What is counted, looked up and labelled is the normalised text."""
    assert [(expected, ("x",))] == pairs(tmp_path, "e\u0301\tx\n", "tsv", "classify", normalisation=form)
    assert expected == whole(write(tmp_path, "e\u0301"), options("text", normalisation=form))


@pytest.mark.parametrize("form", ["tsv", "jsonl", "conllu"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, form: str, content: str) -> None:
    """Training on nothing is never what was meant."""
    assert refusal(tmp_path, content, form) == [": no examples in it"]


@pytest.mark.parametrize("form", ["tsv", "jsonl", "csv", "conllu", "folder"])
def test_missing_data_says_how_to_name_its_folder(tmp_path: Path, form: str) -> None:
    """Whose data lies elsewhere is told the option and the variable."""
    with pytest.raises(DataError, match=r"no such file or folder.*--data DIR or the variable OHLOL_DATA"):
        read(tmp_path / "none", options(form), "tag")


def test_file_and_folder_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    """The format says which of the two is expected."""
    with pytest.raises(DataError, match='format "folder" expects a folder'):
        read(write(tmp_path, "a"), options("folder"), "classify")
    with pytest.raises(DataError, match='format "tsv" expects a file'):
        read(tmp_path, options("tsv"), "tag")


def test_a_folder_has_a_file_for_each_label(tmp_path: Path) -> None:
    """The label is the file's name, in the order of names; other files and blank lines are left alone."""
    write(tmp_path, "Sato\r\n  \n Mori \n", "Japanese.txt")
    write(tmp_path, b"\xef\xbb\xbfSmith", "English.txt")
    write(tmp_path, "no", "README.md")
    (tmp_path / "old.txt").mkdir()
    expected = [
        Example("Smith", ("English",), 1),
        Example("Sato", ("Japanese",), 1),
        Example("Mori", ("Japanese",), 3),
    ]
    assert expected == read(tmp_path, options("folder"), "classify")


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    """A folder of the wrong kind is told what a right one holds."""
    with pytest.raises(DataError, match=r"no \*.txt files in it"):
        read(tmp_path, options("folder"), "classify")


def test_running_text_is_one_string(tmp_path: Path) -> None:
    """Every character counts, newlines and U+2028 too; only the mark at the start goes."""
    assert whole(write(tmp_path, "\ufeffa\r\nb\u2028\n"), options("text")) == "a\r\nb\u2028\n"


def test_running_text_in_pieces_is_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a long file is parted, normalisation joins what it would have joined."""
    text = "ae\u0301\n\u0301b\r\ncu\u031b\u0301\n" * 20 + "\u1100\u1161"
    monkeypatch.setattr(readers, "PIECE", 7)
    path = write(tmp_path, text)
    assert len(list(running(path, options("text")))) > 10
    assert whole(path, options("text")) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\nb\xff", ":2: not UTF-8: byte 0xff at column 2"), (b"", ": empty"), (b"\xef\xbb\xbf", ": empty")],
)
def test_running_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The line is named, and an empty file is not an empty model."""
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        whole(path, options("text"))
    assert f"{path}{message}" == str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        whole(tmp_path / "none", options("text"))


def test_inline_rows_are_read_like_a_files(tmp_path: Path) -> None:
    """Rows in the recipe are normalised and checked like all others."""
    data = Data.model_validate({"format": "inline", "rows": [["e\u0301a", "xy"]]})
    assert [Example("éa", ("x", "y"), 1)] == read_inline(data, "tag")
    wrong = Data.model_validate({"format": "inline", "rows": [["ab", "x"], ["", ""], ["a", "b"]]})
    with pytest.raises(DataError) as caught:
        read_inline(wrong, "tag")
    assert str(caught.value) == "data.rows:1: 2 characters but 1 labels\ndata.rows:2: the text is empty"


# CoNLL-U


def token(index: str, form: str, misc: str = "_") -> str:
    return "\t".join([index, form, *["_"] * 7, misc])


def sentence(*lines: str) -> str:
    return "\n".join(lines) + "\n\n"


GOOD = sentence(token("1", "Don"), token("2", "!", "SpaceAfter=No"))
MORE = sentence(token("1", "Go"))


@pytest.mark.parametrize(
    ("content", "text", "labels"),
    [
        (GOOD, "Don !", "SIIOB"),
        (sentence(token("1", "a", "SpaceAfter=No"), token("2", "b")), "ab", "SB"),
        (sentence(token("1", "a", "x=y|SpaceAfter=No|z=w"), token("2", "b")), "ab", "SB"),
        (
            sentence(token("1-2", "don't"), token("1", "do"), token("2", "not"), token("3", "x")),
            "don't x",
            "SIIIIOB",
        ),
        (
            sentence(token("1-2", "ab", "SpaceAfter=No"), token("1", "a"), token("2", "b"), token("3", ".")),
            "ab.",
            "SIB",
        ),
        (
            sentence(token("0.1", "gone"), token("1", "a"), token("1.1", "gone"), token("2", "b")),
            "a b",
            "SOB",
        ),
        (sentence(token("1", "học sinh"), token("2", "đi")), "học sinh đi", "SIIIIIIIOBI"),
        (
            sentence("# sent_id = 1", "#text = a b", "# text_en = c", token("1", "a"), token("2", "b")),
            "a b",
            "SOB",
        ),
        (sentence(token("1", "e\u0301a")), "éa", "SI"),
        (GOOD.rstrip("\n"), "Don !", "SIIOB"),
    ],
)
def test_a_sentence_is_rebuilt_with_its_labels(tmp_path: Path, content: str, text: str, labels: str) -> None:
    """Tokens are surfaces: several words in one, empty nodes, spaces inside words and SpaceAfter=No."""
    for raw in (content, content.replace("\n", "\r\n")):
        assert [(text, tuple(labels))] == pairs(tmp_path, raw, "conllu")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("sentence", ["Don !", "Go", "Go", "Go", "Go", "Don !"]),
        ("paragraph", ["Don !Go", "Go Go", "Go", "Don !"]),
        ("document", ["Don !Go\n\nGo Go", "Go\n\nDon !"]),
    ],
)
def test_rows_are_sentences_paragraphs_or_documents(tmp_path: Path, row: str, expected: list[str]) -> None:
    """Sentences of a row are joined as SpaceAfter=No says, paragraphs of a document by an empty line."""
    newdoc, newpar = "# newdoc id = x\n", "# newpar\n"
    content = newdoc + newpar + GOOD + MORE + newpar + MORE + MORE + newdoc + newpar + MORE + newpar + GOOD
    found = pairs(tmp_path, content, "conllu", row=row)
    assert expected == [text for text, _ in found]
    for text, labels in found:
        spans = [text[start:end] for start, end in sentence_spans(labels)]
        assert ["Go" if "G" in span else "Don !" for span in spans] == spans
        assert text.count("Go") + text.count("Don") == len(spans)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1\ta\n\n", ":1: 2 columns between tabs, CoNLL-U has 10"),
        (sentence("1 a _ _ _ _ _ _ _ _"), ":1: 1 columns between tabs, CoNLL-U has 10"),
        (sentence(token("x", "a")), ":1: no CoNLL-U token: ID 'x', FORM 'a'"),
        (sentence(token("1-", "a")), ":1: no CoNLL-U token: ID '1-', FORM 'a'"),
        (sentence(token("1", "")), ":1: no CoNLL-U token: ID '1', FORM ''"),
        (sentence("# text = a b", token("1", "ac")), ":2: `# text` is 'a b', the tokens give 'ac'"),
        (
            sentence(token("1", "e", "SpaceAfter=No"), token("2", "\u0301")),
            ":1: a token begins with a mark that joins the one before it under normalisation",
        ),
    ],
)
def test_conllu_that_cannot_be_read_is_reported(tmp_path: Path, content: str, expected: str) -> None:
    """A broken treebank is refused with the line."""
    assert expected == refusal(tmp_path, content, "conllu")[0]


FORMS = st.text(st.sampled_from("abé ệ1-.😀"), min_size=1, max_size=6).map(str.strip).filter(bool)


@given(st.lists(st.lists(st.tuples(FORMS, st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_rebuilt_text_is_what_the_treebank_says(sentences: list[list[tuple[str, bool]]]) -> None:
    """For any tokens, the text is `# text`, and its word spans are the tokens."""
    lines: list[str] = []
    texts = []
    for tokens in sentences:
        text = "".join(form + " " * space for form, space in tokens).strip()
        texts.append(text)
        lines.append(f"# text = {text}")
        for number, (form, space) in enumerate(tokens, start=1):
            lines.append(token(str(number), form, "_" if space else "SpaceAfter=No"))
        lines.append("")
    reported: list[tuple[int, str]] = []
    found = list(
        conllu.rows(
            enumerate(lines, start=1), "sentence", "NFC", lambda line, why: reported.append((line, why))
        )
    )
    assert reported == []
    assert texts == [text for text, _, _ in found]
    for (text, labels, _), tokens in zip(found, sentences, strict=True):
        assert [form for form, _ in tokens] == [text[start:end] for start, end in word_spans(labels)]
        assert [(0, len(text))] == sentence_spans(labels)

"""CoNLL-U: the text of a treebank, rebuilt, its characters labelled with word and sentence boundaries.

The text is the tokens' surface forms; a space follows each unless it says `SpaceAfter=No`. A token of
several words (`1-2 ...`) counts as its surface; empty nodes (`1.1`) do not count. Paragraphs begin at
`# newpar` and `# newdoc`. Format: https://universaldependencies.org/format.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ohlol.artifacts.alphabet import Form, normalise

Report = Callable[[int, str], None]  # line, reason


@dataclass
class Sentence:
    line: int
    text: str = ""
    labels: list[str] = field(default_factory=list)
    said: str | None = None  # what `# text =` says
    begins: Literal["", "paragraph", "document"] = ""
    ends_in_space: bool = True

    def add(self, form: str, space: bool) -> None:
        if self.text and self.ends_in_space:
            self.text += " "
            self.labels.append("O")
        self.labels += ["B" if self.text else "S"] + ["I"] * (len(form) - 1)
        self.text += form
        self.ends_in_space = space


def rows(
    lines: Iterable[tuple[int, str]],
    row: Literal["sentence", "paragraph", "document"],
    normalisation: Form,
    report: Report,
) -> Iterator[tuple[str, list[str], int]]:
    """`(text, labels, line)` of each sentence, paragraph or document."""
    text, first = "", 0
    labels: list[str] = []
    for sentence in sentences(lines, normalisation, report):
        new_row = row == "sentence" or sentence.begins == "document" or row == sentence.begins
        if text and new_row:
            yield _stripped(text, labels, first)
            text, labels = "", []
        elif text and sentence.begins == "paragraph":
            text, labels, _ = _stripped(text, labels, first)
            text, labels = text + "\n\n", [*labels, "O", "O"]
        if not text:
            first = sentence.line
        text += sentence.text
        labels += sentence.labels
        if sentence.ends_in_space:
            text += " "
            labels.append("O")
    if text:
        yield _stripped(text, labels, first)


def sentences(lines: Iterable[tuple[int, str]], normalisation: Form, report: Report) -> Iterator[Sentence]:
    """The sentences of a file; what cannot be read is reported and left out."""
    begins: Literal["", "paragraph", "document"] = ""
    sentence, inside, said = None, 0, None
    number = 0
    for number, line in lines:
        if line.startswith("#"):
            name, _, value = line[1:].strip().partition("=")
            if name.strip() == "text":
                said = value.strip()
            elif name.startswith("newdoc"):
                begins = "document"
            elif name.startswith("newpar"):
                begins = begins or "paragraph"
        elif line:
            if sentence is None:
                sentence = Sentence(number, said=said, begins=begins)
                begins, inside, said = "", 0, None
            inside = _token(sentence, number, line, inside, normalisation, report)
        elif sentence is not None:
            yield from _checked(sentence, normalisation, report)
            sentence = None
    if sentence is not None:
        yield from _checked(sentence, normalisation, report)


def _token(
    sentence: Sentence, number: int, line: str, inside: int, normalisation: Form, report: Report
) -> int:
    """Add one line's token. `inside` is the last word of the token of several words that is open."""
    fields = line.split("\t")
    if len(fields) != 10:
        report(number, f"{len(fields)} columns between tabs, CoNLL-U has 10")
        return inside
    index, form, misc = fields[0], fields[1], fields[9]
    first, dash, last = index.partition("-")
    if "." in index:
        return inside
    if not first.isdecimal() or (dash and not last.isdecimal()) or not form:
        report(number, f"no CoNLL-U token: ID {index!r}, FORM {form!r}")
        return inside
    if dash or int(first) > inside:
        sentence.add(normalise(form, normalisation), "SpaceAfter=No" not in misc.split("|"))
    return int(last) if dash else inside


def _checked(sentence: Sentence, normalisation: Form, report: Report) -> Iterator[Sentence]:
    said = None if sentence.said is None else normalise(sentence.said, normalisation)
    if said is not None and "".join(said.split()) != "".join(sentence.text.split()):
        report(sentence.line, f"`# text` is {said!r:.80}, the tokens give {sentence.text!r:.80}")
    elif normalise(sentence.text, normalisation) != sentence.text:
        report(sentence.line, "a token begins with a mark that joins the one before it under normalisation")
    elif sentence.text:
        yield sentence


def _stripped(text: str, labels: list[str], line: int) -> tuple[str, list[str], int]:
    return text.rstrip(), labels[: len(text.rstrip())], line

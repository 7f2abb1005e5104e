"""Characters to ids: the page table answers as a dictionary would, whatever the code point."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import (
    FORMS,
    PADDING,
    PAGE,
    RESERVED,
    UNKNOWN,
    Alphabet,
    Form,
    codepoints,
    normalise,
)
from ohlol.artifacts.errors import OhlolError

VARIED = "helo你好̣́ệ😀🏳‍\U0010fffd\U00020000 \t\n\x7f\x80\xff\u0100"
EDGES = [-(2**31), -1, 0, 1, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF, 0x110000, 2**31 - 1]

anything = st.text(st.characters(codec=None), max_size=30)
knowable = st.characters(exclude_categories=("Cs",), exclude_characters="\0") | st.sampled_from(VARIED)
alphabets = st.lists(knowable, unique=True, max_size=40).map("".join)
points = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 0x10FFFF) | st.sampled_from(EDGES))


def by_dictionary(alphabet: Alphabet, found: list[int]) -> list[int]:
    ids = {ord(character): number for number, character in enumerate(alphabet.characters, start=RESERVED)}
    return [ids.get(point, UNKNOWN) for point in found]


@given(alphabets, anything)
def test_encode_agrees_with_a_dictionary(characters: str, text: str) -> None:
    """Every text gets the ids that a plain look-up gives, lone surrogates and NUL included."""
    alphabet = Alphabet(characters)
    mixed = text + characters
    assert by_dictionary(alphabet, [ord(c) for c in mixed]) == alphabet.encode(mixed).tolist()


@given(alphabets, points)
def test_ids_agree_with_a_dictionary_for_any_number(characters: str, found: list[int]) -> None:
    """A number that is no code point is unknown, never another character's id."""
    alphabet = Alphabet(characters)
    near = [ord(character) + step for character in characters for step in (-PAGE, -1, 0, 1, PAGE)]
    every = np.array(found + near + EDGES, dtype=np.int32)
    assert by_dictionary(alphabet, every.tolist()) == alphabet.ids(every).tolist()


def test_ids_keep_the_shape_and_are_int64() -> None:
    """`ids (B, T)` come out as they went in, in the type that torch looks up by."""
    found = Alphabet("ehlo").ids(np.array([[104, 101], [0, -1]], dtype=np.int32))
    assert ((2, 2), np.int64) == (found.shape, found.dtype)
    assert found.tolist() == [[3, 2], [UNKNOWN, UNKNOWN]]


def test_known_ids_follow_padding_and_unknown() -> None:
    """0 is padding and 1 unknown: no character takes them, and no text gives padding."""
    alphabet = Alphabet("ba")
    assert (PADDING, UNKNOWN, RESERVED) == (0, 1, 2)
    assert alphabet.encode("ba\0").tolist() == [2, 3, 1]
    assert [alphabet.character(number) for number in range(len(alphabet))] == [None, None, "b", "a"]


def test_the_empty_alphabet_and_the_empty_text() -> None:
    """Nothing known and nothing asked are ordinary cases."""
    assert Alphabet("").encode("a\U0010ffff").tolist() == [1, 1]
    assert Alphabet("a").encode("").tolist() == []
    assert len(Alphabet("")) == 2


def test_page_table_is_small_for_scattered_characters() -> None:
    """Pages without a known character share one: a far emoji does not cost a table of a million entries."""
    pages, table = Alphabet("a😀\U0010ffff").page_table
    assert (len(pages), len(table)) == (0x10FF + 2, 4 * PAGE)


@given(anything)
def test_codepoints_are_those_of_the_text(text: str) -> None:
    """Every code point is there, in order, lone surrogates included."""
    found = codepoints(text)
    assert (np.int32, [ord(character) for character in text]) == (found.dtype, found.tolist())


@pytest.mark.parametrize("form", FORMS)
@given(text=anything)
def test_normalise_is_unicodes_own_form(form: Form, text: str) -> None:
    """A text is looked up in the form that the alphabet records; "none" leaves it alone."""
    expected = text if form == "none" else unicodedata.normalize(form, text)
    assert expected == Alphabet("", form).normalise(text)


def test_of_sorts_by_code_point() -> None:
    """The order of the texts does not change the ids."""
    assert Alphabet("aé你😀") == Alphabet.of(Counter("😀你éa")) == Alphabet.of(Counter("aé你😀"))


@pytest.mark.parametrize(("least", "expected"), [(1, "abc"), (2, "ab"), (3, "a"), (4, "")])
def test_min_count_leaves_rare_characters_out(least: int, expected: str) -> None:
    """Counts run over all texts together, and the limit itself is enough."""
    assert expected == Alphabet.of(Counter("aababc"), min_count=least).characters


def test_of_leaves_out_what_cannot_be_known() -> None:
    """NUL and lone surrogates in the data are unknown, not an error."""
    assert Alphabet.of(Counter("\0a\ud800\udfff")).characters == "a"


@pytest.mark.parametrize(
    ("characters", "form", "reason"),
    [
        ("aba", "NFC", "'a' stands there more than once"),
        ("a\0", "NFC", r"U\+0000"),
        ("a\ud800", "NFC", r"U\+D800"),
        ("a\udfff", "NFC", r"U\+DFFF"),
        ("a", "nfc", "normalisation is 'nfc', expected one of NFC, NFD, NFKC, NFKD, none"),
    ],
)
def test_alphabet_refuses(characters: str, form: Form, reason: str) -> None:
    """An alphabet that two doors would read differently is not made."""
    with pytest.raises(OhlolError, match=reason):
        Alphabet(characters, form)


# What is a mark, or becomes one when it is taken apart, and what stands between runs of them.
MARKS = [
    c
    for c in map(chr, range(0x300, 0x1F000))
    if any(map(unicodedata.combining, unicodedata.normalize("NFKD", c)))
]
floods = st.tuples(
    st.lists(st.sampled_from([*MARKS, *"ae\xe9한日が\ud800"]), min_size=1, max_size=12).map("".join),
    st.integers(1, 90),
)


@pytest.mark.parametrize("form", FORMS)
@given(parts=st.lists(floods, max_size=4))
def test_floods_of_marks_are_normalised_as_unicode_says(form: Form, parts: list[tuple[str, int]]) -> None:
    """Long runs are put into order by us, before Python would: the result is the same to the character."""
    text = "".join(part * times for part, times in parts)
    assert normalise(text, form) == (text if form == "none" else unicodedata.normalize(form, text))


def test_every_character_is_normalised_as_unicode_says() -> None:
    """All that Unicode has given a meaning, in one text, by every form."""
    text = "".join(map(chr, range(0x30000)))
    for form in FORMS[:-1]:
        assert normalise(text, form) == unicodedata.normalize(form, text)


def test_a_million_marks() -> None:
    """Python's own normalisation takes the square of their number, an hour for these; the limit is a net."""
    code = r"""
from ohlol.artifacts.alphabet import normalise
text = "e" + "\u0301\u0323\u0f73" * 333_333
assert len(normalise(text, "NFC")) > 1_000_000 - 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

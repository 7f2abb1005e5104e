"""Text that comes in pieces: how much of it no later piece can change, once it is normalised."""

from __future__ import annotations

import unicodedata

from ohlol.artifacts.alphabet import Form, normalise
from ohlol.artifacts.errors import InputError

MOST_HELD = 4_096  # characters that are held back; text that people write needs about 30


def ready(text: str, form: Form) -> tuple[str, str]:
    """`text`, cut: what is ready, in its normal form, and what a later piece could still change, as it is.

    Raises `InputError` where more than 4,096 characters would be held back.
    """
    cut = _safe(text, form)
    if len(text) - cut > MOST_HELD:
        raise InputError(
            f"{len(text) - cut:,} combining characters in a row: text in pieces is normalised ({form}) with at "
            f"most {MOST_HELD:,}; is it text? Give it whole, to model(text)"
        )
    return normalise(text[:cut], form), text[cut:]


def _safe(text: str, form: Form) -> int:
    """The last place of `text` where it can be cut and both parts be normalised apart; 0 where there is none."""
    if form == "none":
        return len(text)
    for at in range(len(text), 0, -1):
        if _ends(text[at - 1]):
            return at
        if begins(text[at - 1]):
            return at - 1
    return 0


def _ends(character: str) -> bool:
    """Whether nothing that follows joins it: spaces, line ends and controls. So a line is ready at its end."""
    return unicodedata.category(character) in ("Cc", "Zl", "Zp", "Zs")


def begins(character: str) -> bool:
    """Whether it never joins what is before it, nor changes place with it, in any normalisation form.

    Marks do, and the vowels and finals of Hangul; so do letters that are taken apart to one of those first. The
    last range is that of Kirat Rai, whose vowels join since Unicode 16.
    """
    if character < "\u0300":
        return True
    first = unicodedata.normalize("NFKD", character)[0]
    joins = "\u1160" <= first <= "\u11ff" or "\U00016d63" <= first <= "\U00016d6a"
    return not joins and not unicodedata.category(first).startswith("M")

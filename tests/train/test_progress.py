"""What a person sees while a network trains: every line fits, and what matters most is there."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from ohlol.train.progress import LEVELS, PLAIN_LEVELS, SPARKS, Lines, Terminal, sparkline

FIGURES = {"dev_accuracy": 0.5, "dev_macro_f1": 0.75, "dev_words_f1": 0.625, "dev_sentences_f1": 0.875}
BROKEN = (math.nan, math.inf, -math.inf)

losses = st.floats(width=32, allow_nan=False, allow_infinity=False)


def run_on(live: Lines, records: list[dict[str, Any]], epochs: int, characters: int = 100) -> None:
    """Three steps an epoch, the line drawn at each; every other epoch is the best so far."""
    live.start(epochs, 0, 3 * characters)
    with live:
        for record in records:
            for loss in (3.0, 2.0, 1.0):
                live.drawn = -math.inf  # as if EVERY had passed
                live.step(characters, record["loss"] * loss)
            live.epoch(record, best=record["epoch"] % 2 == 1)


def shown(
    width: int, records: list[dict[str, Any]], epochs: int, encoding: str = "utf-8", characters: int = 100
) -> list[str]:
    """Every line that a terminal is sent, without the codes that move the cursor."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    run_on(Terminal(console, "words_f1"), records, epochs, characters)
    out.flush()
    sent = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", out.buffer.getvalue().decode(encoding))
    return [line for line in re.split("[\r\n]", sent) if line]


def records(loss: float = 0.25, figures: dict[str, float] = FIGURES) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "loss": loss, **figures} for epoch in (1, 2, 3)]


@given(
    st.integers(20, 200), st.integers(3, 10**9), st.integers(1, 10**12),
    st.floats(1e-9, 1e30), st.sampled_from([{}, FIGURES, {"dev_nats_per_character": 1.5, "learning_rate": 0.1}]),
)  # fmt: skip
def test_no_line_is_longer_than_the_terminal(
    width: int, epochs: int, characters: int, loss: float, figures: dict[str, float]
) -> None:
    """Whatever the numbers, nothing wraps: a wrapped live line would be drawn over the lines above."""
    found = shown(width, records(loss, figures), epochs, characters=characters)
    assert max(map(len, found)) <= width


def test_what_80_columns_show() -> None:
    """The metric that picks the best epoch stands first, and the live line says the best one so far."""
    found = shown(80, records(), 20)
    lines = [line for line in found if line.startswith("epoch  2/20") and "acc" in line]
    assert lines == ["epoch  2/20  loss 0.2500  dev words f1 0.6250       acc 0.5000  macro f1 0.7500"]
    assert any(line.startswith("epoch  3/20  loss 0.2500  dev words f1 0.6250 best") for line in found)
    moving = [
        line for line in found if re.match(rf"epoch  3/20  loss 0\.7500 [{LEVELS}]+  best 0\.6250 ", line)
    ]
    assert moving
    assert re.search(r"  \d+s left  [\d.]+[kM]?/s", moving[0])


def test_wider_terminals_show_more() -> None:
    """Nothing is left out where there is room, and a bar takes what is free."""
    line = next(line for line in shown(160, records(), 20) if "sentences f1 0.8750" in line)
    assert re.search(r"0s left  [\d.]+[kM]? chars/s", line)
    assert any("━" in line for line in shown(120, records(), 20))


def test_a_terminal_without_blocks_is_sent_ascii() -> None:
    """An encoding that has no blocks gets a sparkline all the same, and no error."""
    found = shown(80, records(), 20, encoding="ascii")
    assert any(re.search(rf"loss 0\.2500 [{re.escape(PLAIN_LEVELS)}]+  ", line) for line in found)


def test_elsewhere_lines_are_plain() -> None:
    """In a file there is one line an epoch, whole, with neither blocks nor codes."""
    out = io.StringIO()
    run_on(Lines(out), records(), 20)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(
        "epoch  1/20  loss 0.2500  dev accuracy 0.5000  dev macro f1 0.7500  dev words f1 0.6250  "
        "dev sentences f1 0.8750  "
    )
    assert re.search(r"[\d.]+[kM]? chars/s  0s left  best$", lines[0])
    assert out.getvalue().isascii()


def test_between_drawings_a_step_draws_nothing() -> None:
    """A tiny network takes thousands of steps a second: the line is drawn once in a while, not at each."""
    out = io.StringIO()
    live = Terminal(Console(file=out, width=80, force_terminal=True), "accuracy")
    live.start(1, 0, 10_000)
    with live:
        live.step(1, 0.5)
        before = out.getvalue()
        live.drawn = math.inf
        for _ in range(100):
            live.step(1, 0.5)
        assert before == out.getvalue()


@given(st.lists(losses, max_size=200), st.integers(1, 40))
@example([0.0, 5e-324], 2)
def test_a_sparkline_has_a_block_a_value_up_to_its_width(values: list[float], width: int) -> None:
    """Neither wider than asked for nor wider than what is known; the lowest and the highest are both there."""
    line = sparkline(values, width)
    assert min(len(values), width) == len(line)
    assert set(line) <= set(LEVELS)
    if len(set(values)) > 1 and len(values) <= width:
        assert {LEVELS[0], LEVELS[-1]} <= set(line)


@given(st.lists(losses, min_size=1, max_size=30))
def test_a_sparkline_is_as_high_as_the_losses(values: list[float]) -> None:
    """Of two values the larger never has the lower block."""
    drawn = sorted(zip(values, map(LEVELS.index, sparkline(values, 30)), strict=True))
    heights = [height for _, height in drawn]
    assert sorted(heights) == heights


@given(st.lists(st.one_of(losses, st.sampled_from(BROKEN)), max_size=60))
def test_a_sparkline_leaves_out_what_is_no_number(values: list[float]) -> None:
    """One NaN does not take the line away."""
    assert sparkline([value for value in values if math.isfinite(value)], SPARKS) == sparkline(values, SPARKS)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 8, ""),
        ([2.0, 2.0, 2.0], 8, "▁▁▁"),
        (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
        ([8.0, 6.0, 1.0, 1.0, 0.0, 0.0], 3, "█▂▁"),
    ],
)
def test_sparklines_by_hand(values: list[float], width: int, expected: str) -> None:
    """Each block is the mean of its share of the values, between the lowest mean and the highest."""
    assert expected == sparkline(values, width)

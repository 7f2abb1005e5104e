"""The report of a run: one page that shows what was trained, how it went, and what it gets wrong."""

from __future__ import annotations

import base64
import io
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ohlol.artifacts.describe import describe_run
from ohlol.artifacts.files import new_file
from ohlol.artifacts.run import Layout, Vocabulary, require
from ohlol.train import worst
from ohlol.train.certainty import sure_answers, surprises
from ohlol.train.checkpoint import State, load_state
from ohlol.train.confusion import Confusion
from ohlol.train.data import Split
from ohlol.train.evaluate import answers
from ohlol.train.guards import writing
from ohlol.train.metrics import label_metrics, lm_metrics, tag_metrics
from ohlol.train.network import Network
from ohlol.train.recipe import Recipe

READABLE = 100  # labels in a matrix; of more than that, the `MOST` most confused ones are shown
MOST = 40
PAIRS = 20  # of the most frequent confusions
LISTED = 1000  # labels with their figures, the worst ones
TEMPLATE = Path(__file__).with_name("report.jinja")
INK = "#808080"  # of the plots: to be seen on black and on white


def write_report(folder: Path, network: Network, name: str, split: Split) -> Path:
    """Write `report.html` into the run in `folder`: of `network`, its best, on `split`, called `name`."""
    from jinja2 import Environment, StrictUndefined  # here, as matplotlib below: training starts without them

    vocabulary, state = Vocabulary.load(folder), load_state(folder)[0]
    facts = describe_run(folder)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).stream(
        run=folder.resolve().name,
        facts=[*((key, value) for key, value in facts if "." not in key), ("made with", _versions(state))],
        weights=[(key, value) for key, value in facts if "." in key],  # only a weight's name has dots
        recipe=require(folder / Layout.recipe).read_text(encoding="utf-8"),
        curves=curves(state.history, state.best_epoch),
        task=network.task,
        split=name,
        rows=len(split.rows),
        scheme=vocabulary.label_scheme,
        **_findings(network, split, vocabulary),
    )
    path = folder / Layout.report
    with writing(folder), new_file(path) as file:
        file.writelines(page)
    return path


def measured(recipe: Recipe) -> str:
    """The split that a report is on where none is named: dev if there is one, else test, else train."""
    data = recipe.data
    shares = dict(zip(("train", "dev", "test"), data.split or (1, 0, 0), strict=True))
    return next((name for name in ("dev", "test") if getattr(data, name) or shares[name]), "train")


def _findings(network: Network, split: Split, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the page says of the network's answers: metrics, confusions, the worst examples."""
    device = next(network.parameters()).device
    labels = vocabulary.labels
    if network.task == "lm":
        nats = surprises(network, split, device)
        total = float(sum(row.sum(dtype=float) for row in nats))
        return {
            "metrics": lm_metrics(total, sum(map(len, nats))),
            "worst": worst.worst_predicted(split, nats, vocabulary.alphabet),
        }
    gold = split.rows.targets
    if network.task == "classify":
        ids, sure = sure_answers(network, split, device)
        metrics = label_metrics(gold, ids, len(labels))
        rows = worst.worst_classified(split, ids, sure, labels)
    else:
        by_row = answers(network, split, device)
        ids = np.concatenate(by_row)
        metrics = tag_metrics(split, by_row, vocabulary)
        rows = worst.worst_tagged(split, by_row, vocabulary)
    confusion = Confusion.of(gold, ids, labels)
    return {"metrics": metrics, "worst": rows} | _confused(confusion)


def _confused(confusion: Confusion) -> dict[str, Any]:
    labels, scores = confusion.labels, confusion.scores()
    shown = list(range(len(labels))) if len(labels) <= READABLE else confusion.most_confused(MOST)
    cells, support = confusion.matrix(shown), confusion.support()[shown]
    # The root, so that a share of one in a hundred can be seen.
    shades = np.sqrt(cells / np.maximum(support, 1)[:, None]) * 0.75
    return {
        "labels": len(labels),
        "shown": [labels[k] for k in shown],
        "matrix": [
            (labels[k], list(zip(row, shade, strict=True)))
            for k, row, shade in zip(shown, cells.tolist(), shades.tolist(), strict=True)
        ],
        "scores": scores[:LISTED],
        "pairs": confusion.most_frequent(PAIRS),
    }


def curves(history: Sequence[dict[str, Any]], best_epoch: int) -> list[tuple[str, str]]:
    """A plot for the loss, for the dev metrics and for the learning rate: what it shows, and its SVG as a URI."""
    keys = list(dict.fromkeys(key for record in history for key in record))
    dev = [
        key for key in keys if key.startswith("dev_") and key not in ("dev_loss", "dev_bits_per_character")
    ]
    groups = {
        "loss": [key for key in keys if key in ("loss", "dev_loss")],
        "dev metrics": dev,
        "learning rate": [key for key in keys if key == "learning_rate"],
    }
    return [(title, _plot(title, names, history, best_epoch)) for title, names in groups.items() if names]


def _plot(title: str, names: Sequence[str], history: Sequence[dict[str, Any]], best_epoch: int) -> str:
    with _quietly():
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a screen
        from matplotlib.ticker import MaxNLocator

        # The same run gives the same bytes; the browser's letters in place of paths.
        with rc_context({"svg.hashsalt": "ohlol", "svg.fonttype": "none", "text.color": INK}):
            figure = Figure(figsize=(4.6, 2.9), layout="constrained")
            axes = figure.add_subplot(xlabel="epoch", title=title)
            for name in names:
                points = [(record["epoch"], record[name]) for record in history if name in record]
                label = name.removeprefix("dev_").replace("_", " ") if name != "dev_loss" else "dev loss"
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=label)
            if best_epoch:
                axes.axvline(best_epoch, color=INK, linestyle=":", label="best")
            axes.set_xlim(0.5, history[-1]["epoch"] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.tick_params(colors=INK)
            axes.xaxis.label.set_color(INK)
            for spine in axes.spines.values():
                spine.set_color(INK)
            axes.legend(framealpha=0.0)
            out = io.BytesIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what matplotlib says of its cache of fonts, which the first plot on a machine makes."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def visible(text: str) -> str:
    """`text` with a sign for each character that has none, or that would turn or break the page.

    A newline keeps its effect; an accent that begins the text gets a circle to stand on.
    """
    shown = "".join(map(_sign, text))
    return "◌" + shown if unicodedata.category(shown[:1] or " ")[0] == "M" else shown


def _sign(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character < " ":
        return chr(0x2400 + ord(character))  # the pictures of control characters, in their order
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"[U+{ord(character):04X}]"
    return character


def _versions(state: State) -> str:
    return ", ".join(f"{name} {version}" for name, version in state.versions.items())

"""Runs and bundles side by side: what each is, how well it did, and where their recipes differ."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ohlol.artifacts.bundle import Layout as BundleLayout
from ohlol.artifacts.bundle import open_named
from ohlol.artifacts.describe import parameters, weight_shapes
from ohlol.artifacts.errors import BundleError, CheckpointError, printable
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.run import LOWER_IS_BETTER, Layout, checkpoint, is_run, require

NONE = "–"
GATES = {"rnn": 1, "gru": 3, "lstm": 4}  # blocks of weights in a cell
NETWORK = ("cell", "num_layers", "hidden_size", "bidirectional")
WIDEST = 40  # characters of a recipe's value that are shown

Values = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One run or bundle. `metrics` is by split, and empty while a run is unfinished."""

    path: str
    task: str
    network: Values
    parameters: int
    epoch: int | None  # the last one; None: a bundle does not say
    best_epoch: int | None
    finished: bool
    seconds: float | None  # spent in training, where that is known
    metrics: dict[str, dict[str, float]]
    recipe: Values = field(repr=False)  # by `section.key`, and the digest of each data file

    def to_dict(self) -> Values:
        return {name: value for name, value in vars(self).items() if name != "recipe"}


def compare(paths: Iterable[str]) -> list[Row]:
    """A row for each run's folder, bundle's folder or `hello`. Raises `CheckpointError` and `BundleError`."""
    return [_row_of_bundle(path) if _is_bundle(path) else _row_of_run(Path(path)) for path in paths]


def differences(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The recipe's keys that are not the same in all rows, with each row's value; None where it has none."""
    keys = dict.fromkeys(key for row in rows for key in row.recipe)
    values = {key: [row.recipe.get(key) for row in rows] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def best(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """The best value by task, split and metric, where there are two or more that are not all the same."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for split, metrics in row.metrics.items():
            for name, value in metrics.items():
                found.setdefault((row.task, split, name), []).append(value)
    choose = {key: min if key[2] in LOWER_IS_BETTER else max for key in found}
    return {key: choose[key](values) for key, values in found.items() if len(set(values)) > 1}


def as_json(rows: Sequence[Row]) -> str:
    facts = {"runs": [row.to_dict() for row in rows], "differences": differences(rows)}
    return json.dumps(facts, ensure_ascii=False, indent=2)


def as_text(rows: Sequence[Row]) -> str:
    """A table with a line for each row, the best of each metric marked, and one of what differs."""
    columns = dict.fromkeys(
        (split, name)
        for row in rows
        for split, metrics in row.metrics.items()
        for name in metrics
        if name != "bits_per_character"  # nats in another unit
    )
    marked = best(rows)
    timed = ["minutes"] if any(row.seconds is not None for row in rows) else []
    lines = [["run", "task", "network", "parameters", "best epoch", *timed]]
    lines[0] += [f"{split} {name.replace('_', ' ')}" for split, name in columns]
    for row in rows:
        line = [row.path, row.task, _network(row.network), f"{row.parameters:,}", _epochs(row)]
        if timed:
            line.append(NONE if row.seconds is None else f"{row.seconds / 60:.1f}")
        for split, name in columns:
            value = row.metrics.get(split, {}).get(name)
            star = " *" if value is not None and marked.get((row.task, split, name)) == value else "  "
            line.append(NONE + "  " if value is None else f"{value:.4f}{star}")
        lines.append(line)
    parts = [_table(lines)]
    if marked:
        parts.append("* the best of its column" + (" and task" if len({r.task for r in rows}) > 1 else ""))
    differing = differences(rows)
    if differing:
        head = ["recipe", *(row.path for row in rows)]
        parts.append(_table([head, *([key, *map(_short, values)] for key, values in differing.items())]))
    return "\n\n".join(parts)


def _is_bundle(path: str) -> bool:
    return not is_run(Path(path)) and (path == "hello" or (Path(path) / BundleLayout.manifest).is_file())


def _row_of_run(folder: Path) -> Row:
    text = require(folder / Layout.recipe).read_text(encoding="utf-8", errors="replace")
    state_file = require(checkpoint(folder, Layout.last) / Layout.state)
    shapes_file = checkpoint(folder, Layout.best) / Layout.model
    results = folder / Layout.results
    try:
        recipe, state = tomllib.loads(text), json.loads(state_file.read_bytes())
        return Row(
            path=str(folder),
            task=recipe["task"]["kind"],
            network={key: recipe["model"][key] for key in NETWORK},
            parameters=parameters(weight_shapes(shapes_file), recipe["model"]),
            epoch=int(state["epoch"]),
            best_epoch=int(state["best_epoch"]),
            finished=results.is_file(),
            seconds=_seconds(state.get("seconds")),
            metrics=_metrics(json.loads(results.read_bytes())) if results.is_file() else {},
            recipe=_flat(recipe, state.get("digests", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{folder}: damaged ({error!r}); train again") from error


def _row_of_bundle(path: str) -> Row:
    manifest = open_named(path).manifest
    source = manifest.provenance
    try:
        return Row(
            path=path,
            task=manifest.task,
            network={key: manifest.network[key] for key in NETWORK},
            parameters=_parameters(manifest),
            epoch=None,
            best_epoch=source.get("checkpoint", {}).get("epoch"),
            finished=True,
            seconds=None,
            metrics=_metrics(manifest.metrics),
            recipe=_flat(source.get("recipe", {}), source.get("data", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BundleError(
            f"{path}: the manifest's facts are not as ohlol writes them ({error!r}); export it again"
        ) from error


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _parameters(manifest: Manifest) -> int:
    """As many numbers as the network was trained with; its `.onnx` file holds tables of characters too."""
    network = manifest.network
    hidden, directions = network["hidden_size"], 2 if network["bidirectional"] else 1
    embedded = network["input"] == "embedding"
    width = network["embedding_size"] if embedded else len(manifest.alphabet.characters)
    total = len(manifest.alphabet) * width if embedded else 0
    for _ in range(network["num_layers"]):
        total += directions * GATES[network["cell"]] * hidden * (width + hidden + 2)  # two biases
        width = directions * hidden
    if network["head"] == "linear":
        total += manifest.classes * (
            1 if network.get("tied") else width + 1
        )  # a tied head has a bias of its own
    return total


def _metrics(found: Values) -> dict[str, dict[str, float]]:
    return {
        split: {name: float(value) for name, value in metrics.items()} for split, metrics in found.items()
    }


def _flat(recipe: Values, digests: Values) -> Values:
    """A recipe by `section.key`; data that were exchanged behind the same path show by their digest."""
    flat = {f"{section}.{key}": value for section, table in recipe.items() for key, value in table.items()}
    sums = {f"{name} data's sha256": d["sha256"] for name, d in digests.items() if "sha256" in d}
    return flat | sums


def _network(network: Values) -> str:
    ways = "both ways" if network["bidirectional"] else "one way"
    return f"{network['num_layers']} × {network['cell']} {network['hidden_size']}, {ways}"


def _epochs(row: Row) -> str:
    if not row.finished:
        return f"unfinished, after {row.epoch} of {row.recipe.get('train.epochs', NONE)}"
    if row.best_epoch is None:
        return NONE
    return str(row.best_epoch) if row.epoch is None else f"{row.best_epoch} of {row.epoch}"


def _short(value: Any) -> str:
    text = NONE if value is None else value if isinstance(value, str) else json.dumps(value)
    text = printable(text[: WIDEST + 1])
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _table(lines: Sequence[Sequence[str]]) -> str:
    shown = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown)
    return "\n".join("  ".join(line).rstrip() for line in padded)

"""Saving and loading what a run has learnt. Tensors are safetensors, the rest JSON; nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ohlol.artifacts.errors import CheckpointError, RecipeError
from ohlol.artifacts.files import new_file, new_folder
from ohlol.artifacts.run import Layout, Vocabulary, checkpoint, require
from ohlol.train.network import Network
from ohlol.train.optimise import Optimiser
from ohlol.train.recipe import Recipe

Carried = list[list[Tensor]] | None  # for each layer, one tensor `(1, B, H)`, or two for an LSTM


@dataclass
class State:
    """Where a run stands, besides its weights: what resuming needs, and the record of what it did."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # batches done of the next one
    loss: float = 0.0  # summed over that epoch's batches, weighted by `weight`
    weight: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    digests: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data_folder: str = ""  # where the data lay on this machine; not part of a bundle
    seconds: float = 0.0  # spent in training, over all its starts


def save_weights(network: Network, folder: Path) -> None:
    """Write a checkpoint that can be exported but not resumed."""
    with new_folder(folder) as part:
        _save(_contents(network.state_dict()), part / Layout.model)


def save_last(
    network: Network, optimiser: Optimiser, state: State, folder: Path, carried: Carried = None
) -> None:
    """Write `last/`, whole or not at all, and the run's `metrics.jsonl`.

    `carried` is what the rows of running text end in, in the middle of an epoch: `Network.carry`'s state.
    """
    tensors, numbers = optimiser.state()
    tensors |= {f"carried.{n}.{k}": part for n, own in enumerate(carried or ()) for k, part in enumerate(own)}
    with new_folder(folder / Layout.last) as part:
        _save(_contents(network.state_dict()), part / Layout.model)
        _save(_contents(tensors), part / Layout.optimizer)
        facts = {**asdict(state), "optimizer": numbers}
        (part / Layout.state).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    save_metrics(state, folder)


def save_metrics(state: State, folder: Path) -> None:
    """Write `metrics.jsonl`: the records of `state`, one a line."""
    with new_file(folder / Layout.metrics) as file:
        file.write("".join(json.dumps(record) + "\n" for record in state.history))


def load_last(network: Network, optimiser: Optimiser, folder: Path) -> tuple[State, Carried]:
    """Put network and optimiser back to where `last/` was written. Raises `CheckpointError`."""
    last = checkpoint(folder, Layout.last)
    load_weights(network, last)
    state, numbers = load_state(folder)
    entries = read_tensors(last / Layout.optimizer) | numbers
    held = sorted(name for name in entries if name.startswith("carried."))
    parts = [(int(name.split(".")[1]), entries.pop(name)) for name in held]
    carried = [[part for n, part in parts if n == number] for number in sorted({n for n, _ in parts})]
    try:
        optimiser.load(entries)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{last / Layout.state}: damaged ({error}); train again") from error
    return state, carried or None


def load_network(folder: Path, which: str = Layout.best) -> tuple[Network, Recipe, Vocabulary, State]:
    """The network of a run's checkpoint, with everything that describes it. Raises `CheckpointError`."""
    recipe = Recipe.load(require(folder / Layout.recipe))
    vocabulary = Vocabulary.load(folder)
    network = new_network(recipe, vocabulary)
    load_weights(network, checkpoint(folder, which))
    return network.eval(), recipe, vocabulary, load_state(folder)[0]


def load_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """Where a run stands, and the optimizer's numbers that are no tensors. Raises `CheckpointError`."""
    path = require(checkpoint(folder, Layout.last) / Layout.state)
    try:
        facts = json.loads(path.read_bytes())
        numbers = dict(facts.pop("optimizer"))
        state = State(**facts)
        for part, kind in ((state.history, list), (state.digests, dict), (state.versions, dict)):
            if not isinstance(part, kind) or not all(isinstance(own, dict | str) for own in part):
                raise TypeError(f"found {part!r:.60}")
        for number in (state.epoch, state.step, state.best_epoch):
            if not isinstance(number, int):
                raise TypeError(f"found {number!r:.60} for a number")
        if not all(isinstance(own, dict) for own in state.digests.values()):
            raise TypeError(f"found {state.digests!r:.60}")
        return state, numbers
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r}); train again") from error


def new_network(recipe: Recipe, vocabulary: Vocabulary) -> Network:
    characters = len(vocabulary.alphabet)
    try:
        return Network(recipe.model, recipe.task.kind, characters, len(vocabulary.labels) or characters)
    except (RuntimeError, MemoryError) as error:  # torch's allocator
        raise RecipeError(
            f"[model]: too large for this machine's memory ({str(error).splitlines()[0]:.120})"
        ) from error


def load_weights(network: Network, folder: Path) -> None:
    """Raises `CheckpointError` naming the weight, its expected shape and the shape found."""
    path = folder / Layout.model
    found, expected = read_tensors(path), network.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        want = tuple(expected[name].shape) if name in expected else "nothing"
        have = tuple(found[name].shape) if name in found else "nothing"
        if want != have:
            raise CheckpointError(
                f"{path}: weight {name}: expected {want}, found {have}; the recipe and the weights differ"
            )
        if found[name].dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path}: weight {name}: expected {expected[name].dtype}, found {found[name].dtype}"
            )
    network.load_state_dict(found)


def _contents(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share nothing, as safetensors wants them."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))  # safetensors' own `save_file` makes a file that only its owner can read


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its name. Raises `CheckpointError`."""
    try:
        return load_file(require(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); train again or take another checkpoint") from error

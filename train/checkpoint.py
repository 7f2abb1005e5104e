"""Saving and loading what a run has learnt. Tensors are safetensors, the rest JSON; nothing is unpickled."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ohlol.artifacts.errors import CheckpointError, RecipeError
from ohlol.artifacts.files import new_file, new_folder
from ohlol.artifacts.run import Layout, Vocabulary, checkpoint, require
from ohlol.train.network import Network
from ohlol.train.recipe import Recipe


@dataclass
class State:
    """Where a run stands, besides its weights: what resuming needs, and the record of what it did."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # batches done of the next one
    loss: float = 0.0  # summed over that epoch's batches, weighted by `weight`
    weight: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    digests: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data_folder: str = ""  # where the data lay on this machine; not part of a bundle
    random: str = ""  # torch's CPU generator, base64


def save_weights(network: Network, folder: Path) -> None:
    """Write a checkpoint that can be exported but not resumed."""
    with new_folder(folder) as part:
        _save(_weights(network), part / Layout.model)


def save_last(network: Network, optimizer: torch.optim.Optimizer, state: State, folder: Path) -> None:
    """Write `last/`, whole or not at all, and the run's `metrics.jsonl`."""
    state.random = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
    tensors, numbers = _flat(optimizer.state_dict()["state"])
    with new_folder(folder / Layout.last) as part:
        _save(_weights(network), part / Layout.model)
        _save(tensors, part / Layout.optimizer)
        facts = {**asdict(state), "optimizer": numbers}
        (part / Layout.state).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    with new_file(folder / Layout.metrics) as file:
        file.write("".join(json.dumps(record) + "\n" for record in state.history))


def load_last(network: Network, optimizer: torch.optim.Optimizer, folder: Path) -> State:
    """Put network, optimizer and torch's generator back to where `last/` was written."""
    last = checkpoint(folder, Layout.last)
    load_weights(network, last)
    state, numbers = load_state(folder)
    tensors = read_tensors(last / Layout.optimizer)
    entries: dict[int, dict[str, Any]] = {}
    try:
        for name, value in (tensors | numbers).items():
            number, _, key = name.partition(".")
            entries.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        random = np.frombuffer(base64.b64decode(state.random), dtype=np.uint8).copy()
        torch.set_rng_state(torch.from_numpy(random))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{last / Layout.state}: damaged ({error}); train again") from error
    return state


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
        numbers = facts.pop("optimizer")
        return State(**facts), dict(numbers)
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


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def _flat(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state by parameter number and name: tensors, and plain numbers."""
    entries = {f"{number}.{key}": value for number, own in state.items() for key, value in own.items()}
    tensors = {name: v.detach().cpu().contiguous() for name, v in entries.items() if isinstance(v, Tensor)}
    return tensors, {name: v for name, v in entries.items() if not isinstance(v, Tensor)}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))  # safetensors' own `save_file` makes a file that only its owner can read


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its name. Raises `CheckpointError`."""
    try:
        return load_file(require(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); train again or take another checkpoint") from error

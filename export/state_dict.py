"""Weights that others trained, in a safetensors file, as a run that can be exported. See docs/adopt.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import RESERVED, Alphabet
from ohlol.artifacts.errors import AdoptError
from ohlol.artifacts.files import sha256_of_file
from ohlol.artifacts.run import Vocabulary
from ohlol.export.parts import NAMES, Ids, Parts, Weights, as_ours, converted, may_write, write_run
from ohlol.train.checkpoint import new_network, read_tensors
from ohlol.train.recipe import Recipe

PICKLED = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin, new and old
RECURRENT = re.compile(r"(.*?)((?:weight|bias)_(?:ih|hh)_l\d+(?:_reverse)?)")
OWN = "layers.0.0."  # how names begin in a checkpoint of ohlol's own
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def adopt_state_dict(path: Path, recipe_path: Path, output: Path, unknown: int | None = None) -> Path:
    """Write a run in the folder `output`, ready for `ohlol export`, from a safetensors file of weights.

    The recipe at `recipe_path` says what the network is: [task], [model] and, of [data], `alphabet`, `labels` and
    `normalisation`. There is no module to run, so the proof of an export is against the network of the recipe. The
    weights are those of one nn.RNN, nn.GRU or nn.LSTM, of an embedding and of a linear layer where the recipe has
    one, whatever these are called; or a checkpoint of ohlol's own.

    With N ids and K characters in `data.alphabet`, the characters are the last K ids. The N - K before them are
    no characters; one of them may be `unknown`, which is 1 where N is K + 2, as in a checkpoint of ohlol's own, and
    otherwise, where it is not named, none: an unknown character is then the zero vector.
    Raises `AdoptError` with every weight whose shape is not that of the recipe, and `RecipeError`.
    """
    may_write(output)
    recipe = _untrained(Recipe.load(recipe_path))
    data, task = recipe.data, recipe.task.kind
    if data.alphabet is None or (data.labels is None and task != "lm" and not recipe.label_scheme):
        key = "alphabet" if data.alphabet is None else "labels"
        raise AdoptError(
            f"{recipe_path}: data.{key}: missing; expected {'the characters' if key == 'alphabet' else 'the labels'} in the "
            "order in which the weights know them"
        )
    alphabet = Alphabet(data.alphabet, data.normalisation)
    labels = () if task == "lm" else words.LABELS if recipe.label_scheme else tuple(data.labels or ())
    vocabulary = Vocabulary(alphabet, labels, recipe.label_scheme)
    found = _read(path)

    if any(name.startswith(OWN) for name in found):
        own = new_network(recipe, vocabulary).state_dict()
        shapes = [{name: tensor.shape for name, tensor in some.items()} for some in (own, found)]
        _refuse(path, [_wrong(name, *(some.get(name) for some in shapes)) for name in sorted(own | found)])
        weights: Weights = found
        ids = Ids((None, None, *alphabet.characters), RESERVED - 1)
    else:
        parts = _parts(path, recipe, found)
        ids = _ids(path, parts, alphabet, unknown)
        classes = len(ids) if task == "lm" else len(labels)
        if parts.classes != classes:
            what = "ids, as the input" if task == "lm" else "data.labels"
            raise AdoptError(
                f"{path}: the weights answer with {parts.classes} numbers, expected {classes}: {what}"
            )
        model, weights = converted(parts, ids, task)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})
    source = {"file": path.name, "sha256": sha256_of_file(path), "ids": ids.described()}
    network = as_ours(recipe, vocabulary, weights)
    write_run(output, recipe, vocabulary, network, source, str(recipe_path.parent.resolve()))
    return output


def _untrained(recipe: Recipe) -> Recipe:
    """The recipe with no epochs: nothing is trained here."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 0})})


def _read(path: Path) -> Weights:
    """The weights as float32. Raises `AdoptError` for what is no safetensors file of numbers."""
    if not path.is_file():
        raise AdoptError(f"{path}: no such file; expected a safetensors file of weights")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix in (".pt", ".pth") or start.startswith(PICKLED):
        raise AdoptError(
            f"{path}: a pickled file, which can run any code when it is read, and so is not read here. Where you trust "
            "it, convert it once in Python: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    found = read_tensors(path)
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise AdoptError(f"{path}: weight {name}: found {tensor.dtype}, expected floating point")
    return {name: tensor.float() for name, tensor in found.items()}


def _parts(path: Path, recipe: Recipe, found: Weights) -> Parts:
    """The weights by what they do, each of the shape that the recipe gives it. Raises `AdoptError` with all that differ."""
    model = recipe.model
    prefixes = {match[1] for name in found if (match := RECURRENT.fullmatch(name))}
    if len(prefixes) > 1:
        names = ", ".join(f"`{prefix}weight_ih_l0`" for prefix in sorted(prefixes))
        raise AdoptError(
            f"{path}: {len(prefixes)} recurrent modules, with {names}: their order is not in the file; adopt the module "
            "itself, with ohlol.export.adopt, which runs it"
        )
    prefix = next(iter(prefixes), "")
    others = {name: value for name, value in found.items() if not RECURRENT.fullmatch(name)}
    tables, heads = _tables(path, recipe, others)
    embedding = others[tables[0]] if tables else None
    width = model.hidden_size * (2 if model.bidirectional else 1)
    rows = GATES[model.cell] * model.hidden_size

    wrong, expected, layers = [], set(), []
    if embedding is not None:
        wrong.append(_wrong(tables[0], ("N", model.embedding_size), embedding.shape))
    biases = any(name.startswith(f"{prefix}bias_") for name in found if RECURRENT.fullmatch(name))
    for number in range(model.num_layers):
        layer = []
        for suffix in ("", "_reverse")[: 1 + model.bidirectional]:
            given: int | str = width if number else model.embedding_size if embedding is not None else "N"
            shapes = {"weight_ih": (rows, given), "weight_hh": (rows, model.hidden_size)}
            direction = {}
            for part in NAMES if biases else NAMES[:2]:
                name = f"{prefix}{part}_l{number}{suffix}"
                expected.add(name)
                wrong.append(
                    _wrong(name, shapes.get(part, (rows,)), found[name].shape if name in found else None)
                )
                direction[part] = found.get(name, torch.zeros(0))
            layer.append({part: direction.get(part, torch.zeros(rows)) for part in NAMES})
        layers.append(layer)
    extra = sorted(name for name in found if RECURRENT.fullmatch(name) and name not in expected)
    wrong += [_wrong(name, None, found[name].shape) for name in extra]
    head = None
    if heads:
        weight = others[heads[0]]
        bias = others.get(heads[0].removesuffix("weight") + "bias", torch.zeros(len(weight)))
        wrong.append(_wrong(heads[0], ("C", width), weight.shape))
        wrong.append(_wrong(heads[0].removesuffix("weight") + "bias", (len(weight),), bias.shape))
        head = weight, bias
    _refuse(path, wrong)
    return Parts(model.cell, embedding, layers, head)


def _tables(path: Path, recipe: Recipe, others: Weights) -> tuple[list[str], list[str]]:
    """The names of the embedding and of the linear layer's weight: as many as the recipe says, one or none of each.

    What has a bias beside it is linear. Where neither has one, the shapes tell; where they do not, the names.
    """
    model = recipe.model
    wants = {"embedding": model.input == "embedding", "linear": model.head == "linear"}
    matrices = [name for name, value in others.items() if name.endswith("weight") and value.dim() == 2]
    biases = [
        name for name in others if name.endswith("bias") and name.removesuffix("bias") + "weight" in matrices
    ]
    heads = [name for name in matrices if name.removesuffix("weight") + "bias" in biases]
    tables = [name for name in matrices if name not in heads]
    if not heads and wants["linear"] and len(tables) == 1 + wants["embedding"]:
        width = model.hidden_size * (2 if model.bidirectional else 1)
        by_shape = [name for name in tables if others[name].shape[1] == width]
        if wants["embedding"] and len(by_shape) > 1:
            by_shape = [name for name in tables if "emb" not in name.lower()]
        if wants["embedding"] and len(by_shape) != 1:
            both = " and ".join(f"{name} {tuple(others[name].shape)}" for name in tables)
            raise AdoptError(
                f"{path}: {both}: cannot tell which is the embedding; put `embedding` into the name of the one that is"
            )
        heads = by_shape or tables
        tables = [name for name in tables if name not in heads]
    wrong = [
        _wrong(name, None, value.shape) for name, value in others.items() if name not in (*matrices, *biases)
    ]
    for what, names in (("embedding", tables), ("linear", heads)):
        if len(names) != wants[what]:
            listed = ", ".join(f"{name} {tuple(others[name].shape)}" for name in names) or "nothing"
            key = "model.input" if what == "embedding" else "model.head"
            value = model.input if what == "embedding" else model.head
            wrong.append(
                f'{what}: expected {"one weight" if wants[what] else "nothing"}, since {key} = "{value}"; found {listed}'
            )
    _refuse(path, wrong)
    return tables, heads


def _ids(path: Path, parts: Parts, alphabet: Alphabet, unknown: int | None) -> Ids:
    """What their N ids mean: the last K are the characters."""
    reserved = parts.ids - len(alphabet.characters)
    if reserved < 0:
        raise AdoptError(
            f"{path}: the input has {parts.ids} ids, expected at least {len(alphabet.characters)}: the characters of "
            "data.alphabet"
        )
    if unknown is None and reserved == RESERVED:
        unknown = RESERVED - 1
    return Ids((*[None] * reserved, *alphabet.characters), unknown)


def _wrong(name: str, expected: Sequence[int | str] | None, found: Sequence[int] | None) -> str | None:
    """The line for a weight whose shape is not as expected; a letter in `expected` stands for any size."""
    sizes = (
        None
        if expected is None or found is None or len(expected) != len(found)
        else zip(expected, found, strict=True)
    )
    if sizes is not None and all(isinstance(want, str) or want == have for want, have in sizes):
        return None
    want, have = (
        "nothing" if shape is None else "(" + ", ".join(map(str, shape)) + ")" for shape in (expected, found)
    )
    return f"weight {name}: expected {want}, found {have}"


def _refuse(path: Path, lines: list[str | None]) -> None:
    wrong = [line for line in lines if line is not None]
    if wrong:
        raise AdoptError(
            f"{path}: the weights are not those of the recipe's [model]\n"
            + "\n".join(f"  {line}" for line in wrong)
        )

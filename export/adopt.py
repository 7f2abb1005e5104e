"""A module that others trained, as a run that can be exported. See docs/adopt.md."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Form
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import AdoptError
from ohlol.artifacts.run import Vocabulary
from ohlol.export.calling import agreement, draw_texts, first_line, listen, told_task
from ohlol.export.parts import NAMES, Found, Ids, Parts, as_ours, converted, may_write, write_run
from ohlol.export.trace import place
from ohlol.train.recipe import Recipe

CELLS: dict[type[nn.Module], Any] = {nn.RNN: "rnn", nn.GRU: "gru", nn.LSTM: "lstm"}
CAN_BE = "only embedding (or one-hot) → RNN, GRU or LSTM → linear (or none) can be adopted"


def adopt(
    module: nn.Module,
    *,
    alphabet: str | Sequence[str | None],
    labels: Sequence[str] | None,
    output: str | Path,
    unknown: int | None = None,
    normalisation: Form = "NFC",
    task: Task | None = None,
    label_scheme: str | None = None,
) -> Path:
    """Write a run in the folder `output`, ready for `ohlol export`, from a module that you trained yourself.

    The module is embedding (or one-hot) → RNN, GRU or LSTM → linear, or no linear. It is called as
    `module(ids)` with `ids (B, T) int64`, else `(T, B)`; without an embedding first with one-hot
    `(B, T, N) float32` and `(T, B, N)`. It answers with logits `(B, T, C)`, `(T, B, C)`, `(B * T, C)`,
    `(B, C, T)` or, one answer for a text, `(B, C)`; of a tuple, with the first element. Random texts are given to
    it and to our network with the same weights, at several B and T, and every number must agree: nothing but these
    parts may act in it. Where it takes no batch (its initial state is for one row, say), only B = 1 is tried. The
    first way of calling it in which all agree is noted in the run.

    `alphabet` has the characters in the order of your ids, None for an id that is no character (padding, marks);
    `unknown` is your id for unknown characters, without which they are the zero vector. `labels` are in the order
    of the module's answers; None where it answers with the next character (`lm`) in the order of your ids: an
    answer for an id that is neither a character nor `unknown` is then left out, and the probabilities are over
    the others. `task` is told from the answers. `label_scheme = "words"` says that the labels are B, I, O and S.

    All is done on a copy: the module's weights, mode, device and what it keeps stay as they are.
    Raises `AdoptError`, naming the part or the place that is in the way, or `output` where there is anything; and
    `RecipeError` or `OhlolError` where task, labels or alphabet contradict themselves.
    """
    output = Path(output)
    may_write(output)
    for what, given in (("alphabet", alphabet), ("labels", labels)):
        if isinstance(given, Mapping | Set | bytes) or not (given is None or isinstance(given, Sequence)):
            raise AdoptError(
                f"{what}: found {type(given).__name__}, expected a list in the order of the ids, such as "
                "sorted(d, key=d.get) of a dict, with None for an id that is no character"
            )
    if alphabet is None or not all(c is None or isinstance(c, str) for c in alphabet):
        raise AdoptError("alphabet: expected characters, in the order of the ids, with None for no character")
    if label_scheme == words.SCHEME and set(labels or ()) != set(words.LABELS):
        raise AdoptError(
            f"labels: found {list(labels or ())}, expected {', '.join(words.LABELS)} with label_scheme {label_scheme!r}"
        )
    ids = Ids(tuple(alphabet), unknown)
    theirs = _copy(module)
    found = _find(theirs)
    parts = _parts(found)
    _check_sizes(found, parts, ids, labels)
    texts = draw_texts(ids)
    heard = listen(theirs, 0 if found.embedding else parts.ids, texts)
    task = told_task(heard, parts.classes, labels is not None, task)

    model, weights = converted(parts, ids, task)
    known = ids.alphabet(normalisation)
    data = {"format": "none", "alphabet": known.characters, "normalisation": normalisation}
    if label_scheme is not None:
        data["label_scheme"] = label_scheme
    elif labels is not None:
        data["labels"] = list(labels)  # type: ignore[assignment]
    tables = {"task": {"kind": task}, "data": data, "model": model, "train": {"epochs": 0}}
    recipe = Recipe.parse(tables, "the module as a recipe")
    vocabulary = Vocabulary(known, tuple(labels or ()), label_scheme)
    network = as_ours(recipe, vocabulary, weights)

    agreed = agreement(network, ids, heard)
    if agreed is None:
        raise AdoptError(
            f"{type(module).__name__}: {place(theirs, found, heard, task)}; "
            "ohlol's network with the same weights answers otherwise"
        )
    way, form = agreed
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    write_run(output, recipe, vocabulary, network, {"module": name, "given": str(way), "answers": form})
    return output


def _copy(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise AdoptError(f"module: found {type(module).__name__}, expected an nn.Module")
    try:
        return copy.deepcopy(module).float().eval().requires_grad_(False)
    except Exception as error:
        raise AdoptError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}); a tensor that it keeps from a call, "
            "such as its last hidden state, must be let go first: set it to None"
        ) from error


def _find(module: nn.Module) -> Found:
    """The embedding, the recurrent modules and the linear layer. Raises `AdoptError` for other parts with weights."""
    embeddings: dict[str, nn.Embedding] = {}
    recurrent: dict[str, nn.RNNBase] = {}
    linears: dict[str, nn.Linear] = {}
    inside: tuple[str, ...] = ()
    for path, part in module.named_modules():
        name = path or type(part).__name__
        if inside and path.startswith(inside):
            continue  # within a part, such as what computes its weights
        kind = type(part).__name__
        if isinstance(part, nn.RNNCellBase):
            raise AdoptError(
                f"`{name}` is an nn.{kind}, whose loop over time cannot be looked into; put its weights into an "
                f"nn.{kind.removesuffix('Cell')}(…, batch_first=True) of the same sizes, where each name ends with _l0, "
                "and call that on whole texts"
            )
        if isinstance(part, nn.Embedding):
            embeddings[name] = part
        elif type(part) in CELLS:
            recurrent[name] = part
        elif isinstance(part, nn.Linear):
            linears[name] = part
        elif not any(part.children()) and any(True for _ in part.parameters()):
            raise AdoptError(f"`{name}` is of type {kind}; {CAN_BE}")
        else:
            continue
        inside += (f"{path}.",) if path else ()
    for what, several in (("embeddings", embeddings), ("linear layers", linears)):
        if len(several) > 1:
            names = ", ".join(f"`{name}`" for name in several)
            raise AdoptError(f"{len(several)} {what}, {names}; expected one at most: {CAN_BE}")
    parts = [part for own in (embeddings, recurrent, linears) for part in own.values()]
    held = {id(weight) for part in parts for weight in part.parameters()}
    for name, weight in module.named_parameters():
        if id(weight) not in held:
            raise AdoptError(f"`{name}` is a weight outside of these parts; {CAN_BE}")
    if not recurrent:
        raise AdoptError(f"{type(module).__name__}: no nn.RNN, nn.GRU or nn.LSTM in it; {CAN_BE}")
    return Found(
        next(iter(embeddings.items()), None), list(recurrent.items()), next(iter(linears.items()), None)
    )


def _parts(found: Found) -> Parts:
    """The weights of what was found. Raises `AdoptError` for an option that our network has not."""
    first_name, first = found.recurrent[0]
    layers = []
    for name, part in found.recurrent:
        for option, value, expected in (
            ("nonlinearity", getattr(part, "nonlinearity", "tanh"), "tanh"),
            ("proj_size", part.proj_size, 0),
        ):
            if value != expected:
                raise AdoptError(f"`{name}`: {option} is {value!r}, expected {expected!r}; {CAN_BE}")
        alike = [(type(p).__name__, p.hidden_size, p.bidirectional) for p in (part, first)]
        if alike[0] != alike[1]:
            raise AdoptError(
                f"`{name}` and `{first_name}` differ: (cell, hidden size, both ways) is {alike[0]} and {alike[1]}; "
                "expected layers that are alike"
            )
        for number in range(part.num_layers):
            suffixes = [f"_l{number}", f"_l{number}_reverse"][: 1 + part.bidirectional]
            layers.append([_direction(part, suffix) for suffix in suffixes])
    embedding, head = None, None
    if found.embedding is not None:
        name, table = found.embedding
        if table.max_norm is not None:
            raise AdoptError(
                f"`{name}`: max_norm is {table.max_norm}, so that looking a row up changes it; expected None"
            )
        embedding = _plain(table.weight)
    if found.linear is not None:
        linear = found.linear[1]
        weight = _plain(linear.weight)
        head = weight, _plain(linear.bias) if linear.bias is not None else weight.new_zeros(len(weight))
    return Parts(CELLS[type(first)], embedding, layers, head)


def _direction(part: nn.RNNBase, suffix: str) -> dict[str, Tensor]:
    """The weights of one direction of one layer; zeros for biases that it has not."""
    weights = {name: _plain(getattr(part, name + suffix)) for name in NAMES[: 4 if part.bias else 2]}
    nothing = torch.zeros(len(weights["weight_ih"]))
    return {name: weights.get(name, nothing) for name in NAMES}


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone()


def _check_sizes(found: Found, parts: Parts, ids: Ids, labels: Sequence[str] | None) -> None:
    """Raises `AdoptError` where the ids or the answers are not as many as the alphabet and the labels say."""
    if parts.ids != len(ids):
        name, what = (found.embedding or found.recurrent[0])[0], "rows" if found.embedding else "inputs"
        raise AdoptError(
            f"alphabet: {len(ids)} ids, but `{name}` has {parts.ids} {what}; expected an entry for each id, in their "
            "order, with None for an id that is no character"
        )
    padding = found.embedding[1].padding_idx if found.embedding else None
    if found.embedding and padding is not None and ids.characters[padding] is not None:
        raise AdoptError(
            f"alphabet: id {padding} is {ids.characters[padding]!r}, but it is the padding_idx of "
            f"`{found.embedding[0]}`; expected None there: are the ids shifted?"
        )
    name = (found.linear or found.recurrent[-1])[0]
    expected = len(ids) if labels is None else len(labels)
    if parts.classes != expected:
        what = "labels: None, so that the answers are" if labels is None else "labels:"
        raise AdoptError(
            f"{what} {expected} {'ids of the alphabet' if labels is None else 'found'}, but `{name}` answers with "
            f"{parts.classes} numbers; expected as many"
        )

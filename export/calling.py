"""How a module of others is called, what it answers, and whether our network answers the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ohlol.artifacts.contract import TASKS, Task
from ohlol.artifacts.errors import AdoptError
from ohlol.artifacts.parity import TOLERANCE
from ohlol.export.parts import Ids
from ohlol.train.network import Network

# B and T of the random texts. The first one has T > B > 1, so that the two are never taken for each other.
SIZES = ((3, 5), (2, 7), (1, 1), (1, 33))
TEXT = 64  # characters in a row of the text that holds every id


@dataclass(frozen=True)
class Way:
    """One way to call a module. `one_hot` is the width N of what it is given, 0 where that is ids."""

    time_first: bool
    one_hot: int

    def given(self, ids: Tensor) -> Tensor:
        """`ids (B, T) int64` as the module is given them."""
        ids = ids.t() if self.time_first else ids
        return functional.one_hot(ids, self.one_hot).float() if self.one_hot else ids

    def __str__(self) -> str:
        axes = "T, B" if self.time_first else "B, T"
        return f"one-hot ({axes}, {self.one_hot}) float32" if self.one_hot else f"ids ({axes}) int64"


@dataclass(frozen=True)
class Heard:
    """What a module answered, called in one way, to texts `(B, T) int64` of its own ids."""

    way: Way
    texts: list[Tensor]
    answers: list[Tensor]


def draw_texts(ids: Ids) -> list[Tensor]:
    """Random texts, and one with every id that can be met: those of characters and of the unknown."""
    possible = torch.tensor([k for k in ids.ours if k is not None])
    if not len(possible):
        raise AdoptError("alphabet: found no character, expected one at least")
    random = torch.Generator().manual_seed(0)
    texts = [possible[torch.randint(len(possible), size, generator=random)] for size in SIZES]
    rows = -(-len(possible) // TEXT)
    return [*texts, possible[torch.arange(rows * TEXT) % len(possible)].view(rows, TEXT)]


def listen(module: nn.Module, one_hot: int, texts: list[Tensor]) -> list[Heard]:
    """The ways in which `module` can be called, with its answers: rows together, else each row alone.

    Raises `AdoptError` where there is no way.
    """
    ways = [Way(first, width) for width in dict.fromkeys((one_hot, 0)) for first in (False, True)]
    alone = [row[None] for text in texts for row in text]
    failed = ""
    for rows in (texts, alone):
        heard, failed = [], ""
        for way in ways:
            try:
                heard.append(Heard(way, rows, [call(module, way.given(ids)) for ids in rows]))
            except AdoptError:
                raise
            except Exception as error:  # the module is not ours: it may raise anything
                failed = failed or f"given {way}: {type(error).__name__}: {first_line(error)}"
        if heard:
            return heard
    raise AdoptError(
        f"{type(module).__name__} cannot be called as module(ids), not even with one row; {failed}. Give it a "
        "forward(self, ids) that takes ids (B, T) int64 of any B and T and answers with logits"
    )


def call(module: nn.Module, given: Tensor) -> Tensor:
    """What the module answers, `float32` on the CPU."""
    device = next((weight.device for weight in module.parameters()), given.device)
    devices = [device] if device.type == "cuda" else []
    # cuDNN rounds to fewer digits than the CPU does, with which the numbers are compared. What a module draws at
    # random must not move the generator of the program that called us.
    with torch.inference_mode(), torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=False):
        found: Any = module(given.to(device))
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise AdoptError(
            f"{type(module).__name__} answers with {type(found).__name__}, expected logits: a tensor, or a tuple that "
            "begins with it"
        )
    return found.detach().cpu().float()


def told_task(heard: list[Heard], classes: int, labelled: bool, given: Task | None) -> Task:
    """The task, told by how many numbers the module answers to the first text.

    Raises `AdoptError` where they are those of no task, or of another than `given`.
    """
    if given not in (None, *TASKS):
        raise AdoptError(f"task: found {given!r}, expected one of {', '.join(TASKS)}, or None")
    if given is not None and labelled == (given == "lm"):
        raise AdoptError(
            f"task: found {given!r} and labels {'given' if labelled else 'None'}; labels is None for lm, whose answers "
            "are characters, and only for lm"
        )
    for one in heard:
        B, T = one.texts[0].shape
        shape, numbers = tuple(one.answers[0].shape), one.answers[0].numel()
        if numbers not in (B * T * classes, B * classes):
            continue
        per = "character" if numbers == B * T * classes else "text"
        task: Task = "classify" if per == "text" else "tag" if labelled else "lm"
        expected = given or (task if labelled else "lm")
        if task != expected:
            raise AdoptError(
                f"task: {expected} needs an answer for each {'text' if per == 'character' else 'character'}; the module "
                f"gives one for each {per}: {shape} for {B} × {T} characters"
            )
        return task
    B, T = heard[0].texts[0].shape
    found = tuple(heard[0].answers[0].shape)
    raise AdoptError(
        f"the module answers to {B} × {T} characters with {found}; expected logits {(B, T, classes)} or, one answer "
        f"for each text, {(B, classes)}"
    )


def agreement(network: Network, ids: Ids, heard: list[Heard]) -> tuple[Way, str] | None:
    """The way of calling, and the form of the answers, in which every number is that of our network, if any."""
    for one in heard:
        agreeing = [
            _agreeing(network, ids, text, answer) for text, answer in zip(one.texts, one.answers, strict=True)
        ]
        for form in agreeing[0]:
            if all(form in forms for forms in agreeing):
                return one.way, form
    return None


def _agreeing(network: Network, ids: Ids, text: Tensor, answer: Tensor) -> list[str]:
    """The forms in which `answer`, to `text (B, T)` of their ids, is what our network answers."""
    B, T = text.shape
    number = {theirs: ours for ours, theirs in enumerate(ids.ours) if theirs is not None}
    with torch.inference_mode():
        wanted = network(text.clone().apply_(number.__getitem__), torch.full((B,), T))
    columns: Any = slice(None)  # of their answers, those that both have
    C = wanted.shape[-1]
    if network.task == "lm":
        columns, C = list(number), len(ids)
        wanted = wanted[..., list(number.values())]
    arranged = _arranged(answer, B, T, C, network.task == "classify")
    return [form for form, found in arranged if close(found[..., columns], wanted)]


def _arranged(answer: Tensor, B: int, T: int, C: int, per_text: bool) -> Iterator[tuple[str, Tensor]]:
    """The ways to read an answer as `(B, T, C)`, or `(B, C)` where there is one for each text."""
    if per_text:
        if answer.numel() == B * C:
            yield "(B, C)", answer.reshape(B, C)
    elif answer.numel() == B * T * C:
        yield "(B, T, C)", answer.reshape(B, T, C)
        yield "(T, B, C)", answer.reshape(T, B, C).transpose(0, 1)
        yield "(B, C, T)", answer.reshape(B, C, T).transpose(1, 2)


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two answers `(..., C)` agree within the tolerance of a proof; NaN never does."""
    allowed = TOLERANCE * (1 + wanted.abs().amax(dim=-1, keepdim=True))
    return bool(((found - wanted).abs() <= allowed).all())


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]

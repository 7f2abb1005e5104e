"""Where a module of others does something that is not one of its known parts, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ohlol.artifacts.contract import Task
from ohlol.export.calling import Heard, call, close
from ohlol.export.parts import Found

GIVEN, ANSWER = "what it is given", "its answer"
_ACROSS = "across:"  # marks what may be only the wrong way of calling


@dataclass(frozen=True)
class Call:
    """One call of a part: what it was given (and, for a recurrent one, from which state) and what it answered."""

    name: str
    part: nn.Module
    given: Any
    state: Any
    answer: Any


def place(module: nn.Module, found: Found, heard: list[Heard], task: Task) -> str:
    """What keeps the module's answers from being those of its parts alone.

    It is told of the way of calling in which the recurrent modules read along the text, if there is one.
    """
    told = []
    for one in heard:
        text = one.texts[0]
        given = one.way.given(text)
        calls, answer = _calls(module, found, given)
        told.append(_place(found, calls, given, answer, text, task))
        if not told[-1].startswith(_ACROSS):
            return told[-1]
    return told[0].removeprefix(_ACROSS)


def _place(found: Found, calls: list[Call], given: Tensor, answer: Tensor, text: Tensor, task: Task) -> str:
    T = text.shape[1]
    for name, _ in found.in_order:
        times = sum(one.name == name for one in calls)
        if times != 1:
            return f"`{name}` is called {times} times for one text, expected once with the whole text"
    by_name = {one.name: one for one in calls}

    before, said = GIVEN, given if given.is_floating_point() else given[..., None]
    if found.embedding is not None:
        before = found.embedding[0]
        if not _alike(by_name[before].given[..., None], said):
            return _between(GIVEN, before, calls)
        said = by_name[before].answer
    elif not given.is_floating_point():  # ids, which the module itself turns into one-hot
        said = by_name[found.recurrent[0][0]].given
    for name, part in found.recurrent:
        one, time = by_name[name], 1 if part.batch_first else 0
        if not _alike(one.given, said):
            return _between(before, name, calls)
        if one.given.dim() != 3 or one.given.shape[time] != T:
            return (
                f"{_ACROSS}`{name}`, with batch_first={part.batch_first}, is given {tuple(one.given.shape)} for "
                f"{len(text)} texts of {T} characters, and so does not read along the text"
            )
        if any(bool(state.any()) for state in _tensors(one.state)):
            return f"`{name}` starts from a state that is not zero"
        before, said = name, one.answer
    rows = said if found.recurrent[-1][1].batch_first else said.transpose(0, 1)  # (B, T, W)
    state = _state(found, rows)
    wanted = [state if task == "classify" else rows]
    if found.linear is not None:
        name, linear = found.linear
        one = by_name[name]
        if not any(_alike(one.given, form) for form in (rows, *wanted)):
            return _last_step(found, rows, one.given) or _between(before, name, calls)
        # A linear layer may also act at each step, and one step of its answers be taken.
        before, wanted = name, [one.answer, *(_linear(linear, form) for form in wanted)]
    forms = [answer, answer.transpose(1, 2)] if answer.dim() == 3 else [answer]
    if not any(_alike(form, want) for form in forms for want in wanted):
        last = rows if found.linear is None else _linear(found.linear[1], rows)
        return (_last_step(found, last, answer) if task == "classify" else "") or _between(
            before, ANSWER, calls
        )
    return "its parts are joined in another order than they are named in"


def _calls(module: nn.Module, found: Found, given: Tensor) -> tuple[list[Call], Tensor]:
    """Every call of a known part or of one without parts of its own, in order, and the module's answer."""
    known = {part for _, part in found.in_order}
    calls: list[Call] = []

    def note(name: str) -> Any:
        def hook(part: nn.Module, args: Any, named: dict[str, Any], answer: Any) -> None:
            first = args[0] if args else next(iter(named.values()), None)
            state = args[1] if len(args) > 1 else named.get("hx")
            answer = answer[0] if isinstance(part, nn.RNNBase) else answer
            calls.append(Call(name, part, _plain(first, part), state, _plain(answer, part)))

        return hook

    hooks = [
        part.register_forward_hook(note(name or type(part).__name__), with_kwargs=True)
        for name, part in module.named_modules()
        if part in known or not any(part.children())
    ]
    try:
        answer = call(module, given)
    finally:
        for one in hooks:
            one.remove()
    return calls, answer


def _plain(value: Any, part: nn.Module) -> Any:
    if isinstance(value, PackedSequence):
        value = pad_packed_sequence(value, batch_first=bool(getattr(part, "batch_first", False)))[0]
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, tuple | list):
        return [tensor for part in state for tensor in _tensors(part)]
    return [state] if isinstance(state, Tensor) else []


def _state(found: Found, rows: Tensor) -> Tensor:
    """Each direction's state after the whole text, `(B, W)`, from `rows (B, T, W)`."""
    part = found.recurrent[-1][1]
    if not part.bidirectional:
        return rows[:, -1]
    return torch.cat([rows[:, -1, : part.hidden_size], rows[:, 0, part.hidden_size :]], dim=-1)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """On the CPU, wherever the module is."""
    bias = None if layer.bias is None else layer.bias.cpu()
    return functional.linear(x, layer.weight.cpu(), bias)


def _last_step(found: Found, rows: Tensor, given: Tensor) -> str:
    """The mistake that two-way networks are known for: the second direction's state after one character only."""
    if not found.recurrent[-1][1].bidirectional or not _alike(given, rows[:, -1]):
        return ""
    return (
        "it takes the last step of both directions, [:, -1], where the second one has read only the last "
        "character; ohlol's takes each direction's state after the whole text, which is torch.cat([h[-2], h[-1]], -1) "
        "of the state h that the layer returns: train it with that"
    )


def _alike(found: Any, wanted: Tensor) -> bool:
    """Whether two tensors `(..., D)` hold the same rows: in one order, or with batch and time exchanged."""
    if (
        not isinstance(found, Tensor)
        or found.numel() != wanted.numel()
        or found.shape[-1:] != wanted.shape[-1:]
    ):
        return False
    forms = [wanted, wanted.transpose(0, 1)] if wanted.dim() == 3 else [wanted]
    flat = found.reshape(-1, found.shape[-1]).float()
    return any(close(flat, form.reshape(flat.shape).float()) for form in forms)


def _between(before: str, after: str, calls: list[Call]) -> str:
    """The place, with the parts without weights that are called there."""
    names = [one.name for one in calls]
    start = names.index(before) + 1 if before in names else 0
    end = names.index(after) if after in names else len(names)
    there = [f"`{one.name}` ({type(one.part).__name__})" for one in calls[start:end]]
    quoted = [name if name in (GIVEN, ANSWER) else f"`{name}`" for name in (before, after)]
    hint = f": {', '.join(there)}" if there else ""
    return f"something happens between {quoted[0]} and {quoted[1]}{hint}"

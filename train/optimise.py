"""From gradients to weights: optimizer, learning rate, clipping, the weights' running mean."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ohlol.train.recipe import Train

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class Optimiser:
    """What a recipe says of training's steps, of which there are `steps` in all."""

    def __init__(self, network: nn.Module, settings: Train, steps: int) -> None:
        self.settings = settings
        self.steps = steps
        self.parameters = list(network.parameters())
        self.optimizer = OPTIMIZERS[settings.optimizer](
            self.parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,  # type: ignore[call-arg]
        )
        self.mean = [weight.detach().clone() for weight in self.parameters] if settings.averaging else []

    def step(self, number: int) -> None:
        """Apply the gradients, as step `number` of the training, from 0; and drop them."""
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if self.varies:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.mean:
            # At first the mean is over as many weights as there were, so that the first ones soon count no more.
            decay = min(self.settings.averaging, (1 + number) / (10 + number))
            get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
                self.mean, self.parameters, number
            )

    def gradients(self) -> list[Tensor]:
        """Of every parameter, zeros where a process had no rows."""
        for weight in self.parameters:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight in self.parameters if weight.grad is not None]

    @property
    def varies(self) -> bool:
        """Whether the learning rate does."""
        return self.settings.warm_up > 0 or self.settings.decay != "none"

    def learning_rate(self, number: int) -> float:
        """Of step `number`, from 0: it rises in a line, stays, or falls to 0 in a line or half a cosine."""
        settings = self.settings
        warm = settings.warm_up * self.steps
        if number + 1 < warm:
            return settings.learning_rate * (number + 1) / warm
        done = min((number + 1 - warm) / max(self.steps - warm + 1, 1), 1.0)
        if settings.decay == "linear":
            return settings.learning_rate * (1 - done)
        if settings.decay == "cosine":
            return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
        return settings.learning_rate

    def swap(self) -> None:
        """Exchange weights and mean, where there is one: the mean is what is measured and kept."""
        with torch.no_grad():
            for weight, mean in zip(self.parameters, self.mean, strict=False):
                other = weight.clone()
                weight.copy_(mean)
                mean.copy_(other)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What resuming needs besides the weights: tensors, and plain numbers, by name.

        It is asked for while weights and mean are exchanged, and `load` is called on weights that were kept so.
        """
        entries = {f"weights.{number}": weight for number, weight in enumerate(self.mean)}
        for number, own in self.optimizer.state_dict()["state"].items():
            entries |= {f"{number}.{key}": value for key, value in own.items()}
        tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in entries.items() if name not in tensors}

    def load(self, entries: dict[str, Any]) -> None:
        """Put back what `state` gave. Raises `ValueError`, `KeyError` or `RuntimeError` where it does not fit."""
        found: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for number, weight in enumerate(self.mean):
                weight.copy_(entries[f"weights.{number}"])
        self.swap()
        for name, value in entries.items():
            first, _, key = name.partition(".")
            if first != "weights":
                found.setdefault(int(first), {})[key] = value
        self.optimizer.load_state_dict(
            {"state": found, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )

"""Steps: the learning rate by its formula, the mean of weights and weight decay by a plain loop."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ohlol.train.optimise import Optimiser
from ohlol.train.recipe import Train

shares = st.floats(0.0, 1.0)
counts = st.integers(1, 200)


def rates(steps: int, **settings: Any) -> list[float]:
    optimiser = Optimiser(nn.Linear(1, 1), Train(learning_rate=0.5, **settings), steps)
    return [optimiser.learning_rate(number) for number in range(steps)]


@given(counts, shares)
def test_warm_up_rises_in_a_line(steps: int, share: float) -> None:
    """Step n of w takes n / w of the rate; from then on all of it."""
    warm = share * steps
    expected = [0.5 * min((number + 1) / warm, 1) if warm else 0.5 for number in range(steps)]
    assert rates(steps, warm_up=share) == pytest.approx(expected)


@given(counts, shares, st.sampled_from(["linear", "cosine"]))
def test_decay_falls_to_nearly_nothing(steps: int, share: float, decay: str) -> None:
    """After the warm-up it never rises, by its formula; one step more would take 0."""
    warm = share * steps
    found = rates(steps, warm_up=share, decay=decay)
    after = [number for number in range(steps) if number + 1 >= warm]
    done = [(number + 1 - warm) / (steps - warm + 1) for number in after]
    shape = {"linear": lambda d: 1 - d, "cosine": lambda d: (1 + math.cos(math.pi * d)) / 2}[decay]
    assert [found[number] for number in after] == pytest.approx([0.5 * shape(d) for d in done])
    assert all(0 <= b <= a for a, b in pairwise(found[number] for number in after))
    if warm == 0 and steps >= 10:
        assert found[-1] < 0.5 * 0.1


def one_step(optimiser: Optimiser, network: nn.Module, number: int) -> None:
    network(torch.ones(1, 3)).square().sum().backward()
    optimiser.step(number)


@given(st.floats(0.01, 0.999), st.integers(1, 40))
def test_averaging_is_a_running_mean(decay: float, steps: int) -> None:
    """mean = d · mean + (1 - d) · weight after each step, with d at most (1 + n) / (10 + n) at step n."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = Optimiser(network, Train(averaging=decay, optimizer="sgd", learning_rate=0.05), steps)
    mean = network.weight.detach().clone().double()
    for number in range(steps):
        one_step(optimiser, network, number)
        d = min(decay, (1 + number) / (10 + number))
        mean = d * mean + (1 - d) * network.weight.detach().double()
    last = network.weight.detach().clone()
    optimiser.swap()
    torch.testing.assert_close(network.weight.detach().double(), mean, atol=1e-5, rtol=1e-5)
    optimiser.swap()
    assert torch.equal(network.weight, last)


def test_adamw_decays_weights_apart_from_gradients() -> None:
    """Where the gradient is 0, a step leaves 1 - rate · decay of a weight; adam would count decay as gradient."""
    network = nn.Linear(3, 2)
    before = network.weight.detach().clone()
    optimiser = Optimiser(network, Train(optimizer="adamw", learning_rate=0.1, weight_decay=0.5), 1)
    (network(torch.ones(1, 3)) * 0.0).sum().backward()
    optimiser.step(0)
    torch.testing.assert_close(network.weight.detach(), before * (1 - 0.1 * 0.5))


def test_clip_norm_scales_all_gradients_together() -> None:
    """A step of plain descent is as long as the limit, in the gradient's direction; a shorter one stays."""
    for limit, scaled in ((0.1, True), (1e6, False)):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
        optimiser = Optimiser(network, Train(optimizer="sgd", learning_rate=1.0, clip_norm=limit), 1)
        network(torch.ones(1, 3)).square().sum().backward()
        gradient = torch.cat([weight.flatten() for weight in optimiser.gradients()])
        expected = gradient * (limit / gradient.norm() if scaled else 1.0)
        optimiser.step(0)
        step = before - nn.utils.parameters_to_vector(network.parameters()).detach()
        torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-4)

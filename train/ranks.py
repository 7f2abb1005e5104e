"""Several processes that train one network together, as `torchrun` starts them; one process is the plain case.

Every process reads the same batches and takes the rows that are its own; gradients are summed. Docs: scaling.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from ohlol.artifacts.errors import RecipeError, TrainingError


class Ranks:
    """This process among the others. Alone, nothing is sent."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def ours(self) -> slice:
        """The rows of a batch that are this process's."""
        return slice(self.rank, None, self.world)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor (float32) by its sum over the processes, in one message."""
        if self.world == 1:
            return
        together = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with _others():
            distributed.all_reduce(together)
        for tensor, total in zip(tensors, torch.split(together, [t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(total.view_as(tensor))

    def told(self, value: Any) -> Any:
        """What the first process has as `value`, which JSON can say."""
        if self.world == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        size = torch.tensor([len(text)], device=self.device)
        with _others():
            distributed.broadcast(size, 0)
            content = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
            if self.first:
                content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            distributed.broadcast(content, 0)
        return json.loads(content.cpu().numpy().tobytes())


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The processes that `torchrun` started together with this one; just this one without it.

    `device` is "auto" or torch's name of one. Raises `RecipeError` where it is not to be had.
    """
    world, rank, local = (
        int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    where = torch.device(_device(device, local))
    if world == 1:
        yield Ranks(device=where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, where)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local: int) -> str:
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{local % torch.cuda.device_count()}"
    if name == "auto":
        return "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        raise RecipeError(
            f'--device {name}: not to be had here ({str(error).splitlines()[0]}); "auto" takes what there is'
        ) from error
    return name


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this run has ended ({str(error).splitlines()[0]:.120}); what was saved is whole, go on "
            "with --resume"
        ) from error

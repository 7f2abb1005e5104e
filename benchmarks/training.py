"""The training loop beside two peers, side by side in one run: characters a second.

    pip install lightning==2.6.6    # 2.6.2 and 2.6.3 are malicious; without it, its columns are empty
    python benchmarks/training.py [--rounds 9] [--steps 30] [--threads 1] [--device cpu] > training.md

Ours is `ohlol.train.loop.train`, whole. *Tutorial* is the loop as PyTorch's tutorials write it: a DataLoader that pads
in its `collate_fn`, one `nn.LSTM(bidirectional=True)` over `pack_padded_sequence(enforce_sorted=False)`,
`CrossEntropyLoss(ignore_index=...)`, Adam. *Lightning* is its Trainer on our own network and our own batches, without
logger, checkpoints, progress bar and summary. Networks: the tiny one of `hello` (batch 1), and RNN, GRU and LSTM both
ways (D 64, H 128, batches of 64 rows of 32 to 64 characters; our loop puts rows of like length together, and so
every side has them together).

Every side starts from the same weights and takes the same batches in the same order with the same settings; its mean
loss over the epoch is printed, and there is no ratio where two differ by more than rounding. Each round trains every
side once for one epoch, so that whatever else the machine does falls on all of them. Time runs from the end of the
first step to the end of the last: without what begins an epoch and without the checkpoint that ends ours. The table
has the medians of the rounds, and the ratio's lowest and highest.

The goals: both ways 2.5 times the tutorial's speed with LSTM, 2 times with GRU and RNN; 1.2 times Lightning's on the
tiny network; never below 1. `--device cuda` measures in bfloat16 (autocast) as well. Run it with
nothing else running.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from ohlol.artifacts.alphabet import PADDING
from ohlol.train.batches import IGNORE
from ohlol.train.checkpoint import new_network
from ohlol.train.data import Dataset, load
from ohlol.train.loop import train
from ohlol.train.network import CELLS, Network
from ohlol.train.progress import Progress
from ohlol.train.recipe import Recipe

LETTERS, LABELS = "".join(map(chr, range(33, 133))), "BIOS"
TINY = {"cell": "rnn", "embedding_size": 10, "hidden_size": 8, "num_layers": 2}
# By how much the losses of two sides may differ: sums in another order, and steps that follow from them. On a GPU
# cuDNN multiplies float32 as TF32.
TOLERANCE = {
    ("cpu", torch.float32): 1e-6,
    ("cuda", torch.float32): 1e-3,
    ("cuda", torch.bfloat16): 1e-2,
}


class Clock(Progress):
    """Characters a second from the end of the first step to the end of the last."""

    def __init__(self, characters: int, device: str) -> None:
        self.left, self.device = characters, device
        self.timed: int | None = None  # characters after the first step

    def step(self, characters: int, loss: float = 0.0) -> None:
        self.left -= characters
        if self.timed is None:
            self.timed, self.began = self.left, self.now()
        if not self.left:
            self.rate = self.timed / (self.now() - self.began)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


Side = Callable[[Recipe, Dataset, Clock], float]  # trains one epoch, answers its mean loss


def ours(recipe: Recipe, data: Dataset, clock: Clock) -> float:
    if torch.is_autocast_enabled(clock.device):  # our loop sets its own
        settings = recipe.train.model_copy(update={"precision": "bfloat16"})
        recipe = recipe.model_copy(update={"train": settings})
    with TemporaryDirectory() as folder:
        ended = train(recipe, data, Path(folder) / "run", device=clock.device, progress=clock)
    return float(ended.state.history[-1]["loss"])


class Tutorial(nn.Module):
    """Embedding, one recurrent module over packed rows, linear head, with the weights of our network."""

    def __init__(self, recipe: Recipe, network: Network) -> None:
        super().__init__()
        model, weights = recipe.model, network.state_dict()
        classes, width = weights["head.weight"].shape
        self.embedding = nn.Embedding(len(weights["embedding.weight"]), model.embedding_size, PADDING)
        self.rnn: Any = CELLS[model.cell][0](
            model.embedding_size, model.hidden_size, model.num_layers,
            batch_first=True, bidirectional=model.bidirectional,
        )  # fmt: skip
        self.head = nn.Linear(width, classes)
        own = {name: value for name, value in weights.items() if not name.startswith("layers.")}
        for (
            name
        ) in self.rnn.state_dict():  # such as weight_ih_l1_reverse, which is our layers.1.1.weight_ih_l0
            stem, _, rest = name.partition("_l")
            layer, _, back = rest.partition("_")
            own[f"rnn.{name}"] = weights[f"layers.{layer}.{int(back == 'reverse')}.{stem}_l0"]
        self.load_state_dict(own)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out)


def tutorial(recipe: Recipe, data: Dataset, clock: Clock) -> float:
    model = Tutorial(recipe, initial(recipe, data)).to(clock.device)
    rows = data.train.rows
    each = (rows.batch(np.array([number])) for number in range(len(rows)))
    examples = [(torch.from_numpy(row.ids[0]), torch.from_numpy(row.targets[0])) for row in each]
    loader = DataLoader(examples, batch_sampler=batches(recipe, data), collate_fn=collate)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.train.learning_rate)
    model.train()
    losses, weights = [], []
    for ids, lengths, targets in loader:
        optimizer.zero_grad()
        logits = model(ids.to(clock.device), lengths)
        loss = criterion(logits.flatten(0, 1), targets.to(clock.device).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        weights.append(int(lengths.sum()))
        clock.step(weights[-1])
    return mean(losses, weights)


def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    ids, targets = zip(*rows, strict=True)
    lengths = torch.tensor([len(row) for row in ids])
    return pad_sequence(ids, True, PADDING), lengths, pad_sequence(targets, True, IGNORE)


def trainer(recipe: Recipe, data: Dataset, clock: Clock) -> float:
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = initial(recipe, data)
            self.losses: list[Tensor] = []
            self.weights: list[int] = []

        def training_step(self, batch: tuple[Tensor, Tensor, Tensor], number: int) -> Tensor:
            ids, lengths, targets = batch
            logits = self.network(ids, lengths)
            return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

        def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, ...], number: int) -> None:
            self.losses.append(outputs["loss"].detach())
            self.weights.append(int(batch[1].sum()))
            clock.step(self.weights[-1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=recipe.train.learning_rate)

    class Batches(torch.utils.data.Dataset[tuple[Tensor, ...]]):
        def __init__(self) -> None:
            self.index = batches(recipe, data)

        def __len__(self) -> int:
            return len(self.index)

        def __getitem__(self, number: int) -> tuple[Tensor, ...]:
            return tuple(map(torch.from_numpy, data.train.rows.batch(self.index[number])))

    module = Module()
    fit = Trainer(
        max_epochs=1, accelerator="gpu" if clock.device == "cuda" else "cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fit.fit(module, DataLoader(Batches(), batch_size=None))
    return mean(module.losses, module.weights)


def initial(recipe: Recipe, data: Dataset) -> Network:
    """The network that our loop starts from."""
    torch.manual_seed(recipe.train.seed)
    return new_network(recipe, data.vocabulary)


def batches(recipe: Recipe, data: Dataset) -> list[Any]:
    """The batches that our loop takes, as row numbers."""
    return list(data.train.rows.order(recipe.train.batch_size, recipe.train.seed, 0))


def mean(losses: list[Tensor], weights: list[int]) -> float:
    return float(np.average(torch.stack(losses).tolist(), weights=weights))


def recipes(steps: int) -> dict[str, Recipe]:
    """The networks by name, each with an epoch of data; the tiny one takes ten times the steps."""
    random = np.random.default_rng(0)
    rows = []
    for length in random.integers(32, 65, size=64 * steps):
        ids = random.integers(len(LETTERS), size=length)
        kinds = (ids + np.append(ids[1:], 0)) % len(LABELS)  # of a character and the one after it
        rows.append(["".join(LETTERS[k] for k in ids), "".join(LABELS[k] for k in kinds)])

    def recipe(rows: list[list[str]], labels: str, **sections: Any) -> Recipe:
        tables = {"data": {"format": "inline", "rows": rows, "labels": list(labels)}, **sections}
        return Recipe.parse({"task": {"kind": "tag"}, **tables}, "benchmark")

    tiny = {"epochs": 1, "batch_size": 1, "learning_rate": 0.05}
    found = {"tiny": recipe([["hello", "ohlol"]] * 10 * steps, "ehlo", model=TINY, train=tiny)}
    for cell in CELLS:
        model = {"cell": cell, "embedding_size": 64, "hidden_size": 128, "bidirectional": True}
        settings = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01}
        found[f"{cell}, both ways"] = recipe(rows, LABELS, model=model, train=settings)
    return found


def measure(
    recipe: Recipe, sides: dict[str, Side], rounds: int, device: str, kind: torch.dtype
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Each side's characters a second in each round, and its mean loss. One round more warms up."""
    data = load(recipe, Path())
    rates: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, side in sides.items():
            clock = Clock(data.train.rows.characters, device)
            # Without its cache, which would hold weights from before a step until the context ends.
            with torch.autocast(device, kind, enabled=kind != torch.float32, cache_enabled=False):
                losses[name] = side(recipe, data, clock)
            if number:
                rates[name].append(clock.rate)
    return rates, losses


def row(rates: dict[str, list[float]], losses: dict[str, float], tolerance: float) -> tuple[list[str], bool]:
    """The cells of one network, and whether every side learnt the same."""
    ratios = []
    differences = {name: abs(loss - losses["ours"]) for name, loss in losses.items() if name != "ours"}
    for name, difference in differences.items():
        each = [own / peer for own, peer in zip(rates["ours"], rates[name], strict=True)]
        said = f"{median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
        ratios.append(said if difference <= tolerance else "losses differ")
    speeds = [f"{median(each):,.0f}" for each in rates.values()]
    said = ", ".join(f"{loss:.6f}" for loss in losses.values())
    same = all(difference <= tolerance for difference in differences.values())
    return [*speeds, *ratios, said, f"{max(differences.values()):.1e}"], same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--steps", type=int, default=30, help="in an epoch; the tiny network takes 10 times as many"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", default="", help="only those whose name contains this")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sides: dict[str, Side] = {"ours": ours, "tutorial": tutorial}
    try:
        import lightning.pytorch  # noqa: F401
    except ImportError:
        print("Lightning is left out; pip install lightning==2.6.6", file=sys.stderr)
    else:
        sides["Lightning"] = trainer
        warnings.simplefilter("ignore")  # it would rather have more workers
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{given.threads} thread(s)"
    print(
        f"torch {torch.__version__}; {where}; {given.rounds} rounds, {given.steps} steps; characters a second\n"
    )
    ratios = [f"ours / {name}" for name in sides if name != "ours"]
    print("|", " | ".join(["network", *sides, *ratios, "losses", "differ by"]), "|")
    print("|---|" + "---|" * (len(sides) + len(ratios) + 2))
    kinds = [kind for device, kind in TOLERANCE if device == given.device]
    agreed = True
    for name, recipe in recipes(given.steps).items():
        for kind in kinds if given.networks in name else ():
            rates, losses = measure(recipe, sides, given.rounds, given.device, kind)
            cells, same = row(rates, losses, TOLERANCE[given.device, kind])
            print("|", " | ".join([f"{name}, {str(kind).removeprefix('torch.')}", *cells]), "|", flush=True)
            agreed &= same
    if not agreed:
        sys.exit("not every side learnt the same, and so there is no ratio")


if __name__ == "__main__":
    main()

"""How large a network, and how long to train it: simple rules of the amount of data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ohlol.artifacts.contract import Task
from ohlol.train.draft import Key
from ohlol.train.readers import Example

ENOUGH = 20  # rows; of fewer none are set aside for dev and test; and the least batches in an epoch
LONGEST = 500  # characters of a row, beyond which training is slow and batches are mostly padding
RARE = 3  # a character that occurs less often is too rare to learn
BATCH = 4_096  # characters in one step
STEPS = 5_000  # in all


@dataclass(frozen=True)
class Facts:
    """What the sizes are guessed from. `rows` (once cut) and `total` are of the whole file, the rest of what was read."""

    rows: int
    total: int  # characters
    longest: int
    alphabet: Counter[str]
    labels: Counter[str]  # the rows that each label stands in

    @classmethod
    def of(cls, examples: Sequence[Example], share: float, task: Task) -> Facts:
        alphabet: Counter[str] = Counter()
        labels: Counter[str] = Counter()
        for example in examples:
            alphabet.update(example.text)
            labels.update(set(example.labels))
        lengths = [len(example.text) for example in examples]
        rows = sum(ceil(length / LONGEST) for length in lengths) if task == "tag" else len(lengths)
        return cls(round(rows / share), round(alphabet.total() / share), max(lengths), alphabet, labels)


def sizes(task: Task, facts: Facts, has_dev: bool) -> list[Key]:
    """The keys that follow from the amount of data."""
    return [*_limits(task, facts), *_model(task, facts), *_train(facts, has_dev)]


def _limits(task: Task, facts: Facts) -> list[Key]:
    keys = []
    if task == "tag" and facts.longest > LONGEST:
        why = f"longer training rows are cut; the longest has {facts.longest:,} characters"
        keys.append(Key("data.max_length", LONGEST, why))
    rare = sum(count < RARE for count in facts.alphabet.values())
    # The score of an lm is flattered by characters that are all one target.
    if task != "lm" and facts.total >= 10_000 and rare >= max(10, len(facts.alphabet) / 20):
        why = f"rarer characters are unknown: {rare:,} of {len(facts.alphabet):,} are"
        keys.append(Key("data.min_count", RARE, why))
    return keys


def _model(task: Task, facts: Facts) -> list[Key]:
    total, known = facts.total, len(facts.alphabet)
    embedding = _step(known, (32, 200), (64, 2_000), largest=128)
    hidden = _step(total, (32, 20_000), (64, 500_000), (128, 5_000_000), largest=256)
    layers = 2 if total >= (50_000 if task == "tag" else 5_000_000) else 1
    amount = f"{total:,} characters"
    way = "the text is there whole, so it is read both ways"
    if task == "lm":
        hidden, way = 2 * hidden, "an lm reads one way: it would see the answer"
    return [
        Key(
            "model.embedding_size",
            embedding,
            f"{known:,} different characters: 32 below 200, 64 below 2,000, else 128",
        ),
        Key("model.cell", "lstm", "or gru, which has a quarter fewer weights"),
        Key(
            "model.hidden_size",
            hidden,
            f"{amount}: 32 below 20,000, 64 below 500,000, 128 below 5,000,000, else 256"
            + (", and twice that for an lm" if task == "lm" else ""),
        ),
        Key(
            "model.num_layers",
            layers,
            f"{amount}: 2 from {'50,000' if task == 'tag' else '5,000,000'}, to begin with",
        ),
        Key("model.bidirectional", task != "lm", way),
        *([Key("model.dropout", 0.2, "between the layers, against learning by heart")] if layers > 1 else []),
    ]


def _train(facts: Facts, has_dev: bool) -> list[Key]:
    fitting = min(BATCH * facts.rows // facts.total, facts.rows // ENOUGH)
    batch = max(size for size in (4, 8, 16, 32, 64) if size <= max(fitting, 4))
    epochs = min(max(STEPS * batch // facts.rows, 5), 50)
    mean = facts.total / facts.rows
    return [
        Key("train.epochs", epochs, f"about {STEPS:,} steps in all, from 5 epochs to 50"),
        Key(
            "train.batch_size",
            batch,
            f"{facts.rows:,} rows of {mean:.0f} characters: about {BATCH:,} characters a step, {ENOUGH} steps an epoch or more",
        ),
        Key("train.learning_rate", 0.003, "a start for networks of this size; less where the loss jumps"),
        Key("train.clip_norm", 1.0, "so that one odd batch does not throw the weights far"),
        *([Key("train.early_stopping", 5, "epochs without a better dev metric")] if has_dev else []),
        Key("train.seed", 0, "the same seed gives the same weights"),
    ]


def _step(amount: int, *steps: tuple[int, int], largest: int) -> int:
    """The size of the first step whose bound is above `amount`."""
    return next((size for size, bound in steps if amount < bound), largest)

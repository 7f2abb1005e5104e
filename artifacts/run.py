"""The run: the folder that training leaves and that resuming, evaluating and exporting read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import CheckpointError, OhlolError
from ohlol.artifacts.files import folder_or_backup, new_file


class Layout:
    """Every file name of a run; no other module spells one."""

    recipe = "recipe.toml"
    alphabet = "alphabet.json"
    metrics = "metrics.jsonl"
    results = "results.json"  # the metrics of the best checkpoint, once training ended
    report = "report.html"
    tensorboard = "tensorboard"  # a folder of event files
    last = "last"
    best = "best"
    model = "model.safetensors"  # in last/ and best/
    optimizer = "optimizer.safetensors"  # in last/: what resuming needs, with state
    state = "state.json"
    lock = ".lock"  # held while a process trains


LOWER_IS_BETTER = frozenset({"nats_per_character", "bits_per_character"})  # of the metrics in `results`
NAMES = frozenset(name for key, name in vars(Layout).items() if not key.startswith("_"))


@dataclass(frozen=True)
class Vocabulary:
    """What a run knows of its data: characters in, labels out. `labels` is empty for `lm`."""

    alphabet: Alphabet
    labels: tuple[str, ...]
    label_scheme: str | None

    def save(self, folder: Path) -> None:
        facts = {
            "characters": self.alphabet.characters,
            "normalisation": self.alphabet.normalisation,
            "labels": list(self.labels),
            "label_scheme": self.label_scheme,
        }
        with new_file(folder / Layout.alphabet) as file:
            json.dump(facts, file, ensure_ascii=False, indent=2)

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Raises `CheckpointError` where the file is missing or damaged."""
        path = require(folder / Layout.alphabet)
        try:
            facts = json.loads(path.read_bytes())
            alphabet = Alphabet(facts["characters"], facts["normalisation"])
            labels, scheme = facts["labels"], facts["label_scheme"]
        except (ValueError, KeyError, TypeError, OhlolError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); train again") from error
        strings = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if scheme not in (None, words.SCHEME) or not strings:
            raise CheckpointError(f"{path}: damaged (labels or their scheme); train again")
        return cls(alphabet, tuple(labels), scheme)


def is_run(folder: Path) -> bool:
    return (folder / Layout.recipe).is_file()


def require(path: Path) -> Path:
    """`path`, which must exist. Raises `CheckpointError`."""
    if not path.exists():
        raise CheckpointError(f"{path}: missing; expected a run made by `ohlol train`")
    return path


def checkpoint(folder: Path, which: str) -> Path:
    """The folder of the checkpoint `which` ("last" or "best") of a run. Raises `CheckpointError`."""
    return require(folder_or_backup(folder / which))

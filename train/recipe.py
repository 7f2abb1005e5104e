"""The recipe: the TOML file that says everything about a training run. Keys in docs/recipe.md."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Form
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import RecipeError
from ohlol.train import mistakes

Format = Literal["tsv", "jsonl", "csv", "text", "folder", "conllu", "inline", "none"]
Metric = Literal["accuracy", "macro_f1", "words_f1", "sentences_f1", "nats_per_character"]
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TaskSection(Section):
    kind: Task


class Data(Section):
    """Where the examples are. Paths are relative to `--data DIR`, else to the recipe."""

    format: Format
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    rows: list[Pair] | None = None  # `inline`: text and label, here in the recipe
    split: Annotated[list[float], Field(min_length=3, max_length=3)] | None = (
        None  # train, dev, test parts of `train`
    )
    split_seed: int = Field(0, ge=0, lt=2**63)
    deduplicate: bool = False
    text: str | int | None = None  # column or field of the text; default: 0 (tsv), "text" (csv, jsonl)
    label: str | int | None = None  # of the label; default: 1 (tsv), "label" (csv, jsonl)
    label_separator: str = ""  # between the labels of a `tag` row; "" = each character is one
    row: Literal["sentence", "paragraph", "document"] = "sentence"  # `conllu`: what one row is
    sequence_length: int = Field(128, ge=1, le=1_000_000)  # `text`: characters in one row
    max_length: int | None = Field(None, ge=1)  # `tag`: longer training rows are cut into pieces this long
    normalisation: Form = "NFC"
    alphabet: str | None = None  # the known characters, where they should not be read off the data
    labels: list[str] | None = None  # the labels, likewise
    min_count: int = Field(1, ge=1)  # rarer characters are unknown
    label_scheme: Literal["words"] | None = None  # labels are B, I, O, S: words and sentences


class ModelSection(Section):
    """Embedding or one-hot, then the recurrent layers, then a linear head or none."""

    input: Literal["embedding", "one_hot"] = "embedding"
    embedding_size: int = Field(32, ge=1, le=65_536)
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    hidden_size: int = Field(64, ge=1, le=65_536)
    num_layers: int = Field(1, ge=1, le=64)
    bidirectional: bool = False
    dropout: float = Field(0.0, ge=0.0, lt=1.0)  # between layers
    embedding_dropout: float = Field(0.0, ge=0.0, lt=1.0)  # of the embedded characters
    output_dropout: float = Field(0.0, ge=0.0, lt=1.0)  # before the head
    character_dropout: float = Field(0.0, ge=0.0, lt=1.0)  # characters that training reads as unknown
    locked_dropout: bool = False  # one mask for a whole row, not one for each character
    initialisation: Literal["uniform", "orthogonal"] = "uniform"
    tied: bool = False  # `lm`: the head's weights are the embedding's
    head: Literal["linear", "none"] = "linear"
    loop: bool = False  # train cell by cell in a Python loop; the export is a layer all the same


class Train(Section):
    epochs: int = Field(20, ge=0)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(0.001, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    warm_up: float = Field(0.0, ge=0.0, le=1.0)  # share of the steps in which the learning rate rises
    decay: Literal["none", "linear", "cosine"] = "none"  # of the learning rate, from then to the last step
    loss: Literal["mean", "sum"] = "mean"  # over the characters (tag, lm) or rows (classify) of a batch
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    class_weights: float = Field(
        0.0, ge=0.0, le=1.0
    )  # how much more rare labels count; 1 = as all do together
    clip_norm: float = Field(0.0, ge=0.0)  # 0 = gradients are not clipped
    averaging: float = Field(0.0, ge=0.0, lt=1.0)  # decay of the weights' running mean; 0 = no mean
    carry_state: bool = False  # `text`: a row begins where the one before it ended, with its state
    precision: Literal["float32", "bfloat16"] = "float32"  # of the products, on a GPU
    early_stopping: int = Field(0, ge=0)  # epochs without a better dev metric; 0 = never stop early
    monitor: Metric | None = None  # the dev metric that picks the best checkpoint
    seed: int = Field(0, ge=0, lt=2**63)


class Recipe(Section):
    """A whole recipe. `Recipe.load` and `Recipe.parse` raise `RecipeError` with every mistake at once."""

    task: TaskSection
    data: Data
    model: ModelSection = ModelSection()
    train: Train = Train()

    @property
    def monitor(self) -> Metric:
        """The metric that picks the best checkpoint."""
        if self.train.monitor is not None:
            return self.train.monitor
        if self.task.kind == "lm":
            return "nats_per_character"
        return "words_f1" if self.label_scheme else "accuracy"

    @property
    def label_scheme(self) -> str | None:
        return words.SCHEME if self.data.format == "conllu" else self.data.label_scheme

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe; each of `overrides` is `section.key=value` and replaces one key."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such file; expected a recipe (see docs/recipe.md)") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path}: not TOML: {error}") from error
        for override in overrides:
            _override(raw, override)
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str) -> Recipe:
        """A recipe from its tables; `where` names it in the errors."""
        if not isinstance(raw, dict):
            raise RecipeError(f"{where}: expected tables, found {type(raw).__name__}")
        wrong: dict[str, str] = {}
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            for mistake in error.errors():
                key, message = mistakes.describe(cls, mistake, raw)
                wrong.setdefault(key, message)
            recipe = _without_mistakes(raw, error)
        messages = list(wrong.values())
        for keys, message in mistakes.between(recipe):
            if not any(key in wrong or key.partition(".")[0] in wrong for key in keys):
                messages.append(f"{keys[0]}: {message}")
        if messages:
            count = f"{len(messages)} mistake" + ("s" if len(messages) > 1 else "")
            raise RecipeError(f"{where}: {count}\n" + "\n".join(f"  {text}" for text in messages))
        return recipe

    def to_toml(self) -> str:
        """The recipe as resolved: every key that has a value, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _without_mistakes(raw: dict[str, Any], error: ValidationError) -> Recipe:
    """The recipe without its wrong keys, so that what lies between the others can be checked too."""
    mended = {name: dict(table) for name, table in raw.items() if isinstance(table, dict)}
    for mistake in error.errors():
        match mistake["loc"]:
            case (str(section), key, *_) if section in mended:
                mended[section].pop(key, None)
            case (str(section), *_):
                mended.pop(section, None)
    # The two keys without a default: what stands here is never looked at, since the key is wrong.
    mended.setdefault("task", {}).setdefault("kind", "tag")
    mended.setdefault("data", {}).setdefault("format", "tsv")
    return Recipe.model_validate(mended)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise RecipeError(f"--set {override}: expected section.key=value, such as model.hidden_size=64")
    parse: Callable[[str], dict[str, Any]] = tomllib.loads
    try:
        value = parse(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}: `{section}` is not a table in this recipe")
    table[name] = value

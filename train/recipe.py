"""The recipe: the TOML file that says everything about a training run. Keys in docs/recipe.md."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import Form
from ohlol.artifacts.contract import Task
from ohlol.artifacts.errors import RecipeError

Format = Literal["tsv", "jsonl", "csv", "text", "folder", "conllu", "inline", "none"]
FORMATS_OF: dict[str, tuple[Format, ...]] = {
    "tag": ("tsv", "jsonl", "csv", "conllu", "inline"),
    "classify": ("tsv", "jsonl", "csv", "folder", "inline"),
    "lm": ("text", "tsv", "jsonl", "csv"),
}
Metric = Literal["accuracy", "macro_f1", "words_f1", "sentences_f1", "nats_per_character"]
METRICS_OF: dict[str, tuple[Metric, ...]] = {
    "tag": ("accuracy", "macro_f1", "words_f1", "sentences_f1"),
    "classify": ("accuracy", "macro_f1"),
    "lm": ("nats_per_character",),
}
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
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    head: Literal["linear", "none"] = "linear"
    loop: bool = False  # train cell by cell in a Python loop; the export is a layer all the same


class Train(Section):
    epochs: int = Field(20, ge=0)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(0.001, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    loss: Literal["mean", "sum"] = "mean"  # over the characters (tag, lm) or rows (classify) of a batch
    clip_norm: float = Field(0.0, ge=0.0)  # 0 = gradients are not clipped
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
                key, message = _describe(mistake, raw)
                wrong.setdefault(key, message)
            recipe = _without_mistakes(raw, error)
        messages = list(wrong.values())
        for keys, message in _contradictions(recipe):
            if not any(key in wrong or key.partition(".")[0] in wrong for key in keys):
                messages.append(f"{keys[0]}: {message}")
        if messages:
            count = f"{len(messages)} mistake" + ("s" if len(messages) > 1 else "")
            raise RecipeError(f"{where}: {count}\n" + "\n".join(f"  {text}" for text in messages))
        return recipe

    def to_toml(self) -> str:
        """The recipe as resolved: every key that has a value, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _contradictions(recipe: Recipe) -> Iterable[tuple[tuple[str, ...], str]]:
    """Mistakes that lie between keys: the keys concerned (the first one is to blame) and what is wrong."""
    task, data, model, train = recipe.task.kind, recipe.data, recipe.model, recipe.train
    if data.format not in ("none", *FORMATS_OF[task]):
        allowed = ", ".join(FORMATS_OF[task])
        yield ("data.format", "task.kind"), f"found {data.format!r}; a {task} task reads {allowed}"
    if data.format == "none":
        yield from _without_data(recipe)
    elif data.format == "inline":
        if not data.rows:
            yield ("data.rows", "data.format"), 'missing; inline data is rows = [["hello", "ohlol"]]'
        if data.train or data.dev or data.test:
            yield (
                ("data.train", "data.format"),
                'inline data has `rows`, no files; drop it or change "format"',
            )
        if data.split is not None:
            yield ("data.split", "data.format"), "inline data is all for training; drop it or put it in files"
    else:
        if data.rows is not None:
            yield ("data.rows", "data.format"), 'only format = "inline" has rows'
        only_measured = data.alphabet is not None and (data.dev or data.test)  # weights from elsewhere
        if data.train is None and (data.split is not None or not only_measured):
            yield ("data.train", "data.format"), "missing; expected the path of the training data"
    if data.split is not None:
        if data.dev or data.test:
            yield ("data.split", "data.dev", "data.test"), "there are dev or test files; drop one of the two"
        if min(data.split) < 0 or data.split[0] == 0 or abs(sum(data.split) - 1) > 1e-9:
            yield (
                ("data.split",),
                f"found {list(data.split)}; expected parts that sum to 1, such as [0.7, 0.15, 0.15]",
            )
    if train.early_stopping and not (data.dev or data.split):
        yield ("train.early_stopping", "data.dev", "data.split"), "needs dev data: set data.dev or data.split"
    if task == "lm" and data.labels is not None:
        yield ("data.labels", "task.kind"), "an lm task has none: it answers with characters"
    if data.labels is not None and len(set(data.labels)) != len(data.labels):
        yield ("data.labels",), "a label stands there twice"
    if data.row != "sentence" and data.format != "conllu":
        yield (
            ("data.row", "data.format"),
            'only format = "conllu" has sentences, paragraphs and documents; drop it',
        )
    if data.sequence_length != 128 and data.format != "text":
        yield ("data.sequence_length", "data.format"), 'only format = "text" is cut into sequences; drop it'
    if data.deduplicate and data.format in ("text", "inline"):
        yield (
            ("data.deduplicate", "data.format"),
            f'format = "{data.format}" has no duplicates to remove; drop it',
        )
    if data.labels is not None and recipe.label_scheme:
        yield (
            ("data.labels", "data.format", "data.label_scheme"),
            "the labels of words are B, I, O, S; drop it",
        )
    if data.max_length and task != "tag":
        yield ("data.max_length", "task.kind"), "only rows of a tag task can be cut; drop it"
    if data.label_scheme and task != "tag":
        yield ("data.label_scheme", "task.kind"), "only a tag task labels characters"
    if data.alphabet is not None and len(set(data.alphabet)) != len(data.alphabet):
        yield ("data.alphabet",), "a character stands there twice"
    if task == "lm" and model.bidirectional:
        yield ("model.bidirectional", "task.kind"), "an lm task reads one way: it would see the answer"
    if model.dropout > 0 and model.num_layers == 1:
        yield ("model.dropout", "model.num_layers"), "acts between layers, and there is one; set it to 0.0"
    if train.monitor is not None and train.monitor not in METRICS_OF[task]:
        allowed = ", ".join(METRICS_OF[task])
        yield ("train.monitor", "task.kind"), f"found {train.monitor!r}; a {task} task has {allowed}"
    elif train.monitor in ("words_f1", "sentences_f1") and not recipe.label_scheme:
        yield ("train.monitor", "data.format", "data.label_scheme"), 'needs data.label_scheme = "words"'


def _without_data(recipe: Recipe) -> Iterable[tuple[tuple[str, ...], str]]:
    """Mistakes where the weights come from elsewhere: what data would tell must be said, and there is none."""
    data = recipe.data
    if data.alphabet is None:
        yield ("data.alphabet", "data.format"), 'missing; format = "none" has no data to read it off'
    if data.labels is None and recipe.task.kind != "lm" and not recipe.label_scheme:
        yield ("data.labels", "data.format"), 'missing; format = "none" has no data to read them off'
    for key in ("train", "dev", "test", "rows", "split"):
        if getattr(data, key) is not None:
            yield (
                (f"data.{key}", "data.format"),
                'format = "none" says that there is no data; drop it, or name the data\'s format',
            )


def _describe(mistake: Any, raw: dict[str, Any]) -> tuple[str, str]:
    """One of pydantic's findings as (key, message): what was found, what is allowed, the likely key."""
    path = [str(part) for part in mistake["loc"]]
    if len(path) > 2:  # inside a union or a list: the key is what a person can mend
        path = path[:2]
    key = ".".join(path)
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys(path[:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.7)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed: {', '.join(allowed)}"
        return key, f"{key}: unknown key; {hint}"
    if kind == "missing":
        return key, f"{key}: missing; expected {_allowed(path)}"
    found: Any = raw
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    hint = ""
    if kind == "literal_error":
        near = difflib.get_close_matches(str(found), _literals(_allowed(path)), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
    limit = {name: context[name] for name in ("ge", "gt", "le", "lt") if name in context}
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    expected = " and ".join(f"{signs[name]} {value}" for name, value in limit.items()) or _allowed(path)
    return key, f"{key}: found {found!r}, expected {expected}{hint}"


def _literals(allowed: str) -> list[str]:
    return [part.strip('"') for part in allowed.replace(" or ", ", ").split(", ")]


def _section(path: list[str]) -> type[BaseModel] | None:
    kind: Any = Recipe
    for part in path:
        field = kind.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return None
        kind = field.annotation
    return kind if issubclass(kind, BaseModel) else None


def _keys(path: list[str]) -> list[str]:
    section = _section(path)
    return list(section.model_fields) if section else []


def _allowed(path: list[str]) -> str:
    """What may stand at a key, in words."""
    section = _section(path[:-1])
    field = section.model_fields.get(path[-1]) if section else None
    return _in_words(field.annotation) if field else "a table"


def _in_words(kind: Any) -> str:
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is Literal:
        return " or ".join(f'"{option}"' for option in options)
    if get_origin(kind) is Annotated:
        return _in_words(options[0])
    if get_origin(kind) is list:
        return _LISTS.get(options[0], "a list of [text, label] pairs")
    return " or ".join(_in_words(option) for option in options) or _WORDS.get(kind, "a table")


_WORDS: dict[Any, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
_LISTS: dict[Any, str] = {str: "a list of strings", float: "three numbers"}


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

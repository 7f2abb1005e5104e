"""What can be wrong with a recipe, in words: single keys as pydantic finds them, and what lies between keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from ohlol.train.recipe import Recipe

FORMATS_OF: dict[str, tuple[str, ...]] = {
    "tag": ("tsv", "jsonl", "csv", "conllu", "inline"),
    "classify": ("tsv", "jsonl", "csv", "folder", "inline"),
    "lm": ("text", "tsv", "jsonl", "csv"),
}
METRICS_OF: dict[str, tuple[str, ...]] = {
    "tag": ("accuracy", "macro_f1", "words_f1", "sentences_f1"),
    "classify": ("accuracy", "macro_f1"),
    "lm": ("nats_per_character",),
}
Found = Iterable[
    tuple[tuple[str, ...], str]
]  # the keys concerned (the first one is to blame) and what is wrong


def between(recipe: Recipe) -> Found:
    """Mistakes that lie between keys."""
    task, data = recipe.task.kind, recipe.data
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
    for key in ("train", "dev", "test"):
        if getattr(data, key) == "":
            yield (f"data.{key}",), "found '', expected a path; drop it where there is none"
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
    yield from _network(recipe)
    yield from _training(recipe)


def _network(recipe: Recipe) -> Found:
    task, model = recipe.task.kind, recipe.model
    if task == "lm" and model.bidirectional:
        yield ("model.bidirectional", "task.kind"), "an lm task reads one way: it would see the answer"
    if model.dropout > 0 and model.num_layers == 1:
        yield ("model.dropout", "model.num_layers"), "acts between layers, and there is one; set it to 0.0"
    if model.input == "one_hot":
        for key in ("embedding_dropout", "tied"):
            if getattr(model, key):
                yield (f"model.{key}", "model.input"), 'needs model.input = "embedding"; drop it'
    if model.locked_dropout and not (model.dropout or model.embedding_dropout or model.output_dropout):
        yield (
            ("model.locked_dropout", "model.dropout", "model.embedding_dropout", "model.output_dropout"),
            "says how dropout is drawn, and there is none; set model.dropout, or drop it",
        )
    if model.tied:
        if task != "lm":
            yield ("model.tied", "task.kind"), "only an lm task answers with the characters it reads; drop it"
        elif model.head == "none":
            yield ("model.tied", "model.head"), 'needs model.head = "linear"'
        elif model.embedding_size != model.hidden_size:
            yield (
                ("model.tied", "model.embedding_size", "model.hidden_size"),
                f"needs model.embedding_size ({model.embedding_size}) and model.hidden_size ({model.hidden_size}) alike",
            )


def _training(recipe: Recipe) -> Found:
    task, data, train = recipe.task.kind, recipe.data, recipe.train
    if train.early_stopping and not (data.dev or (data.split and data.split[1])):
        yield ("train.early_stopping", "data.dev", "data.split"), "needs dev data: set data.dev or data.split"
    if train.class_weights and task == "lm":
        yield ("train.class_weights", "task.kind"), "an lm task has no labels; drop it"
    if train.carry_state and data.format != "text":
        yield ("train.carry_state", "data.format"), 'only format = "text" is one running text; drop it'
    if train.carry_state and recipe.model.loop:
        yield ("train.carry_state", "model.loop"), "a loop of cells begins at zero; drop one of the two"
    if train.monitor is not None and train.monitor not in METRICS_OF[task]:
        allowed = ", ".join(METRICS_OF[task])
        yield ("train.monitor", "task.kind"), f"found {train.monitor!r}; a {task} task has {allowed}"
    elif train.monitor in ("words_f1", "sentences_f1") and not recipe.label_scheme:
        yield ("train.monitor", "data.format", "data.label_scheme"), 'needs data.label_scheme = "words"'


def _without_data(recipe: Recipe) -> Found:
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


def describe(root: type[BaseModel], mistake: Any, raw: dict[str, Any]) -> tuple[str, str]:
    """One of pydantic's findings as (key, message): what was found, what is allowed, the likely key."""
    path = [str(part) for part in mistake["loc"]]
    if len(path) > 2:  # inside a union or a list: the key is what a person can mend
        path = path[:2]
    key = ".".join(path)
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys(root, path[:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.7)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed: {', '.join(allowed)}"
        return key, f"{key}: unknown key; {hint}"
    if kind == "missing":
        return key, f"{key}: missing; expected {_allowed(root, path)}"
    found: Any = raw
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    hint = ""
    if kind == "literal_error":
        near = difflib.get_close_matches(str(found), _literals(_allowed(root, path)), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
    limit = {name: context[name] for name in ("ge", "gt", "le", "lt") if name in context}
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    expected = " and ".join(f"{signs[name]} {value}" for name, value in limit.items()) or _allowed(root, path)
    return key, f"{key}: found {found!r}, expected {expected}{hint}"


def _literals(allowed: str) -> list[str]:
    return [part.strip('"') for part in allowed.replace(" or ", ", ").split(", ")]


def _section(root: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    kind: Any = root
    for part in path:
        field = kind.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return None
        kind = field.annotation
    return kind if issubclass(kind, BaseModel) else None


def _keys(root: type[BaseModel], path: list[str]) -> list[str]:
    section = _section(root, path)
    return list(section.model_fields) if section else []


def _allowed(root: type[BaseModel], path: list[str]) -> str:
    """What may stand at a key, in words."""
    section = _section(root, path[:-1])
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

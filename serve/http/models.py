"""The models that are served, by name: loaded, loaded anew beside the old one, taken away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ohlol.artifacts.bundle import HELLO
from ohlol.artifacts.errors import OhlolError
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.http.limits import Refused
from ohlol.serve.model import Model, load

TEXT = "-text"  # what is after the bundle's name in that of the v2 model which takes strings
EXPORTED = "bundle"  # what `ohlol export RUN` calls the folder inside RUN
LONG = 1_024  # characters; normalising a run of so many marks takes a millisecond
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, eq=False)
class Served:
    """A model under its name. Loading it anew makes another one; who holds this one goes on with it."""

    name: str
    path: str
    model: Model[Any]

    @property
    def manifest(self) -> Manifest:
        return self.model.manifest

    async def normalised(self, texts: list[str]) -> list[str]:
        """The texts as the model sees them; many characters beside the event loop, which serves the others meanwhile."""

        def normalise() -> list[str]:
            return list(map(self.manifest.alphabet.normalise, texts))

        return await asyncio.to_thread(normalise) if sum(map(len, texts)) > LONG else normalise()


def named(arguments: Sequence[str]) -> dict[str, str]:
    """Paths by name, from `PATH` or `NAME=PATH` each. Raises `OhlolError` on a name that is no name or there twice."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        if not name or Path(argument).exists():
            path, name = argument, _name(argument)
        if not NAME.fullmatch(name):
            raise OhlolError(
                f"{argument}: {name!r} cannot be a model's name (letters, digits, . _ -); choose one: NAME={path}"
            )
        for other in (name, name + TEXT, name.removesuffix(TEXT)):
            if other in found:
                raise OhlolError(
                    f"{path} and {found[other]} would both be called {name!r}; choose another: NAME={path}"
                )
        found[name] = path
    return found


def _load(path: str) -> Model[Any]:
    """A model that answers in the thread that asks: several ask at once."""
    return load(path, workers=1)


def _name(path: str) -> str:
    if path == HELLO:
        return HELLO
    full = Path(path).resolve()
    if full.suffix == ".onnx":
        return full.stem
    return full.parent.name if full.name == EXPORTED else full.name


class Models:
    """The models by name. `get` and `served` see either the old model or the new one, never neither."""

    def __init__(self, paths: dict[str, str]) -> None:
        """Load them all. Raises `BundleError` where one cannot be opened."""
        self.paths = paths
        self.loaded = {name: Served(name, path, _load(path)) for name, path in paths.items()}
        self._one_at_a_time = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return self.loaded.keys() == self.paths.keys()

    def get(self, name: str) -> Served:
        """Raises `Refused` (404)."""
        if name in self.loaded:
            return self.loaded[name]
        self.check(name)
        raise Refused(404, f"model {name!r} is not loaded; POST /v2/repository/models/{name}/load loads it")

    def only(self) -> Served:
        """The model of a request that names none. Raises `Refused` where there are several."""
        if len(self.paths) > 1:
            raise Refused(400, f'several models are served, name one of them in "model": {self.names()}')
        return self.get(next(iter(self.paths)))

    def served(self) -> list[Served]:
        """Those that are loaded, in the order of the command line."""
        return [self.loaded[name] for name in self.paths if name in self.loaded]

    def names(self) -> str:
        return ", ".join(self.paths)

    def check(self, name: str) -> None:
        if name not in self.paths:
            raise Refused(404, f"no model {name!r} here; there are: {self.names()}")

    async def load(self, name: str) -> None:
        """Load a model from its path and then put it in the old one's place, which stays if that fails.

        Raises `Refused` where there is no such model, `BundleError` where it cannot be opened.
        """
        self.check(name)
        async with self._one_at_a_time:
            path = self.paths[name]
            self.loaded[name] = Served(name, path, await asyncio.to_thread(_load, path))

    async def unload(self, name: str) -> None:
        self.check(name)
        async with self._one_at_a_time:
            self.loaded.pop(name, None)

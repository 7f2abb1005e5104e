"""The routes: what the server answers to each path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.errors import OhlolError
from ohlol.serve.http import metrics, page, protocol, tensors
from ohlol.serve.http.batcher import Batcher
from ohlol.serve.http.gate import Gate, read, to_json
from ohlol.serve.http.limits import Limits, Refused
from ohlol.serve.http.models import TEXT, Models, Served
from ohlol.serve.http.openapi import description
from ohlol.serve.results import AS, Result, fields
from ohlol.serve.runner import CHARACTERS

PREDICT = {"texts", "model", "as", "probabilities"}
VERSIONS = {name: version(name) for name in ("ohlol", "onnxruntime", "numpy")}
EXTENSIONS = ["binary_tensor_data", "model_repository"]


class App:
    """What the server serves; `gate` is the ASGI application, which see for the arguments."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        token: str | None,
        hosts: frozenset[str] | None,
        say: Callable[[str], object],
    ) -> None:
        self.models = models
        self.limits = limits
        self.say = say
        self.metrics = metrics.Metrics()
        self.batcher = Batcher(limits, self.metrics)
        self.gate = Gate(self._router(), limits, self.metrics, token, hosts, say)
        self.metrics.gauges |= {
            "ohlol_requests_waiting": ("Requests that wait for a worker.", self.batcher.waiting),
            "ohlol_workers_busy": ("Workers that run a model.", lambda: self.batcher.running),
            "ohlol_connections": ("Open connections.", lambda: self.gate.connections()),
        }

    def _router(self) -> Router:
        model = "/v2/models/{name}"
        return Router(
            [
                Route("/", self._page),
                Route("/health", self._health),
                Route("/models", self._models),
                Route("/predict", self._predict, methods=["POST"]),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/v2", self._server),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                *(
                    Route(path + end, endpoint, methods=methods)
                    for path in (model, model + "/versions/{version}")
                    for end, endpoint, methods in (
                        ("", self._metadata, ["GET"]),
                        ("/ready", self._model_ready, ["GET"]),
                        ("/infer", self._infer, ["POST"]),
                    )
                ),
                Route("/v2/repository/index", self._index, methods=["POST"]),
                Route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
                Route("/v2/repository/models/{name}/unload", self._unload, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    async def _predict(self, request: Request) -> Response:
        asked = protocol.read_object(await read(request, self.limits))
        unknown = ", ".join(f"{key!r:.40}" for key in asked.keys() - PREDICT)
        if unknown:
            raise Refused(400, f"unknown: {unknown}; expected {', '.join(sorted(PREDICT))}")
        texts, name, as_ = asked.get("texts"), asked.get("model"), asked.get("as", "labels")
        probabilities = asked.get("probabilities", False)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(400, '"texts": expected a list of strings')
        if not isinstance(name, str | None):
            raise Refused(400, '"model": expected the name of a model')
        if as_ not in AS or not isinstance(probabilities, bool):
            raise Refused(
                400, f'"as": expected one of {", ".join(AS)}; "probabilities": expected true or false'
            )
        served = self.models.only() if name is None else self.models.get(name)
        manifest = served.manifest
        if as_ != "labels" and manifest.label_scheme is None:
            raise Refused(400, f'"as": the labels of {served.name} do not mark words; ask for labels')
        self.limits.check_texts(len(texts))
        width = 1 if manifest.task == "classify" else manifest.classes
        self.limits.check_characters(sum(map(len, texts)), "the texts together", width)
        texts = await served.normalised(texts)
        characters = sum(map(len, texts))
        self.limits.check_characters(characters, "the texts together, normalised,", width)

        def write(results: Iterable[Result]) -> Response:
            rows = (
                {"text": result.text, **fields(result, probabilities=probabilities, as_=as_)}
                for result in results
            )
            return to_json({"model": served.name, "results": list(rows)})

        if characters <= CHARACTERS:
            return write(await self.batcher.answer(served, texts))
        # Longer than a batch: it runs alone, and is written by its worker, while the event loop serves the others.
        return await self.batcher.run(lambda: write(served.model(texts)), len(texts), characters)

    async def _infer(self, request: Request) -> Response:
        name = request.path_params["name"]
        served, kind = tensors.find(self.models, name, request.path_params.get("version"))
        inputs, outputs = tensors.specs(served.manifest, kind)
        body = await read(request, self.limits)
        asked = protocol.parse(body, request.headers.get(protocol.HEADER), inputs, outputs)

        def write(answer: dict[str, protocol.Array]) -> Response:
            content, headers = protocol.encode(name, tensors.VERSION, asked, outputs, answer)
            return Response(content, headers=headers)

        return await tensors.infer(served, kind, asked, write, self.batcher, self.limits)

    async def _metadata(self, request: Request) -> Response:
        name = request.path_params["name"]
        served, kind = tensors.find(self.models, name, request.path_params.get("version"))
        return to_json(tensors.metadata(name, served, kind))

    async def _model_ready(self, request: Request) -> Response:
        name = request.path_params["name"]
        tensors.find(self.models, name, request.path_params.get("version"))
        return to_json({"name": name, "ready": True})

    async def _server(self, request: Request) -> Response:
        return to_json({"name": "ohlol", "version": VERSIONS["ohlol"], "extensions": EXTENSIONS})

    async def _live(self, request: Request) -> Response:
        return to_json({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self.models.ready and not self.gate.stopping
        return to_json({"ready": ready}, 200 if ready else 503)

    async def _health(self, request: Request) -> Response:
        """Ready or not, and what answers."""
        status = (
            "stopping" if self.gate.stopping else "ready" if self.models.ready else "a model is not loaded"
        )
        return to_json({"status": status, "versions": VERSIONS}, 200 if status == "ready" else 503)

    async def _models(self, request: Request) -> Response:
        return to_json({"models": [_about(served) for served in self.models.served()]})

    async def _index(self, request: Request) -> Response:
        """Every model of the protocol, loaded or not."""
        await read(request, self.limits)
        return to_json(
            [
                {
                    "name": name + kind,
                    "version": tensors.VERSION,
                    "state": "READY" if name in self.models.loaded else "UNAVAILABLE",
                    "reason": "" if name in self.models.loaded else "unloaded",
                }
                for name in self.models.paths
                for kind in ("", TEXT)
            ]
        )

    async def _load(self, request: Request) -> Response:
        """Load the bundle anew from where it lies; the old one answers until then."""
        name = await self._repository(request)
        error = await self._reload(name)
        if error is not None:
            raise Refused(409, f"{error}; {self._still(name)}")
        return to_json(_about(self.models.get(name)))

    async def _unload(self, request: Request) -> Response:
        name = await self._repository(request)
        await self.models.unload(name)
        self.say(f"{name}: unloaded")
        return to_json({})

    async def _repository(self, request: Request) -> str:
        body = await read(request, self.limits)
        parameters = protocol.read_object(body).get("parameters") if body.strip() else None
        if isinstance(parameters, dict) and (odd := sorted(parameters.keys() - {"unload_dependents"})):
            raise Refused(
                400, f"parameter {odd[0]!r:.40} is not taken; a model is loaded from its own path only"
            )
        name: str = request.path_params["name"]
        return name if name in self.models.paths else name.removesuffix(TEXT)

    async def reload_all(self) -> None:
        for name in self.models.paths:
            await self._reload(name)

    async def _reload(self, name: str) -> OhlolError | None:
        """The error where a model cannot be loaded."""
        try:
            await self.models.load(name)
        except OhlolError as error:
            self.metrics.reloads[name, "failed"] += 1
            self.say(f"{name}: cannot be loaded anew: {error}; {self._still(name)}")
            return error
        self.metrics.reloads[name, "loaded"] += 1
        self.say(f"{name}: loaded anew from {self.models.paths[name]}")
        return None

    def _still(self, name: str) -> str:
        return "the one loaded before goes on" if name in self.models.loaded else "it stays unloaded"

    async def _metrics(self, request: Request) -> Response:
        labels = (
            {"model": about["name"], "task": about["task"], "sha256": about["sha256"] or ""}
            for about in map(_about, self.models.served())
        )
        return Response(self.metrics.text(labels), headers={"content-type": metrics.CONTENT_TYPE})

    async def _openapi(self, request: Request) -> Response:
        return to_json(description(VERSIONS["ohlol"], self.limits))

    async def _page(self, request: Request) -> Response:
        return Response(page.HTML, headers=page.HEADERS)


def _about(served: Served) -> dict[str, Any]:
    manifest = served.manifest
    file = manifest.files.get(Layout.onnx)  # a single .onnx file has no list of files
    return {
        "name": served.name,
        "task": manifest.task,
        "labels": list(manifest.labels),
        "label_scheme": manifest.label_scheme,
        "normalisation": manifest.alphabet.normalisation,
        "sha256": file.sha256 if file else None,
    }

"""The description of the server in OpenAPI 3.1, which tests hold against its routes and its answers."""

from __future__ import annotations

from typing import Any

from ohlol.serve.http.limits import Limits
from ohlol.serve.http.protocol import HEADER
from ohlol.serve.results import AS

Json = dict[str, Any]

ERRORS = {
    "400": "Not JSON, or not of the form that is described here.",
    "401": "No token, or the wrong one.",
    "403": "A page of another site asked a browser to send this, or Host is not one of the server's names.",
    "404": "No such model.",
    "408": "The body took longer than --read-timeout.",
    "409": "The bundle cannot be loaded; what was loaded before goes on.",
    "413": "The body is larger than --max-body.",
    "415": "The body is compressed.",
    "422": "More texts than --max-texts, or more characters than --max-characters.",
    "500": "A mistake of the server's.",
    "503": "As many requests wait as --queue allows, more connections than --connections, or too much that was answered "
    "and not taken; or it is stopping.",
    "504": "No answer within --timeout.",
}
BODY = ("400", "408", "413", "415")


def description(version: str, limits: Limits) -> Json:
    """The whole document."""
    model = "/v2/models/{name}"
    paths: Json = {
        "/": {
            "get": _open("A page to try the models by hand.", {"text/html": {"schema": {"type": "string"}}})
        },
        "/health": {
            "get": _open("Whether every model is loaded, and the versions that run.", _json("Health"), "503")
        },
        "/models": {"get": _operation("What each model is.", _json("Models"))},
        "/predict": {
            "post": _operation(
                "Answer texts.", _json("Answers"), *BODY, "404", "422", "503", "504", takes="Texts"
            )
        },
        "/metrics": {
            "get": _operation("What the server has done.", {"text/plain": {"schema": {"type": "string"}}})
        },
        "/openapi.json": {"get": _operation("This description.", _json("Any"))},
        "/v2": {"get": _operation("Name, version and extensions of the server.", _json("Server"))},
        "/v2/health/live": {"get": _open("Whether the server runs.", _json("Live"))},
        "/v2/health/ready": {"get": _open("Whether every model is loaded.", _json("Ready"), "503")},
        "/v2/repository/index": {
            "post": _operation("Every model and whether it is loaded.", _json("Index"), *BODY, takes="Any")
        },
    }
    for path in (model, model + "/versions/{version}"):
        names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
        paths[path] = {"get": _operation("Inputs and outputs.", _json("Metadata"), "404", names=names)}
        paths[path + "/ready"] = {
            "get": _operation("200 if it is loaded.", _json("ModelReady"), "404", names=names)
        }
        infer = _operation(
            "Answer tensors.",
            _json("InferAnswer"),
            *BODY,
            "404",
            "422",
            "503",
            "504",
            takes="Infer",
            names=names,
        )
        binary = {"schema": {"type": "string", "format": "binary"}}
        infer["requestBody"]["content"]["application/octet-stream"] = binary
        infer["responses"]["200"]["content"]["application/octet-stream"] = binary
        infer["parameters"].append(
            {
                "name": HEADER,
                "in": "header",
                "description": "Where the JSON ends in a body that has tensors in binary after it.",
                "schema": {"type": "integer", "minimum": 1},
            }
        )
        paths[path + "/infer"] = {"post": infer}
    for act, answer, what in (
        ("load", "Model", "Load the bundle anew from where it lies, beside the one that answers until then."),
        ("unload", "Any", "Take a model away."),
    ):
        conflict = ("409",) if act == "load" else ()
        paths[f"/v2/repository/models/{{name}}/{act}"] = {
            "post": _operation(what, _json(answer), *BODY, "404", *conflict, takes="Any", names=["name"])
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ohlol",
            "version": version,
            "summary": "Labels for texts and their characters.",
            "description": "Every error is an object with one string, `error`. Under /v2 it is the Open Inference "
            "Protocol, version 2, with Triton's binary tensors; a bundle NAME is two models there: NAME takes code "
            "points, NAME-text takes texts.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(limits),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    what: str, answer: Json, *errors: str, takes: str | None = None, names: list[str] | None = None
) -> Json:
    responses: Json = {"200": {"description": "Done.", "content": answer}}
    for code in sorted({*errors, "401", "403", "500", "503"}):
        responses[code] = {"description": ERRORS[code], "content": _json("Error")}
    operation: Json = {"summary": what, "security": [{}, {"token": []}], "responses": responses}
    operation["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names or ()
    ]
    if takes is not None:
        operation["requestBody"] = {"required": takes != "Any", "content": _json(takes)}
    return operation


def _open(what: str, answer: Json, *codes: str) -> Json:
    """An operation that needs no token; with `codes`, the same answer comes with those too."""
    responses = {code: {"description": "Not ready.", "content": answer} for code in codes}
    return {"summary": what, "responses": {"200": {"description": "Done.", "content": answer}} | responses}


def _json(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _schemas(limits: Limits) -> Json:
    text, flag = {"type": "string"}, {"type": "boolean"}
    texts = {"type": "array", "items": text}
    maybe = {"type": ["string", "null"]}
    shape = {"type": "array", "items": {"type": "integer", "minimum": -1}}
    tensor = _object({"name": text, "datatype": {"enum": ["INT32", "FP32", "BYTES"]}, "shape": shape})
    sent = _object(
        {**tensor["properties"], "data": {"type": "array"}, "parameters": {"type": "object"}},
        "name",
        "datatype",
        "shape",
    )
    model = _object(
        {
            "name": text,
            "task": {"enum": ["tag", "classify", "lm"]},
            "labels": texts,
            "label_scheme": maybe,
            "normalisation": text,
            "sha256": maybe,
        }
    )
    result = {
        "type": "object",
        "description": "Of a tag model `labels`, or `words` and `spans`, or `sentences`; of a classify model `label`; "
        "of an lm model `bits_per_character` and `next`. Positions are code points of `text`.",
        "properties": {
            "text": {**text, "description": "The text as the model saw it, normalised."},
            "labels": texts,
            "words": texts,
            "spans": {"type": "array", "items": {"type": "array", "prefixItems": [{"type": "integer"}] * 2}},
            "sentences": texts,
            "label": maybe,
            "bits_per_character": {"type": ["number", "null"]},
            "next": maybe,
            "probability": {"type": ["number", "null"]},
            "probabilities": {"type": ["array", "object"]},
        },
        "required": ["text"],
        "additionalProperties": False,
    }
    asked = {
        "texts": {**texts, "maxItems": limits.texts},
        "model": {**text, "description": "Needed where several are served."},
        "as": {"enum": list(AS), "default": AS[0]},
        "probabilities": {**flag, "default": False},
    }
    state = {"name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text}
    output = _object({"name": text, "parameters": {"type": "object"}}, "name")
    return {
        "Any": {},
        "Error": _object({"error": text}),
        "Texts": _object(asked, "texts"),
        "Answers": _object({"model": text, "results": {"type": "array", "items": result}}),
        "Model": model,
        "Models": _object({"models": {"type": "array", "items": model}}),
        "Health": _object({"status": text, "versions": {"type": "object", "additionalProperties": text}}),
        "Server": _object({"name": text, "version": text, "extensions": texts}),
        "Live": _object({"live": flag}),
        "Ready": _object({"ready": flag}),
        "ModelReady": _object({"name": text, "ready": flag}),
        "Index": {"type": "array", "items": _object(state)},
        "Metadata": _object(
            {
                "name": text,
                "versions": texts,
                "platform": text,
                "inputs": {"type": "array", "items": tensor},
                "outputs": {"type": "array", "items": tensor},
            }
        ),
        "Infer": {
            "type": "object",
            "properties": {
                "id": text,
                "parameters": {"type": "object"},
                "inputs": {"type": "array", "items": sent, "minItems": 1},
                "outputs": {"type": "array", "items": output},
            },
            "required": ["inputs"],
        },
        "InferAnswer": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": {"type": "array", "items": sent},
            },
            "model_name",
            "model_version",
            "outputs",
        ),
    }


def _object(properties: Json, *required: str) -> Json:
    """With these properties and no others; without `required`, all of them."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }

"""The gate before the routes: token, sizes and times; every error leaves it as JSON, every request in the metrics."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import traceback
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from ohlol.artifacts.errors import OhlolError
from ohlol.serve.http.limits import SHORT, UNTAKEN, Limits, Refused
from ohlol.serve.http.metrics import Metrics

OPEN = frozenset({"/", "/health", "/v2/health/live", "/v2/health/ready"})  # for all, and never too many
METHODS = frozenset({"GET", "HEAD", "POST"})
PORT = re.compile(r":[0-9]*$")
GONE = 499  # in the metrics: the client hung up before its request was whole
ROUTING = {404: "no such path; /openapi.json lists what there is", 405: "this path takes another method"}


class Gate:
    """The ASGI application around `router`. `say` is told what whoever runs the server should read.

    With `hosts`, it answers only to those names, and to addresses.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits,
        metrics: Metrics,
        token: str | None,
        hosts: frozenset[str] | None,
        say: Callable[[str], object],
    ) -> None:
        self.router = router
        self.limits = limits
        self.metrics = metrics
        self.say = say
        self.stopping = False
        self.begun = 0  # requests whose answer is not whole yet, or long and not taken
        self.untaken = 0  # bytes of those that are long
        self.connections: Callable[[], int] = lambda: 0
        self._token = f"Bearer {token}".encode() if token else None
        self._hosts = hosts
        # For the metrics; of an endpoint with two paths, the shorter one.
        self._paths: dict[object, str] = {
            route.endpoint: route.path for route in reversed(router.routes) if isinstance(route, Route)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request comes through here, and leaves with an answer and in the metrics."""
        if scope["type"] != "http":
            return
        began, code, long = perf_counter(), GONE, 0
        scope["app"] = self  # starlette then raises where no route fits

        async def tell(message: Message) -> None:
            nonlocal code, long
            if message["type"] == "http.response.start":
                long = self._long(message)
                self.untaken += long
                code = message["status"]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
                if self.stopping:
                    message["headers"].append((b"connection", b"close"))
            elif long:  # its end is sent apart, which waits until the client has taken the rest
                await send({**message, "more_body": True})
                message = {"type": message["type"]}
            await send(message)

        self.begun += 1
        try:
            try:
                self._admit(Request(scope))
                await self.router(scope, receive, tell)
            except ClientDisconnect:
                pass
            except BaseException as error:
                if code != GONE:  # too late for another answer
                    raise
                await self._refusal(error)(scope, receive, tell)
        finally:
            self.begun -= 1
            self.untaken -= long
            route = self._paths.get(scope.get("endpoint"), "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.request(route, method, code, perf_counter() - began)

    def _admit(self, request: Request) -> None:
        """Raises `Refused` where a request may not go on to its route."""
        if request.scope["path"] in OPEN:
            return
        if self._token is not None:
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._token):
                message = (
                    "this is not the server's token"
                    if given
                    else "a token is needed: send it in a header, Authorization: Bearer TOKEN"
                )
                raise Refused(401, message, WWW_Authenticate="Bearer")
        site = request.headers.get("sec-fetch-site", "none")  # browsers send it, and no page can forge it
        if request.method == "POST" and site not in ("none", "same-origin"):
            raise Refused(
                403, "a page of another site asked a browser to send this; only the server's own may"
            )
        if not self._is_ours(host := request.headers.get("host", "localhost")):
            raise Refused(
                403,
                f"Host is {host!r:.60}, expected localhost, an address or --host: any page could give this machine a name of "
                "its own (DNS rebinding); with a token every Host is taken (--token-file)",
            )
        if self.connections() > self.limits.connections:
            message = f"more than {self.limits.connections:,} connections, the limit (--connections); try again later"
            raise Refused(503, message, Retry_After="1", Connection="close")

    def _long(self, start: Message) -> int:
        """The bytes of an answer that is not short, else 0. Raises `Refused` where there is no room for it."""
        size = next((int(value) for name, value in start["headers"] if name == b"content-length"), 0)
        if size <= SHORT:
            return 0
        if self.untaken and self.untaken + size > UNTAKEN:  # one alone always has room
            message = (
                f"answers of more than {UNTAKEN:,} bytes wait for their clients to take them; try again later"
            )
            raise Refused(503, message, Retry_After="1")
        return size

    def _is_ours(self, host: str) -> bool:
        """Whether a header `Host: NAME[:PORT]` names no other host; no page has an address as its own name."""
        if self._hosts is None or (name := PORT.sub("", host).lower()) in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _refusal(self, error: BaseException) -> Response:
        if isinstance(error, Refused):
            return to_json({"error": error.message}, error.status, error.headers)
        if isinstance(error, HTTPException):
            return to_json(
                {"error": ROUTING.get(error.status_code, error.detail)}, error.status_code, error.headers
            )
        if isinstance(error, OhlolError):
            return to_json({"error": str(error)}, 400)
        if isinstance(error, asyncio.CancelledError):
            return to_json({"error": "the server stopped before this was finished (--grace)"}, 503)
        if not isinstance(error, Exception):
            raise error
        self.say("".join(traceback.format_exception(error)))  # a mistake of ours, to be mended
        return to_json({"error": "the server made a mistake; what it was stands in its own log"}, 500)


async def read(request: Request, limits: Limits) -> bytes:
    """The body. Raises `Refused` where it is too large, too slow or compressed."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refused(415, f"Content-Encoding {encoding!r:.40} is not taken; send the body as it is")
    declared = request.headers.get("content-length", "")
    limits.check_body(int(declared) if declared.isdigit() else 0)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_timeout):
            async for chunk in request.stream():
                body += chunk
                limits.check_body(len(body))
    except TimeoutError:
        message = f"the body did not come within {limits.read_timeout:g} s, the limit (--read-timeout)"
        raise Refused(408, message, Connection="close") from None
    return bytes(body)


def to_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as UTF-8; a lone surrogate, which UTF-8 cannot hold, stays an escape."""
    try:
        content = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        content = json.dumps(value).encode()
    return Response(content, status, {**(headers or {}), "content-type": "application/json"})

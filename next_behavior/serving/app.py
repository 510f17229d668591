"""The ASGI application: the routes, who may call them, and what each answer and each error looks like.

    app = application(service)          # for uvicorn, or for a test that calls it in its own process

Around Starlette's router lies one layer that does for every request, whatever its path: the token, the request id, the
problem document, the metrics and the line in the log. Every route needs the token, also one that does not exist, except
the two probes and the files of the page, which asks for the token itself.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from next_behavior.serving import access_log, messages, openapi, page_files, problems, routes
from next_behavior.serving.browsing import Browsing
from next_behavior.serving.openapi import OPEN, Operation
from next_behavior.serving.problems import Problem
from next_behavior.serving.security import allows
from next_behavior.serving.service import Service

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
PATH = "/v1/users/{user_id}"
READ_ERRORS = (400, 413, 415, 422)
WAIT_ERRORS = (429, 503, 504)
OPERATIONS = (
    Operation("POST", "/v1/predict", "What comes after a history", messages.PredictRequest, None, messages.Answers,
              (*READ_ERRORS, *WAIT_ERRORS)),
    Operation("POST", "/v1/events", "Store events, once each", messages.EventsRequest, None, messages.EventsStored,
              (*READ_ERRORS, 409, 503)),
    Operation("GET", f"{PATH}/next", "What a user does next", None, messages.Options, messages.Answers,
              (400, 422, *WAIT_ERRORS)),
    Operation("DELETE", PATH, "Erase a user", None, None, messages.Erased, (400, 422, 503)),
    Operation("GET", f"{PATH}/events", "The stored events of a user", None, None, messages.History, (400, 422, 503)),
    Operation("GET", "/v1/users", "Users of whom events are stored", None, messages.UsersQuery, messages.Users,
              (400, 422, 503)),
    Operation("GET", "/v1/items", "Search the items", None, messages.ItemsQuery, messages.Items, (400, 422, 503)),
    Operation("GET", "/livez", "Whether the process runs", None, None, messages.Probe),
    Operation("GET", "/readyz", "Whether to send requests here", None, None, messages.Probe, (503,)),
    Operation("GET", "/metrics", "Prometheus metrics", None, None, None, (), "text/plain"),
    Operation("GET", "/info", "The model that is served, and the limits", None, None, messages.Info, (503,)),
    Operation("GET", "/openapi.json", "This document"),
    Operation("POST", "/admin/reload", "Serve another revision", messages.ReloadRequest, None, messages.Reloaded,
              (*READ_ERRORS, 409, 503)),
)  # fmt: skip


def application(service: Service) -> Application:
    handlers = Browsing(service)
    endpoints: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
        ("POST", "/v1/predict"): handlers.predict,
        ("POST", "/v1/events"): handlers.events,
        ("GET", f"{PATH}/next"): handlers.next_of_user,
        ("DELETE", PATH): handlers.erase,
        ("GET", f"{PATH}/events"): handlers.events_of_user,
        ("GET", "/v1/users"): handlers.users,
        ("GET", "/v1/items"): handlers.items,
        ("GET", "/livez"): handlers.livez,
        ("GET", "/readyz"): handlers.readyz,
        ("GET", "/metrics"): handlers.metrics,
        ("GET", "/info"): handlers.info,
        ("GET", "/openapi.json"): handlers.openapi,
        ("POST", "/admin/reload"): handlers.reload,
    }
    document = openapi.document(OPERATIONS, version("bert-for-next-behavior"), bool(service.tokens))
    handlers.document = msgspec.json.encode(document)
    table: list[BaseRoute] = [
        Route(one.path, endpoints[one.method, one.path], methods=[one.method]) for one in OPERATIONS
    ]
    files = page_files.routes() if service.settings.page else []
    return Application(service, Router([*table, *files], redirect_slashes=False), OPEN | {file.path for file in files})


class Application:
    """What the server calls for every request."""

    def __init__(self, service: Service, router: Router, needs_no_token: frozenset[str]) -> None:
        self.service, self.router, self.needs_no_token = service, router, needs_no_token
        self.paths: dict[Any, str] = {route.endpoint: route.path for route in router.routes if isinstance(route, Route)}
        self._ids = itertools.count()
        self._name = secrets.token_hex(6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.service.start()
                await self.service.join()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        headers = routes.Head.of(scope["headers"])
        request_id = self._request_id(headers.request_id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        # Ids are matched as they were sent, and decoded after that: an id may hold a slash.
        scope["path"] = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        scope["app"] = self  # then the router raises what is not found instead of answering
        scope["head"] = headers
        try:
            try:
                self._check_token(scope["path"], headers.authorization)
                await self.router(scope, receive, send_named)
            except Exception as error:
                if status:
                    raise
                await self._refuse(as_problem(error), request_id, scope, receive, send_named)
        except ClientDisconnect:
            status = status or 499
        finally:
            route = self.paths.get(scope.get("endpoint"), "other")
            seconds = time.perf_counter() - begin
            self.service.metrics.answered(route, status or 500, seconds)
            access_log.log_request(request_id, scope["method"], route, status or 500, seconds)

    async def _refuse(self, problem: Problem, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        response = Response(problem.body(request_id), problem.status, problem.headers, problems.CONTENT_TYPE)
        await response(scope, receive, send)

    def _request_id(self, sent: bytes | None) -> str:
        if sent is not None and REQUEST_ID.fullmatch(sent):
            return sent.decode()
        return f"{self._name}-{next(self._ids):x}"

    def _check_token(self, path: str, authorization: bytes | None) -> None:
        if path in self.needs_no_token:
            return
        tokens = self.service.admin_tokens if path.startswith("/admin/") else self.service.tokens
        if tokens and not allows(tokens, authorization):
            raise Problem(
                401, "expected the header `Authorization: Bearer TOKEN`", headers={"www-authenticate": "Bearer"}
            )


def as_problem(error: Exception) -> Problem:
    """Any exception as a problem. What is not expected is a fault of the service, and its text stays inside."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        detail = {404: "no such path", 405: "this path has no such method"}.get(error.status_code, "")
        return Problem(error.status_code, detail, headers=error.headers)
    if isinstance(error, ClientDisconnect):
        raise error
    access_log.log_fault(error)
    return Problem(500, "a fault of the service; its log has the request id")

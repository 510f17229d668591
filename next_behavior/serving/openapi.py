"""The OpenAPI 3.1 document: made from the types of `messages.py` and the table of routes of `service.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from next_behavior.serving import messages

OPEN = frozenset({"/livez", "/readyz"})  # the routes that need no token
ID_IN_PATH = {
    "name": "user_id", "in": "path", "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": messages.MOST_ID_BYTES},
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One method of one path, as the document says it.

    Attributes:
        path: with `{user_id}` where an id stands.
        errors: the statuses beside 200 that this route has of its own.
    """

    method: str
    path: str
    summary: str
    request: Any = None
    query: Any = None
    response: Any = None
    errors: Sequence[int] = field(default_factory=tuple)
    content_type: str = "application/json"


def document(operations: Sequence[Operation], version: str, secured: bool) -> dict[str, Any]:
    types = [kind for one in operations for kind in (one.request, one.query, one.response) if kind is not None]
    _, schemas = msgspec.json.schema_components([*types, messages.Problem], ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, secured)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "next-behavior", "version": version, "description": "What a user does next."},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if secured:
        result["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return result


def _operation(one: Operation, secured: bool) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": _reference(messages.Problem)}}
    ok: dict[str, Any] = {"description": "done"}
    if one.response is not None:
        ok["content"] = {one.content_type: {"schema": _reference(one.response)}}
    else:
        ok["content"] = {one.content_type: {"schema": {}}}
    errors = [*one.errors, *([401] if secured and one.path not in OPEN else []), 500]
    responses = {"200": ok}
    for status in sorted(set(errors)):
        responses[str(status)] = {"description": "an RFC 9457 problem", "content": problem}
        if status == 429:
            responses["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    result: dict[str, Any] = {"summary": one.summary, "responses": responses}
    parameters = [ID_IN_PATH] if "{user_id}" in one.path else []
    if one.query is not None:
        parameters += _parameters(one.query)
    if parameters:
        result["parameters"] = parameters
    if one.request is not None:
        result["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(one.request)}},
        }
    if secured and one.path not in OPEN:
        result["security"] = [{"token": []}]
    return result


def _reference(kind: Any) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _parameters(kind: Any) -> list[dict[str, Any]]:
    """The fields of a struct as parameters of a query; null is to leave one out."""
    _, schemas = msgspec.json.schema_components([kind])
    parameters = []
    for name, schema in schemas[kind.__name__]["properties"].items():
        choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
        if choices:
            schema = {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | choices[0]
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    return parameters

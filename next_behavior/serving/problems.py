"""Errors as RFC 9457 problem documents: one shape for every status, also for those of unknown paths and methods.

    raise Problem(429, "the queue is full", headers={"retry-after": "1"})

The `type` of a problem is `urn:next-behavior:NAME`. A fault of the service itself says its request id and nothing else:
texts of exceptions may hold what users sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from next_behavior.serving import messages

CONTENT_TYPE = "application/problem+json"
# `Expected ... - at `$.events[0].item`` of msgspec.
PLACE = re.compile(r" - at (?:`key` in )?`(\$[^`]*)`$")
# What helps where a value of another type is a likely wish.
REMEDIES = {
    "$.explain": ": true leaves events out; gradients and counterfactuals are computed by `predict` in Python alone"
}
KINDS = {
    400: "malformed", 401: "unauthorized", 404: "not-found", 405: "method-not-allowed", 409: "conflict",
    413: "too-large", 415: "unsupported-media-type", 422: "invalid", 429: "overloaded", 500: "internal",
    503: "unavailable", 504: "deadline",
}  # fmt: skip


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[messages.ProblemError] | None = None,
        events: list[messages.Stored] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        self.errors, self.events = errors, events

    def body(self, request_id: str) -> bytes:
        return messages.encode(
            messages.Problem(
                type=f"urn:next-behavior:{KINDS.get(self.status, 'error')}",
                title=HTTPStatus(self.status).phrase,
                status=self.status,
                detail=self.detail,
                request_id=request_id,
                errors=msgspec.UNSET if self.errors is None else self.errors,
                events=msgspec.UNSET if self.events is None else self.events,
            )
        )


def of_decoding(error: msgspec.DecodeError | UnicodeDecodeError | RecursionError) -> Problem:
    """400 for what is no JSON, 422 for JSON that is not what the route reads."""
    if isinstance(error, msgspec.ValidationError):
        return invalid(str(error))
    return Problem(400, "the body is not JSON in UTF-8, or nests too deep; JSON has no NaN and no Infinity")


def invalid(message: str) -> Problem:
    """422, with the place of the mistake apart if the message names one."""
    place = PLACE.search(message)
    loc = place.group(1) if place else "$"
    text = PLACE.sub("", message).replace("Invalid enum value", "Unknown name") + REMEDIES.get(loc, "")
    return Problem(422, f"{text} (at {loc})" if place else text, errors=[messages.ProblemError(loc, text)])

"""Structured logs: a line of JSON for each request and for each thing that happens to the service, on stderr.

No line holds a user id, an item, a history, a query string or a token: a request is named by the template of its route
(`/v1/users/{user_id}/next`) and by its request id. Other libraries' records go through the same formatter, without
arguments or tracebacks of theirs, which might hold what users sent; `--log_level debug` shows tracebacks.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

import msgspec

# What `extra=` adds to a record of ours and may be said.
FIELDS = (
    *("request_id", "method", "route", "status", "duration_ms", "kind", "batch", "model", "previous", "problem"),
    *("store", "position", "events", "workers", "worker", "signal", "url", "status_code"),
)
OURS = "next_behavior"
requests = logging.getLogger(f"{OURS}.requests")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        own = record.name.startswith(OURS)
        line: dict[str, Any] = {
            "time": moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if own or not record.args else str(record.msg),
        }
        values = record.__dict__
        line.update({name: values[name] for name in FIELDS if name in values})
        if record.exc_info and record.exc_info[0] is not None:
            line["kind"] = record.exc_info[0].__name__
            if logging.getLogger(OURS).isEnabledFor(logging.DEBUG):
                line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def moment(seconds: float) -> str:
    """UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03d}Z"


def start_logging(level: str, requests_too: bool) -> None:
    """Sends every record to stderr as a line of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    # It says what an unknown action of a history is called; the service counts unknown items and actions instead.
    warnings.filterwarnings("ignore", message="a history has the action")
    logging.getLogger(OURS).setLevel(level.upper())
    requests.disabled = not requests_too


def log_request(request_id: str, method: str, route: str, status: int, seconds: float) -> None:
    """One line for one request. Written without a record's usual look at the stack: this is a hot path."""
    if requests.disabled:
        return
    extra = {
        "request_id": request_id, "method": method, "route": route, "status": status,
        "duration_ms": round(seconds * 1000, 3),
    }  # fmt: skip
    requests.log(logging.INFO if status < 500 else logging.ERROR, "request", extra=extra)


def log_fault(error: Exception) -> None:
    """What nobody expected, by its kind; its text may hold what users sent."""
    logging.getLogger(OURS).error("fault", extra={"kind": type(error).__name__}, exc_info=error)


def log_start(address: tuple[Any, ...], workers: int) -> None:
    host, port = address[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logging.getLogger(OURS).info("listening", extra={"url": url, "workers": workers})

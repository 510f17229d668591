"""The files of the page at /: read once, served as they are, under a policy that lets them ask this service alone.

The page is plain HTML, CSS and JavaScript in `page/`. It holds nothing of the model or the store, so it needs no token;
what it then asks for does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Neither inline scripts and styles nor other hosts; nobody frames the page, and no form leaves it.
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        *("require-trusted-types-for 'script'", "trusted-types 'none'"),
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """The index at /, the other files under /page/."""
    table = []
    for file in files("next_behavior.serving").joinpath("page").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in TYPES:
            path = "/" if file.name == INDEX else f"/page/{file.name}"
            table.append(Route(path, endpoint(file.read_bytes(), TYPES[suffix]), methods=["GET"]))
    return table


def endpoint(content: bytes, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve_file(request: Request) -> Response:
        return Response(content, headers=HEADERS | {"content-type": content_type})

    return serve_file

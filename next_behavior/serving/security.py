"""Who may ask: bearer tokens from a file, and which addresses may be bound without one.

A token file has one token a line; blank lines and lines that begin with # are left out. Several tokens let one be
replaced without an interruption: add the new one, reload, change the clients, remove the old one, reload.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

# Longer ones are refused unread. Shorter ones can be guessed.
MOST_TOKEN_BYTES = 512
LEAST_TOKEN_BYTES = 16


def read_tokens(path: Path) -> list[bytes]:
    """SHA-256 digests of the tokens of a file.

    Raises:
        ValueError: the file holds no token, or one that is too short, too long or not ASCII.
    """
    # Bytes that are not UTF-8 are characters that are not ASCII, which are refused below with the file's name.
    tokens = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    tokens = [token for token in tokens if token and not token.startswith("#")]
    if not tokens:
        raise ValueError(f"{path} holds no token; expected one a line, such as `openssl rand -hex 32` prints")
    for number, token in enumerate(tokens, start=1):
        if not LEAST_TOKEN_BYTES <= len(token) <= MOST_TOKEN_BYTES or not token.isascii() or not token.isprintable():
            raise ValueError(
                f"token {number} of {path} has {len(token)} characters; expected {LEAST_TOKEN_BYTES} to "
                f"{MOST_TOKEN_BYTES} of ASCII, such as `openssl rand -hex 32` prints"
            )
    return [hashlib.sha256(token.encode()).digest() for token in tokens]


def allows(digests: list[bytes], authorization: bytes | None) -> bool:
    """Whether a header `Authorization: Bearer TOKEN` holds one of the tokens.

    Digests of equal length are compared in constant time, all of them: the time says nothing about a token.
    """
    if authorization is None or len(authorization) > MOST_TOKEN_BYTES + len(b"Bearer "):
        return False
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        return False
    digest = hashlib.sha256(token.strip()).digest()
    return sum(hmac.compare_digest(digest, known) for known in digests) > 0


def check_host(host: str, has_tokens: bool) -> None:
    """Raises ValueError for an address that others can reach, unless there are tokens."""
    if not has_tokens and not is_loopback(host):
        raise ValueError(
            f"got --host {host} and no --token_file; expected a loopback address such as 127.0.0.1, or a file with a "
            "token: whoever reaches the port reads and erases what is stored of every user"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Secrets that can be recognised wherever they turn up: in clear, in base64 however deep, in hex, or cut off."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

MARK = b"planted-"

REDIS_PASSWORD = "planted-redis-password"
FLOWER_PASSWORD = "planted-flower-password"

_SIGNS = (MARK, MARK.hex().encode(), base64.b64encode(MARK + b"x")[:10])
_ENCODED = re.compile(rb"[A-Za-z0-9+/_-]{12,}={0,2}")
_DEPTH = 4


def key(name: str) -> str:
    """A key of 32 bytes in base64, a private or preshared one."""
    return base64.b64encode((MARK + name.encode()).ljust(31, b".") + b"@").decode()


def text(name: str) -> str:
    """A secret that is no key."""
    return f"{MARK.decode()}{name}"


def traces(content: str | bytes) -> list[str]:
    """Where secrets show, with what stands around them."""
    raw = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    return [trace.decode(errors="replace") for trace in _traces(raw, _DEPTH)]


def named(content: bytes, depth: int = _DEPTH) -> set[str]:
    """The names of the secrets in it."""
    marks = {name.decode() for name in re.findall(MARK + rb"([a-z0-9-]+)", content)}
    return marks.union(*(named(inner, depth - 1) for inner in _decoded(content))) if depth else marks


def _traces(raw: bytes, depth: int) -> list[bytes]:
    traces_here = [
        raw[max(0, match.start() - 120) : match.end() + 40] for sign in _SIGNS for match in re.finditer(sign, raw)
    ]
    if depth == 0:
        return traces_here
    return traces_here + [trace for inner in _decoded(raw) for trace in _traces(inner, depth - 1)]


def _decoded(raw: bytes) -> Iterator[bytes]:
    """Whatever in it can be base64, decoded; one character too many is left out."""
    for match in _ENCODED.finditer(raw):
        token = match[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        yield base64.b64decode((token[:-1] if len(token) % 4 == 1 else token) + b"==")

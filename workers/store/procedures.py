"""Calls the store's Lua procedures as Redis functions, or as scripts if no administrator has loaded the functions.

A function is stored with the data: it survives restarts, and its caller needs no right to send Lua. A script is lost
at each restart, and a user who may load one may run any (docs/adr/0007). The names end in a digest of the code, so two
versions of Peerlane can use one server, each with its own functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

Verdict = Literal[
    "committed", "duplicate", "fenced", "expired", "stale", "draining", "late", "open", "failed", "behind"
]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a procedure; ``stored`` is the commit record for ``duplicate`` and ``expired``."""

    verdict: Verdict
    stored: str

    @property
    def settles(self) -> bool:
        """Whether the request has its outcome now, and its message is acknowledged."""
        return self.verdict in ("committed", "duplicate", "expired")


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one procedure: shared code first, then its own."""

    files: tuple[str, ...]
    #: As Redis knows them. A function without ``allow-oom`` is refused as a whole where memory is full.
    flags: tuple[str, ...] = ()

    @property
    def body(self) -> str:
        """The code, as a script."""
        return "".join(map(_text, self.files))


@cache
def _text(file: str) -> str:
    return (files("peerlane.workers.store") / file).read_text()


_COMMIT = ("standing.lua", "outcome.lua", "commit.lua")
#: ``release`` is ``commit`` for removals, which are allowed while memory is full. A heartbeat needs no more of it.
SOURCES = {
    "commit": Source(_COMMIT),
    "release": Source(_COMMIT, ("allow-oom",)),
    "redo": Source(("standing.lua", "outcome.lua", "redo.lua")),
    "begin": Source(("begin.lua",)),
    "check": Source(("standing.lua", "check.lua"), ("no-writes",)),
    "heartbeat": Source(("standing.lua", "heartbeat.lua"), ("allow-oom",)),
    # It moves messages from one key to another: it needs no more memory.
    "take": Source(("take.lua",), ("allow-oom",)),
}


class FunctionsMissing(NoPermissionError):
    """The functions are not loaded, and this Redis user may not load scripts instead."""

    def __init__(self) -> None:
        super().__init__(
            "Peerlane's functions of this version are not loaded, and this Redis user may send no scripts; "
            "an administrator runs `peerlane functions --load`"
        )


@cache
def script(name: str) -> str:
    """A procedure as a script, with its flags."""
    flags = SOURCES[name].flags
    return (f"#!lua flags={','.join(flags)}\n" if flags else "") + SOURCES[name].body


@cache
def digest() -> str:
    """The digest at the end of this version's names."""
    content = "\0".join(f"{name}\0{source.flags}\0{source.body}" for name, source in SOURCES.items())
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def library() -> str:
    """The library of all functions, as FUNCTION LOAD takes it."""
    parts = [f"#!lua name=peerlane_{digest()}"]
    for name, source in SOURCES.items():
        flags = ", ".join(f"'{flag}'" for flag in source.flags)
        code = f"function(KEYS, ARGV)\n{source.body}end"
        parts.append(
            f"redis.register_function{{function_name='{name}_{digest()}', callback={code}, flags={{{flags}}}}}"
        )
    return "\n".join(parts) + "\n"


def load(redis: Redis) -> str:
    """Load the library, as an administrator; returns its name. Raises redis.RedisError."""
    redis.function_load(library(), replace=True)
    return f"peerlane_{digest()}"


class Procedure:
    """One of ``SOURCES`` on a server. Raises redis.RedisError as it comes, FunctionsMissing among them."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._function = f"{name}_{digest()}"
        self._script = redis.register_script(script(name))
        self._as_script = False

    def __call__(self, keys: Sequence[str], args: Sequence[str | int | bytes], client: Redis | None = None) -> object:
        """Call it; ``client`` is the calling thread's own."""
        if not self._as_script:
            try:
                return (client or self._redis).fcall(
                    self._function, len(keys), *keys, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)
                )
            except ResponseError as error:
                if not _absent(error):
                    raise
        try:
            answer = self._script(keys=keys, args=args, client=client)
        except NoPermissionError as error:
            self._as_script = False  # once they are loaded, they are used
            if "'evalsha'" in str(error) or "'script" in str(error):
                raise FunctionsMissing from None
            raise
        self._as_script = True
        return answer


def _absent(error: ResponseError) -> bool:
    """Whether an error says that the function is missing, or that this server or user cannot call functions."""
    text = str(error)
    return "unction not found" in text or "nknown command" in text or "'fcall'" in text

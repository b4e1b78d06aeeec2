"""Reads a large hash of Redis, or many of its fields, page by page."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from itertools import islice
from typing import Any, cast

from redis import Redis

#: Fields of a page from a Redis nearby, so few that creates beside it keep their pace: each waits behind several pages.
PAGE = 50
#: Fields of the largest page: Redis is busy with one for about a millisecond.
LARGE_PAGE = 1_000
#: Seconds of a round trip to a Redis that is near. From one that is farther away, pages are larger in the same measure.
NEAR = 0.001
#: Round trips after which the way is known.
MEASURED = 3

Entry = tuple[bytes, bytes]


class PageSize:
    """How many fields to ask for at a time, given how long the shortest round trip took."""

    def __init__(self, near: int = PAGE) -> None:
        """``near``: so many from a Redis nearby."""
        self._near = near
        self._shortest, self._measured = NEAR, 0

    @property
    def fields(self) -> int:
        """Fields of the next page, at most ``LARGE_PAGE``."""
        return min(LARGE_PAGE, max(self._near, round(self._near * self._shortest / NEAR)))

    @property
    def known(self) -> bool:
        """Whether enough round trips were measured: one may have waited behind something else."""
        return self._measured >= MEASURED

    def took(self, seconds: float) -> None:
        """A round trip took so long, from the request to its answer."""
        self._shortest = min(self._shortest, seconds) if self._measured else seconds
        self._measured += 1


def hash_pages(redis: Redis, key: str, *, count: int | None = None) -> Generator[list[Entry]]:
    """A hash's fields and values, in no order; one that changes meanwhile may come twice. Raises redis.RedisError.

    The next page is requested while this one is used, once the way to Redis is known. ``count``: so many fields a
    page, however long the way is.
    """
    connection = cast("Any", redis.connection_pool.get_connection())
    size = PageSize()
    waiting = False

    def ask(cursor: bytes) -> float:
        connection.send_command("HSCAN", key, cursor, "COUNT", size.fields if count is None else count)
        return time.monotonic()

    try:
        cursor = b"0"
        while True:
            asked = None if waiting else ask(cursor)
            waiting = True
            cursor, flat = cast("tuple[bytes, list[bytes]]", connection.read_response(disable_decoding=True))
            if asked is not None:
                size.took(time.monotonic() - asked)
            waiting = cursor != b"0" and (count is not None or size.known)
            if waiting:
                ask(cursor)
            yield list(zip(flat[::2], flat[1::2], strict=True))
            if cursor == b"0":
                return
    except Exception:
        connection.disconnect()
        waiting = False
        raise
    finally:
        if waiting:  # an answer is on its way that will not be read
            connection.disconnect()
        redis.connection_pool.release(connection)


def some_fields(redis: Redis, key: str, fields: Collection[str]) -> Generator[list[Entry]]:
    """Those of the fields that a hash has, and their values. Raises redis.RedisError."""
    rest = iter(fields)
    size = PageSize()
    while names := list(islice(rest, size.fields)):
        asked = time.monotonic()
        values = cast("list[bytes | None]", redis.hmget(key, names))
        size.took(time.monotonic() - asked)
        yield [(name.encode(), value) for name, value in zip(names, values, strict=True) if value is not None]

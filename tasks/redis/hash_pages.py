"""Reads a large hash of Redis, or many of its fields, page by page."""

from __future__ import annotations

from collections.abc import Collection, Generator
from itertools import islice
from typing import Any, cast

from redis import Redis

#: Fields read per round trip, so few that creates beside it keep their pace: each waits behind several pages.
PAGE = 50
#: The same where nobody is served meanwhile and time counts: Redis is busy with one for about a millisecond.
LARGE_PAGE = 1_000

Entry = tuple[bytes, bytes]


def hash_pages(redis: Redis, key: str, *, count: int = PAGE) -> Generator[list[Entry]]:
    """A hash's fields and values, in no order; one that changes meanwhile may come twice. Raises redis.RedisError.

    The next page is requested while this one is used.
    """
    connection = cast("Any", redis.connection_pool.get_connection())
    waiting = False
    try:
        cursor = b"0"
        while True:
            if not waiting:
                connection.send_command("HSCAN", key, cursor, "COUNT", count)
                waiting = True
            cursor, flat = cast("tuple[bytes, list[bytes]]", connection.read_response(disable_decoding=True))
            waiting = cursor != b"0"
            if waiting:
                connection.send_command("HSCAN", key, cursor, "COUNT", count)
            yield list(zip(flat[::2], flat[1::2], strict=True))
            if not waiting:
                return
    except Exception:
        connection.disconnect()
        waiting = False
        raise
    finally:
        if waiting:  # an answer is on its way that will not be read
            connection.disconnect()
        redis.connection_pool.release(connection)


def some_fields(redis: Redis, key: str, fields: Collection[str], *, count: int = PAGE) -> Generator[list[Entry]]:
    """Those of the fields that a hash has, and their values. Raises redis.RedisError."""
    rest = iter(fields)
    while names := list(islice(rest, count)):
        values = cast("list[bytes | None]", redis.hmget(key, names))
        yield [(name.encode(), value) for name, value in zip(names, values, strict=True) if value is not None]

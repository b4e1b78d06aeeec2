"""Makes an asyncio program's connections to Redis, and ends its tasks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.exceptions import ResponseError

from peerlane.config.redis.async_tls import AbruptTLS
from peerlane.config.redis.connections import noticing_async
from peerlane.config.redis.sentinels import sentinels
from peerlane.config.redis.url import redis_tls, server_url
from peerlane.config.settings import Settings

#: Connections for looking at lanes and cancelling; asking and waiting need none of them.
CONNECTIONS = 8
#: Seconds in which Redis answers; a connection that keeps silent longer is made anew.
ANSWERED_WITHIN = 1.0


def connections(settings: Settings) -> BlockingConnectionPool:
    """A pool for one event loop."""
    pool = BlockingConnectionPool.from_url(
        server_url(settings),
        sentinels=sentinels(settings),
        max_connections=CONNECTIONS,
        timeout=1,
        socket_timeout=ANSWERED_WITHIN,
        socket_connect_timeout=1.0,
        **redis_tls(settings),
    )
    kind = pool.connection_class
    pool.connection_class = noticing_async(AbruptTLS if kind is SSLConnection else kind)
    return pool


def unlogged(connection: AbstractConnection) -> AbstractConnection:
    """Have it hand over published messages as they are; redis-py writes each one out first, for a debug log."""
    cast("Any", connection)._parser.set_pubsub_push_handler(_as_it_is)  # noqa: SLF001 - as redis-py's own PubSub does
    return connection


async def _as_it_is(message: object) -> object:
    return message


async def read(connection: AbstractConnection) -> object:
    """The next answer or message. An error that Redis answers is returned, not raised."""
    try:
        return cast(
            "object", await connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
        )
    except ResponseError as error:
        return error


def over(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, because nothing else does."""
    if not task.cancelled():
        task.exception()


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end; their exceptions are dropped.

    Once is not enough: on Python 3.11 ``asyncio.wait_for``, by which redis-py sends, forgets that it was cancelled
    where what it waits for has just come.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=0.1)
        for task in done:
            over(task)

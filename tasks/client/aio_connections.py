"""Connections to Redis of an asyncio program, and the ends of its tasks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config.redis.connections import noticing_async
from peerlane.config.redis.url import redis_tls, sentinels, server_url
from peerlane.config.settings import Settings

#: Connections for looking at lanes and cancelling; asking and waiting need none of them.
CONNECTIONS = 8
#: Seconds in which Redis answers; a connection that keeps silent longer is made anew.
ANSWERED_WITHIN = 1.0


class _AbruptTLS(SSLConnection):
    """Closed at once when it is disconnected: asyncio would wait half a minute for the goodbye of a silent server."""

    async def disconnect(self, *arguments: Any, **named: Any) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*arguments, **named)


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
    pool.connection_class = noticing_async(_AbruptTLS if kind is SSLConnection else kind)
    return pool


async def read(connection: AbstractConnection) -> object:
    """The next answer or message; an error that Redis has answered with is one."""
    try:
        return cast(
            "object", await connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
        )
    except ResponseError as error:
        return error


def is_silent(error: BaseException) -> bool:
    """Whether Redis gave no answer at all; redis-py tells that on a unix socket as the cause of another error."""
    return any(isinstance(one, (TimeoutError, RedisTimeoutError)) for one in (error, error.__cause__))


def over(task: asyncio.Task[Any]) -> None:
    """Take note of how a task has ended, for nobody else does."""
    if not task.cancelled():
        task.exception()


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end; what they raise is nobody's any more.

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

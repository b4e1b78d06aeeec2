"""Connections to Redis, with the same time limits for every role."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from redis import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.retry import Retry

from peerlane.config.redis.connections import noticing
from peerlane.config.redis.sentinels import sentinels
from peerlane.config.redis.url import redis_tls, server_url
from peerlane.config.settings import Settings

#: Connections of one client. Each thread that waits for an outcome holds one; redis-py 8.1 would refuse the 101st.
MAX_CONNECTIONS = 10_000


def connect(settings: Settings, *, timeout: float = 2.0, connected: Callable[[], object] | None = None) -> Redis:
    """A client with its own pool. ``timeout`` limits each answer, in seconds; the client retries nothing.

    ``connected`` is called after each new connection.
    """

    def on_connect(connection: Any) -> None:
        connection.on_connect()
        if connected is not None:
            connected()

    url = server_url(settings)
    kind = (
        UnixDomainSocketConnection if url.startswith("unix") else SSLConnection if redis_tls(settings) else Connection
    )
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments in redis-py
        url,
        connection_class=noticing(kind),
        sentinels=sentinels(settings),
        max_connections=MAX_CONNECTIONS,
        socket_timeout=timeout,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        redis_connect_func=on_connect if connected is not None else None,
        **redis_tls(settings),
    )


class SharedRedis:
    """The client of a gateway's process for all that its main thread asks one after the other: so one connection does.

    Its text shows no secret: kombu keys its pools by it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __repr__(self) -> str:
        return type(self).__name__

    @cached_property
    def client(self) -> Redis:
        """The client; made when first asked for."""
        return connect(self._settings)

"""Connections to Redis, with the same limits for every role: a frozen server is noticed, never waited for."""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.settings import Settings


def connect(settings: Settings, *, timeout: float = 2.0) -> Redis:
    """A client with its own pool. ``timeout`` bounds every answer, in seconds; nothing is retried unseen."""
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments in redis-py
        settings.redis_url.get_secret_value(),
        socket_timeout=timeout,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )

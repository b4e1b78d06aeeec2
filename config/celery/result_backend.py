"""Celery's result backend on Peerlane's connections (peerlane.config.redis.connections)."""

from __future__ import annotations

from typing import Any, cast

from celery.backends.redis import RedisBackend
from redis import Connection, Redis

from peerlane.config.redis.connections import noticing
from peerlane.config.redis.sentinels import sentinels


class OwnBackend(RedisBackend):
    """The result backend of API hosts."""

    def _create_client(self, **params: Any) -> Any:
        settings = cast("Any", self).app.settings
        kind = noticing(params.pop("connection_class", None) or Connection)
        pool = cast("Any", self).ConnectionPool(**params, connection_class=kind, sentinels=sentinels(settings))
        return Redis(connection_pool=pool)

"""A gateway's keys as they were a while ago: what a Redis holds that has lost its last seconds."""

from __future__ import annotations

from typing import Any, cast

from redis import Redis

from peerlane.config import names


def _keys(redis: Redis, gateway: str) -> list[bytes]:
    patterns = (f"peerlane:{{{gateway}}}:*", f"{names.RESULT_PREFIX}{gateway}.*", f"gateway.{gateway}*")
    return [key for pattern in patterns for key in cast("list[bytes]", redis.keys(pattern))]


class Moment:
    """What Redis holds of a gateway now."""

    def __init__(self, redis: Redis, gateway: str) -> None:
        """``redis`` decodes nothing."""
        self._redis, self._gateway = redis, gateway
        self._dumps: dict[bytes, tuple[int, Any]] = {
            key: (max(0, redis.pttl(key)), redis.dump(key)) for key in _keys(redis, gateway)
        }

    def come_back(self) -> None:
        """Redis forgets all that has happened since, in one step."""
        pipe = self._redis.pipeline(transaction=True)
        for key in _keys(self._redis, self._gateway):
            pipe.delete(key)
        for key, (life, dump) in self._dumps.items():
            pipe.restore(cast("str", key), life, dump)
        pipe.execute()

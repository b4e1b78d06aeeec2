"""Waiting until peers have expired: by Redis' clock, and by what a writer takes for it."""

from __future__ import annotations

from servers import RedisServer
from waiting import eventually

#: Seconds by which a writer's clock may be behind Redis', from which it is read.
CLOCKS_DIFFER = 0.5


def await_expiry(server: RedisServer, expires_at: int | None) -> None:
    """Return once a peer that expires then has expired for everybody."""

    def passed() -> float:
        seconds, microseconds = server.redis.time()
        return seconds + microseconds / 1e6 - (expires_at or 0)

    eventually(lambda: passed() > CLOCKS_DIFFER, "the peers to expire")

"""Asks Redis Sentinels for the primary's address; each connection asks when it connects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

#: Seconds that one Sentinel may take to answer; one that does not is not waited for longer.
PATIENCE = 0.5


_REFUSED = re.compile(r"\b(?:AuthenticationError|NoPermissionError|NOAUTH|WRONGPASS|NOPERM)\b")


class NoPrimary(RedisConnectionError):
    """No Sentinel names a primary. The message lists the Sentinels."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The Sentinels and the service's name. Its text contains no secret: kombu uses it as a key of its pools."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __hash__(self) -> int:
        return hash((self.hosts, self.service))

    def primary(self) -> tuple[str, int]:
        """The primary's address now.

        Raises:
            NoPrimary: none of them could be asked, or none knows.
        """
        asked = Sentinel(list(self.hosts), sentinel_kwargs=self._options(Retry(NoBackoff(), 0)))
        try:
            return cast("tuple[str, int]", asked.discover_master(self.service))
        except RedisError as error:
            raise self._nobody(error) from error
        finally:
            for client in cast("list[Any]", asked.sentinels):
                client.close()

    async def primary_async(self) -> tuple[str, int]:
        """The same in an event loop."""
        from redis.asyncio.retry import Retry as AsyncRetry  # noqa: PLC0415 - asyncio's only

        asked = AsyncSentinel(list(self.hosts), sentinel_kwargs=self._options(AsyncRetry(NoBackoff(), 0)))
        try:
            return cast("tuple[str, int]", await asked.discover_master(self.service))
        except RedisError as error:
            raise self._nobody(error) from error
        finally:
            for client in cast("list[Any]", asked.sentinels):
                await client.aclose()

    def _options(self, retry: object) -> dict[str, Any]:
        options: dict[str, Any] = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "retry": retry}
        if self.password is not None:
            options |= {"username": self.username, "password": self.password}
        return {**options, **({"ssl": True, **self.tls} if self.tls else {})}

    def _nobody(self, error: RedisError) -> NoPrimary:
        asked = ", ".join(f"{host}:{port}" for host, port in self.hosts)
        # What redis-py tells has each Sentinel's error, and names that may hold any word.
        refused = _REFUSED.search(str(error).replace(self.service, ""))
        why = "their password is another one" if refused else None
        named = f"the Sentinels {asked} name no primary of the service {self.service}"
        return NoPrimary(named if why is None else f"{named}: {why}")

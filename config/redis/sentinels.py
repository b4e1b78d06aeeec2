"""Asks Redis Sentinels for the primary's address; each connection asks when it connects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redis import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import Connection as AsyncConnection
from redis.asyncio import ConnectionPool as AsyncPool
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from peerlane.config.redis.async_tls import AbruptTLS
from peerlane.config.redis.url import named_sentinels, redis_tls

if TYPE_CHECKING:
    from peerlane.config.settings import Settings

#: Seconds that one Sentinel may take to accept a connection, and to answer.
PATIENCE = 0.5

#: A Sentinel's answer: the primary's address, or why it names none.
_Answer = tuple[str, int] | str


class NoPrimary(RedisConnectionError):
    """No Sentinel names a primary."""

    def __init__(self, service: str, answers: Mapping[str, str | RedisError]) -> None:
        """``answers``: the address of each Sentinel → its answer, or why it could not be asked."""
        super().__init__(f"no Sentinel names a primary of the service {service}")
        self.answers = answers


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The Sentinels and the service's name. Its text contains no secret: kombu uses it as a key of its pools."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    #: redis-py's TLS options; empty: the Sentinels speak no TLS.
    tls: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    #: The number of the Sentinel that answered last, which is asked first; threads may overwrite each other's.
    _asked_first: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    def __hash__(self) -> int:
        return hash((self.hosts, self.service))

    def primary(self) -> tuple[str, int]:
        """The primary's address now, from the first Sentinel that names one. The one that did so last is asked first.

        Raises:
            NoPrimary: says of each Sentinel why it names none.
        """
        answers: dict[str, str | RedisError] = {}
        for number, host, port in self._in_turn():
            options = self._options(host, port, Retry(NoBackoff(), 0))
            client = Redis.from_pool(
                ConnectionPool(connection_class=SSLConnection if self.tls else Connection, **options)
            )
            try:
                answer = self._read(client.sentinel_masters())
            except RedisError as error:
                answers[_address(host, port)] = error
                continue
            finally:
                client.close()
            if isinstance(answer, tuple):
                self._asked_first[0] = number
                return answer
            answers[_address(host, port)] = answer
        raise NoPrimary(self.service, answers)

    async def primary_async(self) -> tuple[str, int]:
        """The same in an event loop."""
        from redis.asyncio.retry import Retry as AsyncRetry  # noqa: PLC0415 - asyncio's only

        answers: dict[str, str | RedisError] = {}
        for number, host, port in self._in_turn():
            options = self._options(host, port, AsyncRetry(NoBackoff(), 0))
            client = AsyncRedis.from_pool(
                AsyncPool(connection_class=AbruptTLS if self.tls else AsyncConnection, **options)
            )
            try:
                answer = self._read(await client.sentinel_masters())
            except RedisError as error:
                answers[_address(host, port)] = error
                continue
            finally:
                await client.aclose()
            if isinstance(answer, tuple):
                self._asked_first[0] = number
                return answer
            answers[_address(host, port)] = answer
        raise NoPrimary(self.service, answers)

    def _in_turn(self) -> list[tuple[int, str, int]]:
        numbered = [(number, host, port) for number, (host, port) in enumerate(self.hosts)]
        first = self._asked_first[0]
        return numbered[first:] + numbered[:first]

    def _options(self, host: str, port: int, retry: object) -> dict[str, Any]:
        options: dict[str, Any] = {"host": host, "port": port, "retry": retry, **self.tls}
        options |= {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "driver_info": None}
        if self.password is not None:
            options |= {"username": self.username, "password": self.password}
        return options

    def _read(self, services: object) -> _Answer:
        state = cast("Mapping[str, Mapping[str, Any]]", services).get(self.service)
        if state is None:
            return "it knows no such service"
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return "the primary that it knows is down"
        return str(state["ip"]), int(state["port"])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def sentinels(settings: Settings) -> Sentinels | None:
    """The Sentinels of the settings' URL; None if the URL names a server."""
    named = named_sentinels(settings.redis_url.get_secret_value())
    return None if named is None else Sentinels(*named, tls=redis_tls(settings))

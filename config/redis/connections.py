"""Redis connection classes that close when the server is no primary; for redis-py, kombu, Celery's backend and asyncio.

If a server answers that it is no primary, or takes no writes for now, Redis counts as away: the connection is closed
and the next one goes where name, address or Sentinels then lead. A command with such an answer was not carried out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

from peerlane.config.redis.sentinels import Sentinels

#: How such answers begin that redis-py has no class of its own for.
_AWAY = ("NOREPLICAS", "UNBLOCKED", "READONLY", "MASTERDOWN")


class NotPrimary(RedisConnectionError):
    """The server is a replica, or has too few replicas. The cause is redis-py's error."""


def says_away(error: ResponseError) -> bool:
    """Whether this answer means that Redis cannot be used now, and another server perhaps can."""
    return isinstance(error, ReadOnlyError | MasterDownError) or str(error).startswith(_AWAY)


class _Telling:
    """Mixin for a parser of redis-py, which raises such an error at once and closes the connection."""

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        error: Exception = getattr(super(), "parse_error")(response)  # noqa: B009 - of the class that this is prepended to
        if not isinstance(error, ResponseError) or not says_away(error):
            return error
        away = NotPrimary(str(error).partition(" script: ")[0])
        away.__cause__ = error
        return away


@cache
def _telling(kind: type[Any]) -> type[Any]:
    return kind if issubclass(kind, _Telling) else type(kind.__name__, (_Telling, kind), {})


class _Noticing:
    """Mixin for a connection class of redis-py; ``sentinels``, if given, tell the address."""

    def __init__(self, *arguments: Any, sentinels: Sentinels | None = None, **options: Any) -> None:
        self.sentinels = sentinels
        super().__init__(*arguments, **options)

    def set_parser(self, parser_class: type[Any]) -> None:
        getattr(super(), "set_parser")(_telling(parser_class))  # noqa: B009 - as above


class _Blocking(_Noticing):
    def _connect(self) -> Any:
        own: Any = self
        if self.sentinels is not None:
            own.host, own.port = self.sentinels.primary()
        return getattr(super(), "_connect")()  # noqa: B009 - as above


class _Async(_Noticing):
    async def _connect(self) -> Any:
        own: Any = self
        if self.sentinels is not None:
            own.host, own.port = await self.sentinels.primary_async()
        return await getattr(super(), "_connect")()  # noqa: B009 - as above


@cache
def noticing(kind: type[Any]) -> type[Any]:
    """A subclass of a redis-py connection class with this behaviour."""
    return kind if issubclass(kind, _Noticing) else type(kind.__name__, (_Blocking, kind), {})


@cache
def noticing_async(kind: type[Any]) -> type[Any]:
    """The same for a connection class of redis.asyncio."""
    return kind if issubclass(kind, _Noticing) else type(kind.__name__, (_Async, kind), {})

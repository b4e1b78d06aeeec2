"""One kept connection for all requests of a list: pushes them, and hears their outcomes on the list's own channel.

The slices of a list have the ids ``GATEWAY.REPLY_N``, so the outcomes of all of them are published on one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.tasks.redis.subscription import Link, Listeners, ignore

_T = TypeVar("_T")


class ListReplies:
    """The connection of one caller's lists. Belongs to one thread; a context manager.

    After an error the connection is closed. What was asked on it then has to be looked for elsewhere; what is asked
    next gets another connection.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._link: Link | None = None
        self._channels: set[bytes] = set()
        #: Records of requests that no call has waited for yet.
        self._records: list[bytes] = []

    def expect(self, list_id: str, request_id: str) -> ListReply:
        """The reply to a request of a list that is about to be sent. Raises redis.RedisError."""
        channel = names.result_key(list_id).encode()
        link = self._link
        if link is None:
            link = self._listeners.connection(channel)
            link.put_aside = self._put_aside
            self._link, self._channels = link, {channel}
        elif channel not in self._channels:
            self._channels.add(channel)
            self.doing(link, lambda: link.subscribe(channel))
        return ListReply(self, link, request_id)

    def doing(self, link: Link, act: Callable[[], _T]) -> _T:
        """Act on the connection, which is closed if that fails or is interrupted. Raises redis.RedisError."""
        if link is not self._link:
            raise RedisConnectionError("the connection was lost")
        self._link = None
        try:
            answer = act()
        except OSError as error:  # as redis-py tells it of its other connections
            link.close()
            raise RedisConnectionError(type(error).__name__) from error
        except BaseException:
            link.close()
            raise
        self._link = link
        return answer

    def record(self, link: Link, request_id: str, until: float) -> str | None:
        """As ``Link.record``; it may have come while something else was waited for."""
        whose = f'"{request_id}"'.encode()
        for at, record in enumerate(self._records):
            if whose in record:
                del self._records[at]
                return record.decode(errors="replace")
        heard = self.doing(link, lambda: link.record(request_id, until))
        if heard is None:
            self.drop()  # it has kept silent: it may have died without a word
        return heard

    def _put_aside(self, message: object) -> None:
        match message:
            case [b"message", bytes(), bytes(record)]:
                self._records.append(record)
            case _:
                pass

    def drop(self) -> None:
        """Close the connection."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        link = self._link
        if link is None:
            return
        link.put_aside = ignore
        with suppress(RedisError):
            for channel in self._channels:
                self.doing(link, partial(link.unsubscribe, channel))
            self._link = None
            self._listeners.give_back(link, None, sound=True)


class ListReply:
    """The reply to one request of a list."""

    def __init__(self, replies: ListReplies, link: Link, request_id: str) -> None:
        self._replies, self._link, self._request_id = replies, link, request_id

    def push(self, queue: str, message: str) -> int:
        """Push the request into its queue; returns the queue's length.

        Raises:
            redis.RedisError: it may have arrived all the same.
        """
        return self._replies.doing(self._link, lambda: self._link.push(queue, message))

    def wait(self, until: float) -> str | None:
        """The commit record as it is published; None if none is ``until`` then, on the monotonic clock.

        Raises:
            redis.RedisError: the connection is lost.
        """
        return self._replies.record(self._link, self._request_id, until)

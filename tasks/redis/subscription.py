"""Kept connections, one for each waiting thread: a thread sends its requests and receives their outcomes on one.

A connection is subscribed to one channel for all of its requests: that of ``GATEWAY.REPLY`` for the ids
``GATEWAY.REPLY_N``. So a request needs no SUBSCRIBE of its own. Redis' answer to a push on the same connection shows
that the subscription still works. A connection belongs to one thread at a time, so no thread waits for another.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config import names

#: Seconds in which Redis answers.
ANSWERED_WITHIN = 1.0
#: The same for a connection that replaces a kept one: both together leave a caller its timeout and two seconds.
AGAIN_WITHIN = 0.6
#: Seconds without a word after which a connection is asked whether it still hears.
SILENT_FOR = 1.0
#: Seconds after which a kept connection is asked before it is used, and after which an unused one is closed.
DOUBTED_AFTER = 2.0
IDLE_FOR = 60.0
#: Messages of others that are read after the time for an answer is up, as the answer may lie behind them.
MOST_LATE = 1_000
#: Channels of a kept connection: one for each gateway that was asked, and the names are the caller's to choose.
MOST_CHANNELS = 1_000

_T = TypeVar("_T")
#: Makes a connection ready for a request, in so many seconds.
_Prepare = Callable[["Link", float], None]


class Link:
    """One connection. After any error it is closed, because the next answer could belong to another command."""

    def __init__(self, redis: Redis) -> None:
        """Raises redis.RedisError where Redis cannot be reached."""
        self._pool = redis.connection_pool
        # RESP3: commands are taken on a connection that is subscribed too.
        self._connection = cast("Any", self._pool.get_connection())
        self.channels: set[bytes] = set()
        self._token = uuid.uuid4().hex
        self._asked = 0
        #: Is given what comes while something else is waited for.
        self.put_aside: Callable[[object], None] = ignore
        self._closed = False
        self.used_at = time.monotonic()

    def new_id(self, gateway: str) -> str:
        """An id for a request of the gateway whose outcome comes on this connection."""
        self._asked += 1
        return f"{gateway}.{self._token}_{self._asked}"

    def hear_replies(self, gateway: str, within: float) -> None:
        """Subscribe to the outcomes of all ids of ``new_id``. Raises redis.RedisError."""
        channel = f"{names.RESULT_PREFIX}{gateway}.{self._token}".encode()
        if channel not in self.channels:
            self.subscribe(channel, within)

    def subscribe(self, channel: bytes, within: float = ANSWERED_WITHIN) -> None:
        """Once this returns, nothing that is published on the channel can be missed. Raises redis.RedisError."""
        self._send("SUBSCRIBE", channel)
        self._until(time.monotonic() + within, lambda message: _confirms(message, channel))
        self.channels.add(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Unsubscribe from a channel. Raises redis.RedisError."""
        self._send("UNSUBSCRIBE", channel)
        self.channels.discard(channel)

    def push(self, queue: str, message: str) -> int:
        """Push a message into a queue; returns the queue's length. Raises redis.RedisError."""
        self._send("LPUSH", queue, message)
        return cast("int", self._until(time.monotonic() + ANSWERED_WITHIN, lambda answer: isinstance(answer, int)))

    def command(self, *words: str | int, within: float) -> object:
        """The answer to another command. Raises redis.RedisError."""
        self._send(*words)
        return self._until(time.monotonic() + within, lambda answer: not isinstance(answer, list))

    def still_hears(self, within: float = ANSWERED_WITHIN) -> None:
        """Check that the connection still works. Raises redis.RedisError if it does not."""
        self._send("PING")
        self._until(time.monotonic() + within, lambda message: message in (b"PONG", "PONG"))

    def drop_what_is_late(self) -> None:
        """Discard late messages for earlier requests. Raises redis.RedisError if Redis has closed the connection."""
        while self._connection.can_read(timeout=0):
            self._read()

    def record(self, request_id: str, until: float) -> str | None:
        """The request's commit record as it is published; None if none is ``until`` then, on the monotonic clock.

        Raises:
            redis.RedisError: the connection is lost.
        """
        whose = f'"{request_id}"'.encode()  # Celery's backend writes its JSON with other spaces than we do
        while (left := until - time.monotonic()) > 0:
            if not self._connection.can_read(timeout=min(left, SILENT_FOR)):
                if left > SILENT_FOR:
                    self._send("PING")
                    if not self._connection.can_read(timeout=ANSWERED_WITHIN):
                        raise RedisTimeoutError("the connection has died without a word")
                continue
            match message := self._read():
                case [b"message", bytes(), bytes(record)] if whose in record:
                    return record.decode(errors="replace")
                case _:
                    self.put_aside(message)
        return None

    def _send(self, *command: str | bytes | int) -> None:
        self._connection.send_command(*command, check_health=False)

    def _until(self, until: float, awaited: Callable[[object], bool]) -> object:
        late = 0
        while late < MOST_LATE and self._connection.can_read(timeout=max(0.0, until - time.monotonic())):
            if awaited(message := self._read()):
                return message
            self.put_aside(message)
            late += time.monotonic() >= until  # it may have come in time, while this process stood still
        raise RedisTimeoutError("Redis does not answer")

    def _read(self) -> Any:
        return self._connection.read_response(push_request=True)

    def close(self) -> None:
        """Close it; closing twice is no error."""
        if not self._closed:
            self._closed = True
            self._connection.disconnect()
            self._pool.release(self._connection)


def ignore(message: object) -> None:
    """What is late is nobody's."""


def _confirms(message: object, channel: bytes) -> bool:
    return isinstance(message, list) and cast("list[object]", message)[:2] == [b"subscribe", channel]


class Listening:
    """Waits for the publication of one request's outcome. Belongs to one thread; a context manager."""

    def __init__(self, listeners: Listeners, link: Link, request_id: str, channel: bytes | None) -> None:
        """``channel`` is the request's own; None if the connection's common channel has its outcome."""
        self.request_id = request_id
        self._listeners, self._link, self._channel = listeners, link, channel
        self._sound = True
        self._closed = False

    def push(self, queue: str, message: str) -> int:
        """Push the request into its queue; returns the queue's length.

        Raises:
            redis.RedisError: it may have arrived all the same.
        """
        return self._doing(lambda: self._link.push(queue, message))

    def wait(self, until: float) -> str | None:
        """The commit record as it is published; None if none is ``until`` then, on the monotonic clock.

        Raises:
            redis.RedisError: the connection is lost.
        """
        return self._doing(lambda: self._link.record(self.request_id, until))

    def command(self, *words: str | int) -> object:
        """The answer to another command, on the same connection.

        Raises:
            redis.RedisError: it may have been carried out all the same.
        """
        answer = self._doing(lambda: self._link.command(*words, within=AGAIN_WITHIN))
        self._sound = True
        return answer

    def _doing(self, act: Callable[[], _T]) -> _T:
        self._sound = False  # any interruption, a half-read answer for example
        try:
            answer = act()
        except OSError as error:  # as redis-py tells it of its other connections
            raise RedisConnectionError(type(error).__name__) from error
        # A silent connection may be dead; its next user would wait for nothing.
        self._sound = answer is not None
        return answer

    def close(self) -> None:
        """Stop waiting; closing twice is no error."""
        if not self._closed:
            self._closed = True
            self._listeners.give_back(self._link, self._channel, sound=self._sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Listeners:
    """The connections of one process. Threads share it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._kept: deque[Link] = deque()
        self._process = os.getpid()

    def reply(self, gateway: str) -> Listening:
        """A Listening for a new request of the gateway. Raises redis.RedisError if Redis does not answer."""
        link = self._ready(lambda link, within: link.hear_replies(gateway, within))
        return Listening(self, link, link.new_id(gateway), None)

    def connection(self, channel: bytes) -> Link:
        """A connection that is subscribed to a channel. Raises redis.RedisError if Redis does not answer."""
        return self._ready(lambda link, within: link.subscribe(channel, within))

    def listen(self, request_id: str) -> Listening:
        """A Listening for a request whose id the caller chose. Raises redis.RedisError if Redis does not answer."""
        channel = names.result_key(request_id).encode()
        return Listening(self, self.connection(channel), request_id, channel)

    def _ready(self, prepare: _Prepare) -> Link:
        """A prepared connection; a kept one that no longer works is replaced once."""
        if self._process != os.getpid():  # forked: the parent goes on with its own
            self._kept, self._process = deque(), os.getpid()
        within = ANSWERED_WITHIN
        try:
            link = self._kept.pop()
        except IndexError:
            pass
        else:
            try:
                link.drop_what_is_late()
                if time.monotonic() - link.used_at > DOUBTED_AFTER:
                    link.still_hears()
                prepare(link, within)
                return link
            except (RedisError, OSError):
                link.close()
                self.close()  # the others kept as long are dead too
                # Perhaps without a word, a second ago: where Redis can be reached, a new one is confirmed at once.
                within = AGAIN_WITHIN
            except BaseException:
                link.close()
                raise
        return self._new(prepare, within)

    def _new(self, prepare: _Prepare, within: float) -> Link:
        link: Link | None = None
        try:
            link = Link(self._redis)
            prepare(link, within)
        except BaseException as error:
            if link is not None:
                link.close()
            if isinstance(error, OSError):
                raise RedisConnectionError(type(error).__name__) from error
            raise
        return link

    def give_back(self, link: Link, channel: bytes | None, *, sound: bool) -> None:
        """Keep a connection for another request; a broken one is closed."""
        if not sound or len(link.channels) > MOST_CHANNELS:
            link.close()
            return
        try:
            if channel is not None:
                link.unsubscribe(channel)
        except (RedisError, OSError):
            link.close()
            return
        now = link.used_at = time.monotonic()
        self._kept.append(link)
        try:
            # The last one used is used next: the first has been idle for longest.
            while now - self._kept[0].used_at > IDLE_FOR:
                self._kept.popleft().close()
        except IndexError:
            pass  # another thread has taken it

    def close(self) -> None:
        """Close all kept connections."""
        while self._kept:
            try:
                self._kept.pop().close()
            except IndexError:
                return

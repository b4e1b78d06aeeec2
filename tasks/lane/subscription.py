"""Hear of a request's outcome when it is committed: each waiting thread on a subscription of its own.

Celery's result consumer has one subscription under one lock: while Redis stands still, each of its threads waits for
all that came before it, however short its own patience is.
"""

from __future__ import annotations

import os
import time
from collections import deque
from types import TracebackType
from typing import Any, Self, cast

from redis import Redis
from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from peerlane.config import names

#: Subscriptions kept for the next request; more are made where more threads wait at once.
KEPT = 32
#: Seconds in which a subscription is confirmed.
CONFIRMED_WITHIN = 1.0
#: The same for one that replaces a kept one: both together leave a caller its timeout and two seconds.
AGAIN_WITHIN = 0.6


class Listening:
    """What is published of one request. Belongs to one thread; a context manager."""

    def __init__(self, listeners: Listeners, pubsub: PubSub, request_id: str) -> None:
        self._listeners, self._pubsub = listeners, pubsub
        self._channel = names.result_key(request_id).encode()
        self._sound = self._closed = False

    def begin(self, within: float = CONFIRMED_WITHIN) -> Self:
        """Subscribe, in ``within`` seconds; once this returns, no outcome can be missed.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        try:
            self._pubsub.subscribe(self._channel)
            if self._await("subscribe", time.monotonic() + within) is None:
                raise RedisConnectionError("the subscription was not confirmed")
        except OSError as error:  # as redis-py tells it of its other connections
            self.close()
            raise RedisConnectionError(type(error).__name__) from error
        except BaseException:
            self.close()
            raise
        self._sound = True
        return self

    def wait(self, until: float) -> str | None:
        """The commit record as it is published; None if none is ``until`` then, on the monotonic clock.

        Raises:
            redis.RedisError: the connection is lost.
        """
        self._sound = False
        found = self._await("message", until)
        # One that has kept silent may have died without a word: whoever got it next would not be confirmed.
        self._sound = found is not None
        return found

    def _await(self, kind: str, until: float) -> str | None:
        while (left := until - time.monotonic()) > 0:
            message = cast("dict[str, Any] | None", self._pubsub.get_message(timeout=left))
            # Late messages for the request that used this kept subscription before are ignored.
            if message is not None and message["type"] == kind and message["channel"] == self._channel:
                data = message["data"]
                return data.decode(errors="replace") if isinstance(data, bytes) else str(data)
        return None

    def close(self) -> None:
        """Listen no more; closing twice is no error."""
        if not self._closed:
            self._closed = True
            self._listeners.give_back(self._pubsub, self._channel, sound=self._sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Listeners:
    """The subscriptions of one process. Threads share it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._kept: deque[PubSub] = deque()
        self._process = os.getpid()

    def listen(self, request_id: str) -> Listening:
        """Subscribe to what becomes of a request; a kept subscription that has died is replaced once.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if self._process != os.getpid():  # forked: the parent goes on with its own
            self._kept, self._process = deque(), os.getpid()
        try:
            kept = self._kept.pop()
        except IndexError:
            return Listening(self, self._redis.pubsub(), request_id).begin()
        try:
            return Listening(self, kept, request_id).begin()
        except RedisError:
            self.close()  # those kept as long have died of the same
            # Perhaps without a word, a second ago: where Redis can be reached, a new one is confirmed at once.
            return Listening(self, self._redis.pubsub(), request_id).begin(AGAIN_WITHIN)

    def give_back(self, pubsub: PubSub, channel: bytes, *, sound: bool) -> None:
        """Keep a subscription for another request; one that is not sound is closed."""
        try:
            if sound and len(self._kept) < KEPT:
                pubsub.unsubscribe(channel)
                self._kept.append(pubsub)
                return
        except (RedisError, OSError):
            pass
        pubsub.close()

    def close(self) -> None:
        """Close all that is kept."""
        while self._kept:
            self._kept.pop().close()

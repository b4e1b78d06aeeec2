"""Asking Redis until it answers: a writer waits its outages out, where nothing else could be done anyway."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config.redis import reason

log = logging.getLogger(__name__)

#: Redis is away: ask again. (BusyLoadingError and the like are ConnectionErrors.)
AWAY = (RedisConnectionError, RedisTimeoutError)

_T = TypeVar("_T")


class Stopping(BaseException):
    """The worker is told to stop while the writer waits for Redis. Not an error: nothing may catch and store it."""


class Patience:
    """Waits as long as nobody tells the worker to stop."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping

    def __call__(self, ask: Callable[[], _T]) -> _T:
        """Ask until there is an answer; every error but Redis' being away is the answer.

        Raises:
            Stopping: the worker is told to stop.
        """
        wait = 0.05
        while True:
            try:
                return ask()
            except AWAY as error:
                if self._stopping():
                    raise Stopping from None
                log.warning("Redis is away (%s); asking again", reason(error))
                time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
                wait = min(wait * 2, 1.0)

"""Retries a Redis call with backoff until it succeeds or shutdown is requested."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config.redis.failures import reason
from peerlane.workers.host.outage import OUTAGE
from peerlane.workers.host.pulse import PULSE

#: Redis is away: ask again. (BusyLoadingError and the like are ConnectionErrors.)
AWAY = (RedisConnectionError, RedisTimeoutError)

_T = TypeVar("_T")


class ShutdownRequested(BaseException):
    """The worker has to stop while the writer waits for Redis. Not an error: nothing may catch and store it."""


class RetryUntilShutdown:
    """Repeats a call, with growing pauses, while Redis is away."""

    def __init__(self, shutdown_requested: Callable[[], bool]) -> None:
        self._shutdown_requested = shutdown_requested

    def __call__(self, call: Callable[[], _T]) -> _T:
        """Call until there is an answer. Any error other than Redis being away is raised.

        Raises:
            ShutdownRequested: the worker is to stop.
        """
        wait = 0.05
        while True:
            try:
                answer = call()
            except AWAY as error:
                if self._shutdown_requested():
                    raise ShutdownRequested from None
                OUTAGE.failed(reason(error))
                PULSE.wait()
                time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
                wait = min(wait * 2, 1.0)
            else:
                OUTAGE.over()
                return answer

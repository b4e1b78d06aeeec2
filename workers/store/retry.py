"""Redis is away: calls are retried until they succeed or shutdown is requested, and the outage is logged in few lines.

The log has its beginning, a line from time to time, and its end.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config.redis.failures import reason
from peerlane.workers.host.pulse import PULSE

log = logging.getLogger(__name__)

#: Redis is away: ask again. (BusyLoadingError and the like are ConnectionErrors.)
AWAY = (RedisConnectionError, RedisTimeoutError)

#: Seconds between two lines while an outage lasts.
AGAIN = 30.0

_T = TypeVar("_T")


class Outage:
    """Logs a series of failures in few lines. Threads may share it."""

    def __init__(
        self, begins: str = "Redis is away", lasts: str = "Redis is still away", ends: str = "Redis is back"
    ) -> None:
        self._begins, self._lasts, self._ends = begins, lasts, ends
        self._lock = threading.Lock()
        self._began: float | None = None
        self._said = 0.0
        #: Which Redis, as a URL without passwords; the first line names it.
        self.place = ""

    def failed(self, why: str) -> None:
        """Count a failure."""
        with self._lock:
            now = time.monotonic()
            if self._began is None:
                self._began = self._said = now
                log.warning("%s (%s)%s", self._begins, why, f": {self.place}" if self.place else "")
            elif now - self._said >= AGAIN:
                self._said = now
                log.warning("%s, for %.0f s (%s)", self._lasts, now - self._began, why)

    def over(self) -> None:
        """Count a success, which ends an outage."""
        with self._lock:
            if self._began is None:
                return
            began, self._began = self._began, None
            log.warning("%s after %.1f s", self._ends, time.monotonic() - began)


#: This process' Redis.
OUTAGE = Outage()


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

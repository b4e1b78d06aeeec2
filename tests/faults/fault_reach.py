"""How long Redis takes to answer, as seen by a client that nothing was done to: a machine may be too busy to answer."""

from __future__ import annotations

import threading
import time

from fault_evidence import Window
from redis import Redis
from redis.exceptions import RedisError

#: Seconds between two questions, and for an answer from which on callers may have given up waiting for theirs.
EVERY, SLOW = 0.1, 0.5


class Reach:
    """Asks all the while. What fails is no word of the machine's slowness: that is a fault which the run knows of."""

    def __init__(self, url: str) -> None:
        """``url`` leads the way of the callers."""
        self._redis = Redis.from_url(url, socket_timeout=30)
        self._windows: list[Window] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="reach", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._ended.wait(EVERY):
            began = time.monotonic()
            try:
                self._redis.ping()
            except (RedisError, OSError):
                continue
            if (ended := time.monotonic()) - began > SLOW:
                self._windows.append(Window(began, ended))

    def slow_since(self, moment: float) -> tuple[Window, ...]:
        """When an answer took long, as far as that ended after ``moment`` on the monotonic clock."""
        return tuple(window for window in list(self._windows) if window.ended > moment)

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join(2)
        self._redis.close()

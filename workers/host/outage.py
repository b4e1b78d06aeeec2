"""One outage of Redis in the log: its beginning, a line now and then while it lasts, its end. One in a process."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)

#: Seconds between two lines while an outage lasts.
AGAIN = 30.0


class Outage:
    """Told of every failure and every success; says little. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: float | None = None
        self._said = 0.0

    def failed(self, why: str) -> None:
        """Redis could not be used."""
        with self._lock:
            now = time.monotonic()
            if self._began is None:
                self._began = self._said = now
                log.warning("Redis is away (%s); asking again", why)
            elif now - self._said >= AGAIN:
                self._said = now
                log.warning("Redis is still away, for %.0f s (%s); asking again", now - self._began, why)

    def over(self) -> None:
        """Redis was used."""
        with self._lock:
            if self._began is None:
                return
            began, self._began = self._began, None
            log.warning("Redis is back after %.1f s", time.monotonic() - began)


OUTAGE = Outage()

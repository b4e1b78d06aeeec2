"""Logs an outage, such as Redis being away, in a few lines: its beginning, a line from time to time, its end."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)

#: Seconds between two lines while an outage lasts.
AGAIN = 30.0


class Outage:
    """Logs a series of failures in few lines. Threads may share it."""

    def __init__(
        self, begins: str = "Redis is away", lasts: str = "Redis is still away", ends: str = "Redis is back"
    ) -> None:
        self._begins, self._lasts, self._ends = begins, lasts, ends
        self._lock = threading.Lock()
        self._began: float | None = None
        self._said = 0.0

    def failed(self, why: str) -> None:
        """Count a failure."""
        with self._lock:
            now = time.monotonic()
            if self._began is None:
                self._began = self._said = now
                log.warning("%s (%s)", self._begins, why)
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

"""Watchdog: raises an alarm when beat stops scheduling sweeps, as expired peers would stay unnoticed."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis import Redis

from peerlane.tasks.status.alarms import clear_alarm, raise_alarm
from peerlane.tasks.status.gateway_status import BEAT_AT_LEAST, BEAT_MISSED


class ScheduleWatchdog:
    """Raises an alarm if scheduled requests stop, and clears it at the next. Raises redis.RedisError."""

    KIND = "unattended"

    def __init__(self, redis: Redis, gateway: str, *, steady: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._gateway, self._steady = redis, gateway, steady
        self._since = steady()
        self._asked = self._raised = False

    def asked(self) -> None:
        """Note that a beat has just asked."""
        self._asked, self._since = True, self._steady()

    def excused(self) -> None:
        """Restart the wait, because Redis was away and no beat could ask."""
        self._since = self._steady()

    def look(self, every: Callable[[], float], now: int) -> None:
        """Raise or clear the alarm. ``every``: seconds between sweeps; ``now``: seconds on Redis' clock."""
        if self._asked:
            self._asked = self._raised = False
            clear_alarm(self._redis, self._gateway, self.KIND, "sweeps are asked for")  # an earlier process' too
        elif (
            not self._raised
            and (silent := self._steady() - self._since) > BEAT_AT_LEAST
            and silent > BEAT_MISSED * every()
        ):
            message = "beat asks for no sweeps: is one running? Until one does, peers that expire stay"
            raise_alarm(self._redis, self._gateway, self.KIND, message, now=now, began=now - int(silent))
            self._raised = True

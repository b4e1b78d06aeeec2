"""Compares Redis' clock with this host's monotonic clock; a jump raises an alarm.

Expiry uses Redis' clock. If it jumped ahead by an hour, many peers would seem to have expired.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from redis import Redis

from peerlane.tasks.status.alarms import clear_alarm, raise_alarm, read_alarms
from peerlane.workers.upkeep.sweep_policy import Refusal

#: Seconds by which the two may have drifted apart between two looks.
TOLERANCE = 30.0


class ClockDrift:
    """Compares two clocks: the server's (seconds since 1970), and a monotonic one."""

    def __init__(self, offset: float | None = None) -> None:
        """``offset`` is the earlier lead of the server over the monotonic clock, if it is known."""
        #: The lead while the clocks agreed; taken anew at each look that agrees, as clocks are slewed.
        self.offset = offset
        #: Seconds that the server's clock is ahead of where it should be; None while they agree.
        self.jumped: float | None = None

    def look(self, server: float, steady: float) -> float | None:
        """Take both clocks, read at one moment; returns the server's jump, None if there is none."""
        offset = server - steady
        if self.offset is not None and abs(offset - self.offset) > TOLERANCE:
            self.jumped = offset - self.offset
        else:
            self.offset, self.jumped = offset, None
        return self.jumped

    def accept(self, server: float, steady: float) -> None:
        """Accept the server's present time as right."""
        self.offset, self.jumped = server - steady, None


class ClockMonitor:
    """Redis' clock, and whether it can be trusted. The alarm about a jump outlives this process."""

    KIND = "clock"

    def __init__(self, redis: Redis, gateway: str) -> None:
        self._redis, self._gateway = redis, gateway
        self._watch = ClockDrift()
        self._known = False
        #: Since when it has run as it should, seconds on it; None while that is not known.
        self.sure_since: int | None = None

    def look(self) -> int:
        """Seconds on Redis' clock, now. Raises redis.RedisError."""
        if not self._known:
            self._remember()
        server, steady = self._both()
        was, jumped = self._watch.jumped, self._watch.look(server, steady)
        if jumped is not None:
            message = (
                f"Redis' clock is {abs(jumped):,.0f} s {'ahead of' if jumped > 0 else 'behind'} where it should be; "
                "nothing is swept until it is right again, or `sweep --force` takes it as it is"
            )
            detail = {"boot": _boot(), "offset": self._watch.offset}
            if was is None or abs(was - jumped) > TOLERANCE:
                raise_alarm(self._redis, self._gateway, self.KIND, message, now=int(server), detail=detail)
            self.sure_since = None
        else:
            if was is not None:
                clear_alarm(self._redis, self._gateway, self.KIND, "the clocks agree again")
            if self.sure_since is None:
                self.sure_since = int(server)
        return int(server)

    def refusals(self) -> list[Refusal]:
        """Why a sweep must not use the time of the last ``look``; empty if it may."""
        if self._watch.jumped is None:
            return []
        return [Refusal(self.KIND, f"Redis' clock has jumped by {self._watch.jumped:+,.0f} s")]

    def accept(self) -> None:
        """Accept Redis' clock, as an operator has confirmed it. Raises redis.RedisError."""
        self._watch.accept(*self._both())
        self.sure_since = None
        clear_alarm(self._redis, self._gateway, self.KIND, "a person has taken the clock as it is")

    def _both(self) -> tuple[float, float]:
        seconds, micros = self._redis.time()
        # Not CLOCK_MONOTONIC: that stands still while the host sleeps.
        return seconds + micros / 1e6, time.clock_gettime(time.CLOCK_BOOTTIME)

    def _remember(self) -> None:
        # An alarm that an earlier process raised still tells how the clocks stood before the jump; where the host was
        # started since, its own wall clock has to do.
        for alarm in read_alarms(self._redis, self._gateway):
            if alarm.kind != self.KIND:
                continue
            offset = alarm.detail.get("offset")
            if alarm.detail.get("boot") != _boot() or not isinstance(offset, (int, float)):
                offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            self._watch = ClockDrift(float(offset))
            if self._watch.look(*self._both()) is None:
                clear_alarm(self._redis, self._gateway, self.KIND, "the clocks agree again")
        self._known = True


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""

"""Measures how many requests a second a busy writer finishes, from which callers estimate their wait."""

from __future__ import annotations

import math
import time

#: Seconds of work that the pace is an average of.
_SPAN = 2.0
#: The most that one group counts for: one that stood still with Redis says little of the next.
_LONGEST = 1.0


class Pace:
    """The pace of each queue, interactive and bulk, in messages a second; 0 until it is known.

    From one group to the next the writer was busy all the time only if the first was full, that is, more waited. What
    lies between others is partly idleness, and tells no more than that it can do as much.
    """

    def __init__(self) -> None:
        self._paces = [0.0, 0.0]
        self._last: tuple[float, int, bool, bool] | None = None

    def taken(self, count: int, *, bulk: bool, full: bool, now: float | None = None) -> None:
        """Count a group that begins; ``full``: more requests wait. ``now`` is on the monotonic clock."""
        now = time.monotonic() if now is None else now
        if self._last is not None:
            began, done, was_bulk, was_full = self._last
            took = max(now - began, 1e-6)
            known, pace = self._paces[was_bulk], done / took
            if was_full and known:
                pace = known + (pace - known) * (1 - math.exp(-min(took, _LONGEST) / _SPAN))
            if was_full or pace > known:
                self._paces[was_bulk] = pace
        self._last = (now, count, bulk, full)

    def told(self) -> dict[str, str]:
        """The fields for the heartbeat."""
        return {name: f"{pace:.1f}" for name, pace in zip(("pace", "pace_bulk"), self._paces, strict=True) if pace}

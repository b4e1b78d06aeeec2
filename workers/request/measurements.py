"""Measures a writer's requests, in a few microseconds each; the heartbeat stores it (tasks.values.metrics)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.values.metrics import OPERATIONS, STAGES, Histogram
from peerlane.workers.request import traces
from peerlane.workers.request.request import Outcome, Request

_OPERATION = {names.CREATE_PEER: "create", names.DELETE_PEER: "delete"}
#: The outcomes that are counted. A commit record in Redis, which callers may write too, can say anything.
_OUTCOMES = frozenset(
    ("created", "existing", "deleted", "absent", "listed", "removed", "mended", "imported", "would_import")
)
#: Milliseconds beyond which a message was not sent when it says: no deadline is longer.
_LONGEST_WAIT = 86_400_000
#: Seconds of work that the pace is an average of.
_SPAN = 2.0
#: The most that one group counts for: one that stood still with Redis says little of the next.
_LONGEST = 1.0


class Measurements:
    """Cumulative since the writer began. Written by the writer's thread, read by the heartbeat's."""

    def __init__(self) -> None:
        self.seconds = {operation: Histogram() for operation in OPERATIONS}
        self.stages = {stage: Histogram() for stage in STAGES}
        self.requests: dict[tuple[str, str, str], int] = {}
        self.recoveries = 0
        self.recovery_seconds = 0.0
        #: Seconds of the last heartbeat's round trip.
        self.round_trip: float | None = None
        #: Of each pool: addresses that are held, and addresses that there are.
        self.pools: Mapping[str, tuple[int, int]] = {}

    def answered(self, request: Request, outcome: Outcome, taken_ms: float | None) -> None:
        """Count a request that has its outcome. ``taken_ms`` is when it was taken, on Redis' clock; None if unknown."""
        now, operation = time.monotonic(), _OPERATION.get(request.task, "bulk")
        delivery, times, result = request.delivery, request.times, outcome.result
        if isinstance(result, PeerlaneError):
            kind = (operation, "refused", result.code)
        else:
            outcome_name = result.get("outcome")
            kind = (operation, outcome_name if outcome_name in _OUTCOMES else "other", "")
        self.requests[kind] = self.requests.get(kind, 0) + 1
        waited = None
        if taken_ms is not None and delivery.sent_at > 0 and taken_ms - delivery.sent_at <= _LONGEST_WAIT:
            waited = max(0.0, (taken_ms - delivery.sent_at) / 1000)
        if delivery.traceparent:
            traces.tell(request, kind, now, waited)
        self.seconds[operation].add(now - delivery.taken_at + (waited or 0.0))
        if operation == "bulk":
            return
        stages = self.stages
        if waited is not None:
            stages["queue"].add(waited)
        if times.planned:
            stages["plan"].add(times.planned - delivery.taken_at)
            if times.applied:
                stages["device"].add(times.applied - times.planned)
            stages["commit"].add(now - (times.applied or times.planned))

    def recovered(self, began: float) -> None:
        """Count a recovery that began at ``began`` on the monotonic clock."""
        self.recoveries += 1
        self.recovery_seconds += time.monotonic() - began

    def document(self, began_ms: int) -> dict[str, Any]:
        """The document of ``tasks.values.metrics``. ``began_ms`` is when the writer began, on Redis' clock."""
        return {
            "began": began_ms,
            "seconds": {name: [each.counts, round(each.total, 6)] for name, each in self.seconds.items()},
            "stages": {name: [each.counts, round(each.total, 6)] for name, each in self.stages.items()},
            "requests": [[*kind, count] for kind, count in self.requests.copy().items()],
            "recoveries": self.recoveries,
            "recovery_seconds": round(self.recovery_seconds, 6),
            "round_trip": self.round_trip,
            "pools": dict(self.pools),
        }


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

    def heartbeat_fields(self) -> dict[str, str]:
        """The fields for the heartbeat."""
        return {name: f"{pace:.1f}" for name, pace in zip(("pace", "pace_bulk"), self._paces, strict=True) if pace}

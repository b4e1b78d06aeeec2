"""A request in the writer: its delivery and outcome, its commit record, and what is measured of it.

Measuring takes a few microseconds; the heartbeat stores what it comes to (``tasks.values.metrics``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.values.metrics import OPERATIONS, STAGES, Histogram
from peerlane.tasks.wire import commit_record
from peerlane.workers.request import traces

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


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a request was delivered. Made when its message is taken (peerlane.workers.lane), and passed on unchanged."""

    request_id: str
    #: Of the message; a commit acknowledges it in the same step. '' where there is no message.
    tag: str = ""
    #: The message was delivered before.
    redelivered: bool = False
    #: The request had an outcome when the message was taken, or something else in the place of one.
    answered: bool = False
    #: The digest of its wish, as its sender made it; '' where the message names none.
    wish: str = ""
    #: When it was sent, in ms on Redis' clock as its sender knows it; 0 where the message does not say.
    sent_at: int = 0
    #: The caller's span, as W3C Trace Context has it; '' where it traces nothing.
    traceparent: str = ""
    #: When it was taken, on the monotonic clock.
    taken_at: float = field(default_factory=time.monotonic)

    def in_doubt(self, sure_for: float) -> bool:
        """Whether the request may have an outcome by now; what was known at delivery holds for ``sure_for`` seconds."""
        return self.redelivered or self.answered or time.monotonic() > self.taken_at + sure_for


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request. It is stored in Redis, except a refusal that Redis refused to store."""

    result: Mapping[str, Any] | PeerlaneError
    #: Whether its message was acknowledged in the same step.
    acknowledged: bool = False


@dataclass(slots=True)
class Times:
    """When a request reached each step, on the monotonic clock; 0 for a step that it has not reached."""

    #: What it comes to was clear: the device is touched next, or a refusal committed.
    planned: float = 0.0
    #: The device was changed.
    applied: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request in the writer."""

    task: str
    delivery: Delivery
    arguments: Mapping[str, Any]
    #: The key under which it counts in a share of the lane.
    share: str | None = None
    times: Times = field(default_factory=Times)

    @property
    def id(self) -> str:
        """Its id, which is its Celery task's."""
        return self.delivery.request_id

    def record(self, outcome: Mapping[str, Any] | PeerlaneError) -> str:
        """The commit record of an outcome."""
        return commit_record.encode(self.id, outcome, self.delivery.wish)

    def recorded(self, stored: str) -> dict[str, Any] | PeerlaneError:
        """The result or error in a commit record of its id; a Conflict if the record is another wish's."""
        try:
            return commit_record.decode(stored, self.delivery.wish)
        except PeerlaneError as error:
            return error


def error_code(error: ResponseError) -> str:
    """The kind of an error (OutOfMemoryError, MISCONF …), without its text, which may quote what was sent."""
    # redis-py takes the code off where it has a class for it.
    return str(error).split(" ", 1)[0][:32] if type(error) is ResponseError else type(error).__name__


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
            planned = times.planned or now
            taken = delivery.taken_at
            moments = (taken - (waited or 0.0), taken, planned, times.applied or planned, now)
            traces.tell(request.id, delivery.traceparent, kind, moments)
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
            "seconds": {
                name: [histogram.counts, round(histogram.total, 6)] for name, histogram in self.seconds.items()
            },
            "stages": {name: [histogram.counts, round(histogram.total, 6)] for name, histogram in self.stages.items()},
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

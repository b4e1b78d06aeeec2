"""LaneResult.get() waits for the outcome; on timeout it writes a tombstone, which cancels the request."""

from __future__ import annotations

import time
from typing import Any, cast

from celery.result import AsyncResult
from redis.exceptions import RedisError

from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.admission import Lanes, lanes_of
from peerlane.tasks.lane.redis_errors import UNSETTLED, unknown
from peerlane.tasks.lane.subscription import Listening
from peerlane.tasks.wire import outcome
from peerlane.tasks.wire.cancel import LONGEST_DEADLINE, result_of, timed_out

#: Seconds beyond a caller's timeout in which a last attempt to learn the truth begins; it takes a second at most.
GRACE = 0.8
_PAUSE = 0.05


class LaneResult(AsyncResult[dict[str, Any]]):
    """A request's result. Unlike Celery's own, ``get`` never leaves a request behind that may still take effect."""

    #: The request's deadline in ms on Redis' clock, where this process sent it.
    deadline: int = 0
    #: The digest of what was asked for, where this process sent it (peerlane.tasks.wire.wish_digest).
    wish: str = ""

    def get(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride] - Celery's tail is in options
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        *,
        listening: Listening | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Wait for the outcome; at most ``timeout`` plus two seconds. Without a timeout, until the request's deadline.

        ``listening`` was begun before a new request was sent: then there is nothing to do but to wait.

        Raises:
            PeerlaneError: the request's refusal.
            Conflict: its id was used for another request before; nothing was changed.
            TimedOut: cancelled just now; the request can never take effect.
            OutcomeUnknown: Redis could not be reached to find out, or takes no writes; ask again with the same id.
        """
        del options  # how Celery would wait
        lanes, request_id = lanes_of(cast("Any", self.app)), str(self.id)
        until = time.monotonic() + (self._left(lanes) if timeout is None else timeout)
        record = await_record(lanes, request_id, until, listening)
        try:
            if record is not None:
                return outcome.decode(record, self.wish)
            record = settle(lanes, request_id, self.deadline, until=until + GRACE)
            if timeout is None:
                return outcome.decode(record, self.wish)
            # Sending has taken a little of the caller's timeout; the sentence tells what the caller asked for.
            return result_of(record, timed_out(round(timeout, 1) or timeout), self.wish)
        except PeerlaneError as error:
            if propagate or isinstance(error, OutcomeUnknown):
                raise
            return cast("dict[str, Any]", error)

    def _left(self, lanes: Lanes) -> float:
        """Seconds until the deadline has passed for certain; where it is not known, as long as any can be."""
        if not self.deadline:
            return LONGEST_DEADLINE
        try:
            return max(0.0, self.deadline - lanes.clock.now_ms()) / 1000 + 0.5
        except RedisError:
            return 1.0

    def forget(self) -> None:
        """Nothing is kept of it here. The commit record stays: it is what makes a redelivery harmless."""


def await_record(lanes: Lanes, request_id: str, until: float, listening: Listening | None = None) -> str | None:
    """The request's commit record as soon as there is one; None ``until`` then. Outlives restarts of Redis."""
    fresh = listening is not None
    while True:
        try:
            if listening is None:
                if (stored := lanes.stored(request_id)) is not None:
                    return stored
                listening = lanes.listeners.listen(request_id)
            # Between the look and the subscription it may have come.
            if not fresh and (stored := lanes.stored(request_id)) is not None:
                return stored
            return listening.wait(until)
        except (RedisError, OSError):
            if time.monotonic() + _PAUSE >= until:
                return None
            time.sleep(_PAUSE)
        finally:
            if listening is not None:
                listening.close()
        listening, fresh = None, False


def settle(lanes: Lanes, request_id: str, deadline: int, *, until: float) -> str:
    """Make sure that a request has an outcome: its commit record or a tombstone.

    ``until`` is a moment on the monotonic clock; at least one attempt is made.

    Raises:
        OutcomeUnknown: Redis could not be reached, or takes no writes and has no record.
    """
    while True:
        try:
            return lanes.cancel(request_id, deadline=deadline)
        except (RedisError, OSError) as error:
            if time.monotonic() >= until:
                raise unknown(error, UNSETTLED, request_id) from error
        time.sleep(_PAUSE)

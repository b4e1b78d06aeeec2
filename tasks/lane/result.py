"""LaneResult.get() waits for the outcome; on timeout it writes a tombstone, which cancels the request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from celery import result as celery_result
from celery.result import AsyncResult
from redis.exceptions import RedisError

from peerlane.config.celery.app import app as default_app
from peerlane.tasks.admission.lanes import Lanes, lanes_of
from peerlane.tasks.admission.waits import Wait
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError, TimedOut
from peerlane.tasks.redis.errors import UNSETTLED, is_refused, may_not_send, unknown
from peerlane.tasks.redis.list_replies import ListReply
from peerlane.tasks.redis.subscription import Listening
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.cancel import LONGEST_DEADLINE, result_of, timed_out

#: Seconds beyond a caller's timeout in which a last attempt to learn the truth begins; it takes a second at most.
GRACE = 0.8
_PAUSE = 0.05


#: What Celery's group waits with.
_BARRIER = cast("type", cast("Any", celery_result).barrier)


class LaneResult(AsyncResult[dict[str, Any]]):
    """A request's result. Unlike Celery's, ``get`` cancels the request at its timeout."""

    #: The request's deadline in ms on Redis' clock, where this process sent it.
    deadline: int = 0
    #: The digest of what was asked for, where this process sent it (commit_record.wish_digest).
    wish: str = ""
    #: Where its outcome is heard, if it was sent on a kept connection and nothing was asked under its id before.
    reply: ListReply | None = None
    #: Why it was not sent, if it is one of a group; the others are sent all the same.
    refusal: PeerlaneError | None = None

    def get(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride] - Celery's tail is in options
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        **options: Any,
    ) -> dict[str, Any]:
        """Wait for the outcome; at most ``timeout`` plus two seconds. Without a timeout, until the request's deadline.

        Left by any exception (an interrupt, a soft time limit, a greenlet's timeout), it cancels the request.

        Raises:
            PeerlaneError: the request's refusal.
            Conflict: its id was used for another request before; nothing was changed.
            TimedOut: cancelled just now; the request can never take effect.
            OutcomeUnknown: Redis could not be reached to find out, or takes no writes; ask again with the same id.
        """
        if "." not in str(self.id):  # the result of a task that is not a lane's
            return super().get(timeout, propagate, **options)
        callback = options.get("callback")  # the others say how Celery would wait
        if self.refusal is not None:
            if propagate:
                raise self.refusal
            return cast("dict[str, Any]", self.refusal)
        lanes, request_id = lanes_of(cast("Any", self.app)), str(self.id)
        until = time.monotonic() + (self._left(lanes) if timeout is None else timeout)
        wait = lanes.waits.enter(request_id)
        try:
            if (record := self._heard(until)) is not None:
                outcome = commit_record.decode(record, self.wish)
            else:
                about = lanes, request_id, self.deadline, self.wish
                outcome = outcome_by(*about, until=until, within=timeout, wait=wait)
        except PeerlaneError as error:
            if propagate or isinstance(error, OutcomeUnknown):
                raise
            return cast("dict[str, Any]", error)
        except BaseException:
            if wait.leave():
                withdraw(lanes, request_id, self.deadline)
            raise
        finally:
            wait.leave()
        if callback is not None:
            callback(request_id, outcome)
        return outcome

    wait = get  # pyright: ignore[reportAssignmentType] - Celery's other name for it

    def _heard(self, until: float) -> str | None:
        """The record that comes on the connection it was sent on; None: what is stored tells more."""
        if self.reply is not None:
            with suppress(RedisError):
                return self.reply.wait(until)
        return None

    def _left(self, lanes: Lanes) -> float:
        """Seconds until the deadline has certainly passed; the longest possible ones if the deadline is not known."""
        if not self.deadline:
            return LONGEST_DEADLINE
        try:
            return max(0.0, self.deadline - lanes.clock.now_ms()) / 1000 + 0.5
        except RedisError:
            return 1.0

    def cancel(self) -> bool:
        """Cancel the request, unless it has an outcome; whether it can never take effect.

        Raises:
            OutcomeUnknown: Redis could not be reached, or takes no writes.
        """
        record = settle(lanes_of(cast("Any", self.app)), str(self.id), self.deadline, until=time.monotonic() + GRACE)
        try:
            commit_record.decode(record, self.wish)
        except TimedOut:
            return True
        except PeerlaneError:
            return True  # refused: it has no effect either
        return False

    def revoke(  # pyright: ignore[reportIncompatibleMethodOverride] - nothing of it but this means anything
        self, *args: Any, **options: Any
    ) -> None:
        """Celery's name for ``cancel``."""
        if "." not in str(self.id):
            super().revoke(*args, **options)
        else:
            self.cancel()

    def then(self, callback: Any, *args: Any, **options: Any) -> Any:
        """Not supported, because nothing would call back. Raises Invalid.

        Celery's own group hangs its barrier in here; ``LaneGroupResult`` waits without it.
        """
        if isinstance(callback, _BARRIER):
            return callback
        raise Invalid("a request calls nobody back: get() its outcome, or use AsyncGateway")

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: its id and what its request is known by, never a password.

        Raises:
            TypeError: it is of an app with settings of its own, which hold a password.
        """
        if self.app is not default_app:
            raise TypeError("a result of an app of your own is not pickled: keep its id, and use app.AsyncResult(id)")
        return _restored, (str(self.id), self.deadline, self.wish, self.refusal)

    def __copy__(self) -> LaneResult:
        copied = cast("LaneResult", super().__copy__())
        copied.deadline, copied.wish, copied.refusal = self.deadline, self.wish, self.refusal
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> LaneResult:
        return self.__copy__()

    def forget(self) -> None:
        """Does nothing. The commit record stays, because it makes a redelivery harmless."""


def _restored(request_id: str, deadline: int, wish: str, refusal: PeerlaneError | None) -> LaneResult:
    """A result out of a pickle, of the app that is made from the environment."""
    result = LaneResult(request_id, backend=default_app.backend, app=default_app)
    result.deadline, result.wish, result.refusal = deadline, wish, refusal
    return result


def outcome_by(
    lanes: Lanes,
    request_id: str,
    deadline: int,
    wish: str,
    *,
    until: float,
    within: float | None,
    listening: Listening | None = None,
    wait: Wait | None = None,
) -> dict[str, Any]:
    """The outcome of a sent request; if there is none until ``until``, the request is cancelled.

    ``wish`` is the digest of what was asked for; '' where that is not known. ``wait`` is the caller's, where others of
    this process may wait for the same request: then the last of them cancels it.

    Raises:
        PeerlaneError: as ``LaneResult.get``.
    """
    # Where the time is up already, the cancel tells what is stored.
    record = await_record(lanes, request_id, until, listening) if time.monotonic() < until else None
    if record is not None:
        return commit_record.decode(record, wish)
    leave(wait, request_id, within)
    record = settle(lanes, request_id, deadline, until=until + GRACE)
    return commit_record.decode(record, wish) if within is None else decided(record, within, wish)


def decided(record: str, within: float, wish: str) -> dict[str, Any]:
    """The result in the record that decides a request whose time is up.

    Raises:
        PeerlaneError: its refusal; TimedOut where it is cancelled.
    """
    # Sending has taken a little of the caller's timeout; the sentence tells what the caller asked for.
    return result_of(record, timed_out(round(within, 1) or within), wish)


def leave(wait: Wait | None, request_id: str, within: float | None) -> None:
    """Raises OutcomeUnknown where others of this process still wait for the request: it is theirs to cancel."""
    if wait is not None and not wait.leave():
        outcome = "no outcome yet" if within is None else f"no outcome within {round(within, 1) or within:g} s"
        why = "another call in this program waits for the same request; ask again with the same id"
        raise OutcomeUnknown(f"{outcome}; {why}", request_id)


def await_record(lanes: Lanes, request_id: str, until: float, listening: Listening | None = None) -> str | None:
    """Wait for the request's commit record; None if there is none at ``until``. Survives restarts of Redis."""
    while True:
        try:
            if listening is None:
                if (stored := lanes.stored(request_id)) is not None:
                    return stored
                listening = lanes.listeners.listen(request_id)
            # Between the look and the subscription it may have come.
            if (stored := lanes.stored(request_id)) is not None:
                return stored
            return listening.wait(until)
        except (RedisError, OSError):
            if time.monotonic() + _PAUSE >= until:
                return None
            time.sleep(_PAUSE)
        finally:
            if listening is not None:
                listening.close()
        listening = None


def withdraw(lanes: Lanes, request_id: str, deadline: int) -> None:
    """Cancel a request whose caller stops waiting. Tries once, because an interrupted caller has no time."""
    with suppress(RedisError, OSError):
        lanes.cancel(request_id, deadline=deadline)


def withdraw_all(results: Sequence[LaneResult]) -> None:
    """As ``withdraw``, in one round trip, those that no other call of this process waits for."""
    if not results:
        return
    lanes = lanes_of(cast("Any", results[0].app))
    left = [(str(result.id), result.deadline) for result in results if not lanes.waits.is_awaited(str(result.id))]
    with suppress(RedisError, OSError):
        lanes.cancel_many(left)


def settle_unsent(lanes: Lanes, request_id: str, deadline: int, error: BaseException) -> str:
    """Cancel a request after ``error`` at sending, as it may have arrived; returns the record that decides it.

    Raises:
        StorageError: this user may not send; nothing was sent.
        OutcomeUnknown: Redis could not be reached, or takes no writes and has no record.
    """
    # One attempt where Redis stands still: with the push it takes 2 s, whatever the caller's timeout.
    until = time.monotonic() + 0.9
    if not is_refused(error):
        return settle(lanes, request_id, deadline, until=until)
    # A user without the right to send learns that, whatever becomes of the attempt.
    with suppress(OutcomeUnknown):
        settle(lanes, request_id, deadline, until=until)
    raise may_not_send() from error


def settle(lanes: Lanes, request_id: str, deadline: int, *, until: float) -> str:
    """Cancel a request, with retries; returns its commit record or the tombstone.

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

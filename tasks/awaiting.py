"""Waiting for a result: a caller always learns the truth. When its patience ends, the request is cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from config import names
from tasks import results
from tasks.errors import OutcomeUnknown, PeerlaneError, TimedOut
from tasks.lanes import Lanes, lanes_of

#: Seconds beyond a caller's timeout in which the truth is sought before it is called unknown.
GRACE = 1.8


class LaneResult(AsyncResult[dict[str, Any]]):
    """A request's result. Unlike Celery's own, ``get`` never leaves a request behind that may still take effect."""

    #: The request's deadline in ms on Redis' clock, where this process sent it.
    deadline: int = 0

    def get(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride] - Celery's tail is in options
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        **options: Any,
    ) -> dict[str, Any]:
        """Wait for the outcome; at most ``timeout`` plus two seconds.

        Raises:
            PeerlaneError: the request's refusal.
            TimedOut: cancelled just now; the request can never take effect.
            OutcomeUnknown: Redis could not be reached to find out; ask again with the same request id.
        """
        began = time.monotonic()
        try:
            return super().get(timeout=timeout, propagate=propagate, **options)
        except CeleryTimeoutError:
            pass
        except (OperationalError, RedisError, OSError, RuntimeError) as error:
            # RuntimeError: Celery's result consumer after its retries. A refusal is none of these.
            if isinstance(error, PeerlaneError):
                raise
        finally:
            self._stop_listening()
        patience = began + (timeout or 0.0) + GRACE
        lanes = lanes_of(cast("Any", self.app))
        record = settle(lanes, str(self.id), self.deadline, until=max(patience, time.monotonic() + 0.2))
        if record is None:
            raise OutcomeUnknown(
                "Redis could not be reached: whether the request took effect is unknown; ask again with the same id",
                str(self.id),
            )
        try:
            return results.decode(record)
        except PeerlaneError as error:
            if not propagate:
                return cast("dict[str, Any]", error)
            raise _timed_out(error, timeout) from None

    def forget(self) -> None:
        """Stop listening. The commit record stays: it is what makes a redelivery harmless."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        cast("Any", self.backend).remove_pending_result(self)


def _timed_out(error: PeerlaneError, timeout: float | None) -> PeerlaneError:
    if isinstance(error, TimedOut) and timeout is not None:
        return TimedOut(f"no outcome within {timeout:g} s: the request was cancelled and will never take effect")
    return error


def settle(lanes: Lanes, request_id: str, deadline: int, *, until: float) -> str | None:
    """Make sure that a request has an outcome: its commit record or a tombstone; None if Redis cannot be asked.

    ``until`` is a moment on the monotonic clock; at least one attempt is made.
    """
    attempts: tuple[Callable[[], str | None], ...] = (
        lambda: lanes.cancel(request_id, deadline=deadline),
        # Redis takes no writes (full, read-only): what is past its deadline can never commit.
        lambda: _late(lanes, request_id, deadline),
    )
    attempt = 0
    while True:
        try:
            return attempts[attempt]()
        except ResponseError:
            attempt = 1
        except (RedisError, OSError):
            attempt = 0
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def _late(lanes: Lanes, request_id: str, deadline: int) -> str | None:
    pipe = lanes.redis.pipeline(transaction=True)
    pipe.time()
    pipe.get(names.result_key(request_id))
    (seconds, micros), stored = cast("tuple[tuple[int, int], bytes | None]", tuple(pipe.execute()))
    if stored is not None:
        return stored.decode(errors="replace")
    if deadline and seconds * 1000 + micros // 1000 > deadline:
        return results.tombstone(request_id)
    raise ConnectionError("not past its deadline yet")

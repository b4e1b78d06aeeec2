"""Sends the observer's requests to the writer through the bulk queue, a few at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import PeerlaneError, TimedOut
from peerlane.tasks.lane.result import LaneResult, await_record
from peerlane.tasks.lane.tasks import task_of

#: Requests outstanding: enough that the writer never waits for the observer, few for others to wait behind.
WINDOW = 4
#: Seconds in which the writer must have done it; a decision that is older is not carried out.
WITHIN = 30.0


#: Seconds between two looks at whether what is awaited is still wanted.
BREATH = 1.0

#: Called now and then with the progress; returns whether to go on.
GoOn = Callable[[dict[str, Any]], bool]


class WriterRequests:
    """Sends requests to one gateway's writer."""

    def __init__(self, app: PeerlaneApp, gateway: str) -> None:
        """``app`` is a client's."""
        self._app, self._gateway = app, gateway

    def run(
        self, task: str, requests: Iterable[Mapping[str, Any]], go_on: Callable[[], bool] = lambda: True
    ) -> Generator[dict[str, Any]]:
        """Yield each request's result, in order. If the caller stops early, outstanding requests are cancelled.

        ``go_on`` is asked once a second while the writer keeps the caller waiting: the observer lives, though the
        writer may not; and the caller may have stopped waiting.

        Raises:
            PeerlaneError: the first refusal; what is outstanding then is cancelled, or was done.
            TimedOut: the same, because ``go_on`` said no.
        """
        outstanding: deque[tuple[LaneResult, float]] = deque()
        try:
            for request in requests:
                sent = task_of(self._app, task).apply_async(
                    kwargs={"gateway": self._gateway, **request}, expires=WITHIN, add_to_parent=False
                )
                outstanding.append((sent, time.monotonic() + WITHIN))
                if len(outstanding) >= WINDOW:
                    yield self._await(outstanding, go_on)
            while outstanding:
                yield self._await(outstanding, go_on)
        finally:
            for sent, _ in outstanding:
                _give_up(sent)

    def _await(self, outstanding: deque[tuple[LaneResult, float]], go_on: Callable[[], bool]) -> dict[str, Any]:
        sent, until = outstanding[0]
        lanes = lanes_of(self._app)
        while (left := until - time.monotonic()) > 0:
            if await_record(lanes, str(sent.id), time.monotonic() + min(left, BREATH)) is not None:
                break
            with suppress(RedisError):  # being away is waited out, as far as the time goes
                if not go_on():
                    raise TimedOut("nobody waits for it any more")
        outstanding.popleft()
        # The observer's own worker runs this: it waits for another worker, so there is no deadlock to be warned of.
        return sent.get(timeout=max(0.01, until - time.monotonic()), disable_sync_subtasks=False)


def _give_up(sent: LaneResult) -> None:
    # Its answer, cancellation or error is not needed: the next look shows what it has done.
    with suppress(PeerlaneError):
        sent.get(timeout=0.01, disable_sync_subtasks=False)

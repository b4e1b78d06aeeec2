"""What the observer asks of the writer: a few requests at a time through the lane's bulk queue, each one awaited."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from config.celery_app import PeerlaneApp
from tasks.awaiting import LaneResult
from tasks.definitions import task_of
from tasks.errors import PeerlaneError

#: Requests outstanding: the writer never waits for the observer, and whoever joins the bulk queue waits behind few.
WINDOW = 4
#: Seconds in which the writer must have done it; a decision that is older is not carried out.
WITHIN = 30.0


class Errands:
    """One gateway's writer, asked from its observer."""

    def __init__(self, app: PeerlaneApp, gateway: str) -> None:
        """``app`` is a client's."""
        self._app, self._gateway = app, gateway

    def run(self, task: str, requests: Iterable[Mapping[str, Any]]) -> Generator[dict[str, Any]]:
        """Each request's result, in order. Where the caller stops early, those outstanding are cancelled.

        Raises:
            PeerlaneError: the first refusal; what is outstanding then is cancelled, or was done.
        """
        outstanding: deque[tuple[LaneResult, float]] = deque()
        try:
            for request in requests:
                sent = task_of(self._app, task).apply_async(
                    kwargs={"gateway": self._gateway, **request}, expires=WITHIN, add_to_parent=False
                )
                outstanding.append((sent, time.monotonic() + WITHIN))
                if len(outstanding) >= WINDOW:
                    yield _await(outstanding)
            while outstanding:
                yield _await(outstanding)
        finally:
            for sent, _ in outstanding:
                _give_up(sent)


def _await(outstanding: deque[tuple[LaneResult, float]]) -> dict[str, Any]:
    sent, until = outstanding.popleft()
    # The observer's own worker runs this: it waits for another worker, so there is no deadlock to be warned of.
    return sent.get(timeout=max(0.01, until - time.monotonic()), disable_sync_subtasks=False)


def _give_up(sent: LaneResult) -> None:
    # Its answer, cancellation or error is nobody's any more; what it had done, the next look shows.
    with suppress(PeerlaneError):
        sent.get(timeout=0.01, disable_sync_subtasks=False)

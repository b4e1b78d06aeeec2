"""Ends waits at their time, with one timer for all that end at about the same moment.

A program that awaits thousands of requests would otherwise make, sort and cancel a timer for each.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, TypeVar

#: Seconds between two moments at which waits end; a wait ends at most so much later than it has to.
SLICE = 0.02

_T = TypeVar("_T")


class Deadlines:
    """The deadlines of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: By moment, in slices on the loop's clock: what ends then, and the timer.
        self._moments: dict[int, tuple[set[asyncio.Future[Any]], asyncio.TimerHandle]] = {}

    async def by(self, until: float, awaited: asyncio.Future[_T]) -> _T:
        """Wait for a future, whose result is not None. It is done afterwards, whatever happens.

        Raises:
            TimeoutError: it has no result ``until`` then, on the loop's clock.
        """
        number = math.ceil(until / SLICE)
        moment = self._moments.get(number)
        if moment is None:
            timer = self._loop.call_at(number * SLICE, self._end, number)
            moment = self._moments[number] = (set[asyncio.Future[Any]](), timer)
        futures = moment[0]
        futures.add(awaited)
        try:
            result = await awaited
        finally:
            futures.discard(awaited)
        if result is None:
            raise TimeoutError
        return result

    def _end(self, number: int) -> None:
        for awaited in self._moments.pop(number)[0]:
            if not awaited.done():
                awaited.set_result(None)

    def close(self) -> None:
        """Cancel the timers. Nothing may be waiting any more."""
        for _, timer in self._moments.values():
            timer.cancel()
        self._moments.clear()

"""Ends the waits of an asyncio program: each at its time, and all of them when their client is closed."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any, TypeVar, cast

#: Seconds between two moments at which waits end: a wait ends at most that much late.
SLICE = 0.02

_T = TypeVar("_T")


class Deadlines:
    """The timeouts of one event loop: one timer for all that end at about the same moment.

    A program that awaits thousands of requests would otherwise make, sort and cancel a timer for each.
    """

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


class Calls:
    """The calls of a client, each in its caller's own task: a task for each would cost a tenth of a create."""

    def __init__(self) -> None:
        #: For each caller's task: how often ``end`` has cancelled it.
        self._cancels: dict[asyncio.Task[Any], int] = {}
        self._none = asyncio.Event()

    def enter(self) -> asyncio.Task[Any]:
        """Begin a call in the current task, which has to ``leave``."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancels[task] = 0
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """End a call. ``end`` has cancelled the call, not its caller: the caller's task is not left as cancelled."""
        for _ in range(self._cancels.pop(task)):
            task.uncancel()
        if not self._cancels:
            self._none.set()

    async def end(self) -> None:
        """Cancel all calls and wait for their end. A call may need it twice (see ``aio_connections.end``)."""
        while self._cancels:
            self._none.clear()
            for task in self._cancels:
                self._cancels[task] += 1
                task.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._none.wait()

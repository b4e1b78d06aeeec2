"""Waits that end at their time: one timer for all that end together, and none left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import PATIENCE

from peerlane.tasks.client.aio_waits import SLICE, Deadlines


def test_waits_end_at_their_time_and_not_before() -> None:
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        deadlines, began = Deadlines(loop), loop.time()
        waits = {after: loop.create_future() for after in (0.2, 0.05, -1.0, 0.1)}
        ended: list[float] = []

        async def end(after: float) -> None:
            with pytest.raises(TimeoutError):
                await deadlines.by(began + after, waits[after])
            assert loop.time() >= began + after
            ended.append(after)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(end(after) for after in waits))
        assert ended == sorted(waits)
        assert all(waiting.done() for waiting in waits.values())

    asyncio.run(wait())


def test_a_result_in_time_ends_its_wait_alone() -> None:
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        deadlines, until = Deadlines(loop), loop.time() + 10 * SLICE
        answered, cancelled, late = (loop.create_future() for _ in range(3))
        waits = [asyncio.create_task(deadlines.by(until, waiting)) for waiting in (answered, cancelled, late)]
        await asyncio.sleep(0)
        answered.set_result("an answer")
        waits[1].cancel()
        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert ends[0] == "an answer"
        assert [type(end) for end in ends[1:]] == [asyncio.CancelledError, TimeoutError]

    asyncio.run(wait())


def test_a_thousand_waits_of_one_moment_need_one_timer_and_closing_leaves_none() -> None:
    timers: list[asyncio.TimerHandle] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_at(self, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
            timers.append(super().call_at(*arguments, **named))
            return timers[-1]

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        deadlines, until = Deadlines(loop), loop.time() + 3600
        waits = [asyncio.create_task(deadlines.by(until, loop.create_future())) for _ in range(1_000)]
        await asyncio.sleep(0)
        assert len(timers) == 1
        for waiting in waits:
            waiting.cancel()
        await asyncio.wait(waits)
        deadlines.close()
        assert timers[0].cancelled()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(wait())

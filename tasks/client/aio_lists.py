"""Lists for asyncio programs: sends a few slices at a time, and returns their answers in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from peerlane.tasks.client.aio_connections import end
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.slices import WINDOW, PeerAnswer, Slice


async def ask_slices(
    ask: Callable[[Slice], Awaitable[Mapping[str, Any]]], slices: Iterable[Slice], *, window: int = WINDOW
) -> list[PeerAnswer]:
    """The answers to all wishes. ``ask`` sends one slice. If this call is cancelled, outstanding slices are too."""
    found: list[PeerAnswer] = []
    outstanding: deque[asyncio.Task[list[PeerAnswer]]] = deque()

    async def answers(one: Slice) -> list[PeerAnswer]:
        if not one.wishes:
            return one.answers({"answers": []})
        try:
            return one.answers(await ask(one))
        except PeerlaneError as error:
            return one.answers(error)

    async def oldest() -> list[PeerAnswer]:
        # Not awaited itself: a task that does not end by its first cancel would swallow its caller's.
        await asyncio.wait([outstanding[0]])
        return outstanding.popleft().result()

    try:
        for one in slices:
            outstanding.append(asyncio.create_task(answers(one)))
            if len(outstanding) >= window:
                found += await oldest()
        while outstanding:
            found += await oldest()
    finally:
        await end(outstanding)
    return found

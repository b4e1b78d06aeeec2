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
    answers: list[PeerAnswer] = []
    outstanding: deque[asyncio.Task[list[PeerAnswer]]] = deque()

    async def answered(part: Slice) -> list[PeerAnswer]:
        if not part.wishes:
            return part.answers({"answers": []})
        try:
            return part.answers(await ask(part))
        except PeerlaneError as error:
            return part.answers(error)

    async def oldest() -> list[PeerAnswer]:
        # Not awaited itself: a task that does not end by its first cancel would swallow its caller's.
        await asyncio.wait([outstanding[0]])
        return outstanding.popleft().result()

    try:
        for part in slices:
            outstanding.append(asyncio.create_task(answered(part)))
            if len(outstanding) >= window:
                answers += await oldest()
        while outstanding:
            answers += await oldest()
    finally:
        await end(outstanding)
    return answers

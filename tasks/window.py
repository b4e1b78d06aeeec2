"""Many requests at once, a bounded number of them outstanding: sent ahead, answered in the order they were sent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from tasks.awaiting import LaneResult
from tasks.errors import PeerlaneError
from tasks.model import PeerResult

_Wish = TypeVar("_Wish")

#: Seconds left to a request that was answered while others were waited for; its result is here already.
_AT_HAND = 0.01


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Wish]):
    """What one wish came to."""

    wish: _Wish
    #: The result, or why there is none.
    outcome: PeerResult | PeerlaneError
    #: From sending to having the answer in hand.
    seconds: float


def in_window(
    send: Callable[[_Wish], LaneResult], wishes: Iterable[_Wish], *, timeout: float, size: int = 32
) -> Generator[Answer[_Wish]]:
    """Send every wish, at most ``size`` of them outstanding, and yield each one's answer in order.

    ``send`` may raise a PeerlaneError, which is then that wish's answer. Every request has ``timeout`` seconds of
    its own. One thread: the answers arrive while the oldest is waited for. Where the caller stops early, what is
    outstanding is cancelled: nothing takes effect unseen, but for what had committed already.
    """
    outstanding: deque[tuple[_Wish, LaneResult | PeerlaneError, float]] = deque()
    try:
        for wish in wishes:
            began = time.monotonic()
            try:
                outstanding.append((wish, send(wish), began))
            except PeerlaneError as error:
                outstanding.append((wish, error, began))
            if len(outstanding) >= size:
                yield _answer(outstanding, timeout)
        while outstanding:
            yield _answer(outstanding, timeout)
    finally:
        for _, sent, _ in outstanding:
            if isinstance(sent, LaneResult):
                with suppress(PeerlaneError):
                    sent.get(timeout=_AT_HAND)


def _answer(outstanding: deque[tuple[_Wish, LaneResult | PeerlaneError, float]], timeout: float) -> Answer[_Wish]:
    wish, sent, began = outstanding[0]
    outcome: PeerResult | PeerlaneError
    if isinstance(sent, PeerlaneError):
        outcome = sent
    else:
        try:
            left = max(_AT_HAND, began + timeout - time.monotonic())
            outcome = PeerResult.model_validate(sent.get(timeout=left))
        except PeerlaneError as error:
            outcome = error
    outstanding.popleft()
    return Answer(wish, outcome, time.monotonic() - began)

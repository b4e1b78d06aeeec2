"""Sends many requests with a limited number outstanding, and yields their answers in the order of sending."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.result import LaneResult, settle, withdraw_all
from peerlane.tasks.wire.cancel import result_of, timed_out
from peerlane.tasks.wire.model import PeerResult, peer_result

_Wish = TypeVar("_Wish")
_Result = TypeVar("_Result")

#: Seconds in which Redis has to answer with the outcome of a request whose time is up.
_SETTLE = 2.0


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Wish, _Result]):
    """A wish with its result or error."""

    wish: _Wish
    #: The result, or the error.
    outcome: _Result | PeerlaneError
    #: From sending to having the answer in hand.
    seconds: float


def send_pipelined(
    send: Callable[[_Wish], LaneResult], wishes: Iterable[_Wish], *, timeout: float, size: int = 32
) -> Generator[Answer[_Wish, PeerResult]]:
    """``pipelined`` for creates and deletes."""
    return pipelined(send, wishes, peer_result, timeout=timeout, size=size)


def pipelined(
    send: Callable[[_Wish], LaneResult],
    wishes: Iterable[_Wish],
    read: Callable[[dict[str, Any]], _Result],
    *,
    timeout: float,
    size: int,
) -> Generator[Answer[_Wish, _Result]]:
    """Send all wishes, at most ``size`` of them outstanding, and yield the answers in order.

    ``send`` may raise a PeerlaneError, which is then that wish's answer; ``read`` makes the answer of a result. Every
    request has ``timeout`` seconds of its own. One thread: the answers arrive while the oldest is waited for. Where the
    caller stops early, what is outstanding is cancelled: nothing takes effect unseen, but for what had committed.
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
                yield _answer(outstanding, read, timeout)
        while outstanding:
            yield _answer(outstanding, read, timeout)
    finally:
        withdraw_all([sent for _, sent, _ in outstanding if isinstance(sent, LaneResult)])


def _answer(
    outstanding: deque[tuple[_Wish, LaneResult | PeerlaneError, float]],
    read: Callable[[dict[str, Any]], _Result],
    timeout: float,
) -> Answer[_Wish, _Result]:
    wish, sent, began = outstanding[0]
    outcome: _Result | PeerlaneError
    if isinstance(sent, PeerlaneError):
        outcome = sent
    else:
        try:
            left = began + timeout - time.monotonic()
            # Celery waits in steps of a second: those whose time ran out side by side are not waited for in a row.
            answer = sent.get(timeout=left) if left > 0 else _settled(sent, timeout)
            outcome = read(answer)
        except PeerlaneError as error:
            outcome = error
    outstanding.popleft()
    return Answer(wish, outcome, time.monotonic() - began)


def _settled(sent: LaneResult, timeout: float) -> dict[str, Any]:
    """The outcome in Redis; if there is none yet, the request is cancelled."""
    until = time.monotonic() + _SETTLE
    record = settle(lanes_of(cast("Any", sent.app)), str(sent.id), sent.deadline, until=until)
    return result_of(record, timed_out(timeout), sent.wish)

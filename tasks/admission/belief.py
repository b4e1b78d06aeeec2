"""The last look at a lane, which is used for a second or some requests, and the refusals that follow from it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from peerlane.tasks.errors import PeerlaneError, Unavailable

#: Seconds for which an answer about a lane is believed.
BELIEVED_FOR = 1.0
#: Share, and maximum, of the free places in a queue that one process may fill before it reads the queue's length again:
#: other processes fill them too.
BELIEVED_ROOM = 1 / 8
BELIEVED_REQUESTS = 64
#: Requests that may wait whatever the pace of a lane: what a writer takes at once.
ALWAYS_WAIT = 64
#: The part of a caller's time that a request may be expected to wait.
PATIENCE = 0.8


def spread(seconds: float) -> float:
    """The seconds multiplied by a random factor of 1 to 2, so that refused callers do not all return at once."""
    return round(seconds * random.uniform(1.0, 2.0), 2)  # noqa: S311 - no secret


class Lane(Protocol):
    """One look at a lane (peerlane.tasks.admission.lanes.LaneState)."""

    @property
    def gateway(self) -> str: ...
    @property
    def cap(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def waiting_bulk(self) -> int: ...
    def refusal(self, *, waiting: int, create: bool) -> PeerlaneError | None: ...
    def expected_wait(self, waiting: Sequence[int], *, bulk: bool) -> float: ...


_Lane = TypeVar("_Lane", bound=Lane)


class Believed(Generic[_Lane]):
    """One look at a lane, and the requests that this process has sent there since."""

    __slots__ = ("_at", "lane", "passed", "waiting")

    def __init__(self, lane: _Lane, at: float) -> None:
        self.lane, self._at = lane, at
        #: By queue, interactive and bulk: requests waiting, and those let pass since that was told.
        self.waiting = [lane.waiting, lane.waiting_bulk]
        self.passed = [0, 0]

    def pushed(self, length: int, *, bulk: bool) -> None:
        """Take note of a queue's length."""
        self.waiting[bulk] = length
        self.passed[bulk] = 0

    def holds(self, *, bulk: bool) -> bool:
        """Whether the look is recent enough, and has room enough, for another request."""
        return time.monotonic() - self._at <= BELIEVED_FOR and self.passed[bulk] < self.most(bulk=bulk)

    def most(self, *, bulk: bool) -> float:
        """How many requests may pass on this look."""
        return min((self.lane.cap - self.waiting[bulk]) * BELIEVED_ROOM, BELIEVED_REQUESTS)

    def refusal(self, bulk: bool, create: bool, within: float) -> PeerlaneError | None:  # noqa: FBT001 - asked for each request
        """Why a request is refused now; None if it is not."""
        if refusal := self.lane.refusal(waiting=self.waiting[bulk] + self.passed[bulk], create=create):
            return refusal
        ahead = [waiting + passed for waiting, passed in zip(self.waiting, self.passed, strict=True)]
        if not create or not within or ahead[bulk] <= ALWAYS_WAIT:
            return None
        wait = self.lane.expected_wait(ahead, bulk=bulk)
        if wait <= within * PATIENCE:
            return None
        told = f"{ahead[bulk]} requests wait at {self.lane.gateway}, about {wait:.1f} s"
        return Unavailable(f"{told}: too long for one that waits {within:g} s", spread(wait - within * PATIENCE))

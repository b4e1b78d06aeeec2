"""One look at a lane, used for a second or some requests, and the refusals that follow from it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from peerlane.tasks.errors import Draining, PeerlaneError, Unavailable

#: Milliseconds without a heartbeat after which a writer counts as gone; it beats every second.
LIVE_FOR_MS = 5_000
#: Requests that may wait where a gateway does not say how many.
DEFAULT_CAP = 20_000

_NUMBER = re.compile(r"[0-9]{1,18}")
_PACE = re.compile(r"[0-9]{1,9}\.[0-9]")
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


def number(text: str, otherwise: int = 0) -> int:
    """A stored number; ``otherwise`` if the text is none."""
    return int(text) if _NUMBER.fullmatch(text) else otherwise


def unknown_gateway(name: str) -> Unavailable:
    """The refusal for a gateway that has never registered."""
    return Unavailable(f"no gateway {name} is registered; `peerlane gateway list` shows those that are")


def spread(seconds: float) -> float:
    """The seconds multiplied by a random factor of 1 to 2, so that refused callers do not all return at once."""
    return round(seconds * random.uniform(1.0, 2.0), 2)  # noqa: S311 - no secret


@dataclass(frozen=True, slots=True)
class LaneState:
    """One look at a lane. ``facts`` is the gateway's own hash; empty for a gateway nobody registered."""

    gateway: str
    facts: Mapping[str, str]
    #: Milliseconds since the writer's last sign of life; None if it never gave one, or ended in good order.
    silent_for: int | None
    #: Requests waiting: interactive, bulk.
    waiting: int
    waiting_bulk: int

    @classmethod
    def of(cls, gateway: str, raw: Mapping[bytes, bytes], waiting: int, waiting_bulk: int, *, now: int) -> LaneState:
        """From the gateway's hash and the lengths of its queues; ``now`` is in ms on Redis' clock."""
        facts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()}
        beat = number(facts.get("heartbeat", ""))  # a writer that ends in good order leaves 0
        return cls(gateway, facts, max(0, now - beat) if beat else None, waiting, waiting_bulk)

    @property
    def live(self) -> bool:
        """Whether a writer serves the lane now."""
        return self.silent_for is not None and self.silent_for < LIVE_FOR_MS

    @property
    def idle_for(self) -> float | None:
        """Seconds for which the writer had served nothing at its last heartbeat; None if it does not say."""
        text = self.facts.get("idle_ms", "")
        return number(text) / 1000 if text else None

    @property
    def stuck(self) -> bool:
        """Whether its writer has a heartbeat but has served nothing for longer than any step takes."""
        return self.live and number(self.facts.get("idle_ms", "")) > number(self.facts.get("idle_may_ms", ""), 5_000)

    @property
    def stopped(self) -> bool:
        """Whether its writer was stopped properly, and none has started since."""
        return not self.live and self.facts.get("phase") == "stopped"

    @property
    def state(self) -> str:
        """``active``, ``draining``, ``recovering``, ``stuck`` or ``down``, for people and programs."""
        if not self.live:
            return "down"
        if self.stuck:
            return "stuck"
        if self.facts.get("phase", "serving") != "serving":
            return "recovering"
        return self.facts.get("state", "active")

    @property
    def cap(self) -> int:
        """How many requests may wait in each queue of the lane."""
        return number(self.facts.get("lane_cap", ""), DEFAULT_CAP)

    def pace(self, *, bulk: bool) -> float:
        """Requests a second that the writer takes from a queue while it is busy; 0 if it does not say."""
        text = self.facts.get("pace_bulk" if bulk else "pace", "")
        return float(text) if _PACE.fullmatch(text) else 0.0

    def most_waiting(self, *, create: bool) -> int:
        """From how many waiting requests on a queue is full. What makes room has room left where creates filled it."""
        return self.cap if create else self.cap + max(1, self.cap // 8)

    def refusal(self, *, waiting: int, create: bool) -> PeerlaneError | None:
        """Why a request is refused before it is sent; None if it is not. ``waiting`` is the length of its queue."""
        if not self.facts:
            return unknown_gateway(self.gateway)
        if not self.live:
            return Unavailable(f"the gateway {self.gateway} has no live writer; start it or use another", 5.0)
        if self.stuck:
            why = f"gives signs of life, and has served nothing for {self.idle_for or 0:.0f} s"
            return Unavailable(f"the writer of {self.gateway} is stuck: it {why}; use another gateway", 5.0)
        if self.state == "recovering":
            return Unavailable(f"the gateway {self.gateway} is bringing its peers back; ask again", 2.0)
        if waiting >= self.most_waiting(create=create):
            return Unavailable(f"the lane of {self.gateway} is full: {waiting} requests wait", spread(5.0))
        if create and self.state == "draining":
            return Draining(f"the gateway {self.gateway} is being drained and takes no new peers; use another gateway")
        return None


class Believed:
    """One look at a lane, and the requests that this process has sent there since."""

    __slots__ = ("_at", "_cap", "_full", "_paces", "_refused", "lane", "passed", "waiting")

    def __init__(self, lane: LaneState, at: float) -> None:
        self.lane, self._at = lane, at
        # Read once: these are the same for all requests of a look. Pairs by ``create``, and the paces by ``bulk``.
        self._cap = lane.cap
        self._refused = [lane.refusal(waiting=0, create=create) is not None for create in (False, True)]
        self._full = [lane.most_waiting(create=create) for create in (False, True)]
        self._paces = [lane.pace(bulk=bulk) for bulk in (False, True)]
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
        return min((self._cap - self.waiting[bulk]) * BELIEVED_ROOM, BELIEVED_REQUESTS)

    def refusal(self, bulk: bool, create: bool, within: float) -> PeerlaneError | None:  # noqa: FBT001 - asked for each request
        """Why a request is refused now; None if it is not."""
        ahead = self.waiting[bulk] + self.passed[bulk]
        if self._refused[create] or ahead >= self._full[create]:
            return self.lane.refusal(waiting=ahead, create=create)
        if not create or not within or ahead <= ALWAYS_WAIT:
            return None
        wait = self._expected_wait(bulk=bulk)
        if wait <= within * PATIENCE:
            return None
        why = f"{ahead} requests wait at {self.lane.gateway}, about {wait:.1f} s"
        return Unavailable(f"{why}: too long for one that waits {within:g} s", spread(wait - within * PATIENCE))

    def _expected_wait(self, *, bulk: bool) -> float:
        """Seconds until a request sent now is carried out."""
        queues = (False, True) if bulk else (False,)
        return sum((self.waiting[at] + self.passed[at]) / pace for at in queues if (pace := self._paces[at]))

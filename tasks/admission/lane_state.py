"""One look at a lane, and the refusals that follow from it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from peerlane.tasks.errors import Draining, PeerlaneError, Unavailable

#: Milliseconds without a heartbeat after which a writer counts as gone; it beats every second.
LIVE_FOR_MS = 5_000
#: Requests that may wait where a gateway does not say how many.
DEFAULT_CAP = 20_000

_NUMBER = re.compile(r"[0-9]{1,18}")
_PACE = re.compile(r"[0-9]{1,9}\.[0-9]")


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
    """One look at a lane. ``facts`` is the gateway's own hash; empty for a gateway that has not registered."""

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
        """How many waiting requests make a queue full. Deletes have a higher limit than creates."""
        return self.cap if create else self.cap + max(1, self.cap // 8)

    def refusal(self, *, waiting: int, create: bool) -> PeerlaneError | None:
        """Why a request is refused before it is sent; None if it is not. ``waiting`` is the length of its queue."""
        if not self.facts:
            return unknown_gateway(self.gateway)
        if not self.live:
            return Unavailable(f"the gateway {self.gateway} has no live writer; start it or use another", spread(5.0))
        if self.stuck:
            why = f"gives signs of life, and has served nothing for {self.idle_for or 0:.0f} s"
            return Unavailable(f"the writer of {self.gateway} is stuck: it {why}; use another gateway", spread(5.0))
        if self.state == "recovering":
            return Unavailable(f"the gateway {self.gateway} is bringing its peers back; ask again", spread(2.0))
        if waiting >= self.most_waiting(create=create):
            return Unavailable(f"the lane of {self.gateway} is full: {waiting} requests wait", spread(5.0))
        if create and self.state == "draining":
            return Draining(f"the gateway {self.gateway} is being drained and takes no new peers; use another gateway")
        return None

"""Reads a lane's state, admits or refuses requests by it, and cancels requests."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.tasks.admission.belief import Believed, spread
from peerlane.tasks.errors import Draining, PeerlaneError, Unavailable
from peerlane.tasks.redis.server_clock import ServerClock, milliseconds
from peerlane.tasks.redis.subscription import Listeners
from peerlane.tasks.wire.cancel import Cancel

#: Milliseconds without a heartbeat after which a writer counts as gone; it beats every second.
LIVE_FOR_MS = 5_000
#: Requests that may wait where a gateway does not say how many.
DEFAULT_CAP = 20_000

_NUMBER = re.compile(r"[0-9]{1,18}")
_PACE = re.compile(r"[0-9]{1,9}\.[0-9]")


def number(told: str, otherwise: int = 0) -> int:
    """A stored number; ``otherwise`` if the text is none."""
    return int(told) if _NUMBER.fullmatch(told) else otherwise


def unknown_gateway(name: str) -> Unavailable:
    """The refusal for a gateway that has never registered."""
    return Unavailable(f"no gateway {name} is registered; `peerlane gateway list` shows those that are")


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
        told = self.facts.get("idle_ms", "")
        return number(told) / 1000 if told else None

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
        told = self.facts.get("pace_bulk" if bulk else "pace", "")
        return float(told) if _PACE.fullmatch(told) else 0.0

    def expected_wait(self, waiting: Sequence[int], *, bulk: bool) -> float:
        """Seconds until a request sent now is carried out. ``waiting``: requests before it, interactive and bulk."""
        queues = (False, True) if bulk else (False,)
        return sum(waiting[queue] / pace for queue in queues if (pace := self.pace(bulk=queue)))

    def refusal(self, *, waiting: int, create: bool) -> PeerlaneError | None:
        """Why a request is refused before it is sent; None if it is not. ``waiting`` is the length of its queue."""
        if not self.facts:
            return unknown_gateway(self.gateway)
        if not self.live:
            return Unavailable(f"the gateway {self.gateway} has no live writer; start it or use another", 5.0)
        if self.stuck:
            told = f"gives signs of life, and has served nothing for {self.idle_for or 0:.0f} s"
            return Unavailable(f"the writer of {self.gateway} is stuck: it {told}; use another gateway", 5.0)
        if self.state == "recovering":
            return Unavailable(f"the gateway {self.gateway} is bringing its peers back; ask again", 2.0)
        # What makes room has room left where creates have filled the lane.
        if waiting >= (self.cap if create else self.cap + max(1, self.cap // 8)):
            return Unavailable(f"the lane of {self.gateway} is full: {waiting} requests wait", spread(5.0))
        if create and self.state == "draining":
            return Draining(f"the gateway {self.gateway} is being drained and takes no new peers; use another gateway")
        return None


class Lanes:
    """One caller's view of all lanes, on a connection pool of its own. Raises redis.RedisError as it comes."""

    def __init__(self, redis: Redis, *, result_ttl: int) -> None:
        self.redis = redis
        self.listeners = Listeners(redis)
        self.clock = ServerClock(cast("Callable[[], tuple[int, int]]", redis.time))
        self._result_ttl = result_ttl
        self._believed: dict[str, Believed[LaneState]] = {}

    def look(self, gateway: str) -> LaneState:
        """Look at a lane now."""
        pipe = self.redis.pipeline(transaction=False)
        self.ask_of(gateway, pipe)
        return self.answered(gateway, pipe.execute())

    @staticmethod
    def ask_of(gateway: str, pipe: Any) -> None:
        """Add the commands of a look to a pipeline; ``answered`` reads their answers."""
        pipe.hgetall(names.gateway_key(gateway))
        pipe.time()
        pipe.llen(names.lane_queue(gateway))
        pipe.llen(names.bulk_queue(gateway))

    def answered(self, gateway: str, answers: Sequence[Any]) -> LaneState:
        """The lane, from the answers to ``ask_of``."""
        raw, time_reply, waiting, bulk = cast("tuple[dict[bytes, bytes], tuple[int, int], int, int]", tuple(answers))
        now = milliseconds(time_reply)
        self.clock.heard(now)
        lane = LaneState.of(gateway, raw, waiting, bulk, now=now)
        self.believe(lane)
        return lane

    def believe(self, lane: LaneState) -> None:
        """Keep a look for the next second (``check``)."""
        self._believed[lane.gateway] = Believed(lane, time.monotonic())

    def pushed(self, gateway: str, length: int, *, bulk: bool) -> None:
        """Take note of a queue's length, which a push has returned."""
        if (believed := self._believed.get(gateway)) is not None:
            believed.pushed(length, bulk=bulk)

    def believed(self, gateway: str, *, bulk: bool, create: bool, within: float) -> LaneState | None:
        """The lane, if the last look lets the request pass; the request is counted. None: look at the lane first."""
        believed = self._believed.get(gateway)
        if believed is None or not believed.holds(bulk=bulk) or believed.refusal(bulk, create, within):
            return None
        believed.passed[bulk] += 1
        return believed.lane

    def may_pass(self, gateway: str, *, bulk: bool) -> float:
        """How many requests may pass on the last look; infinite if it has no room, because they are then refused."""
        most = self._believed[gateway].most(bulk=bulk)
        return most if most >= 1 else math.inf

    def check(self, gateway: str, *, bulk: bool = False, create: bool = True, within: float = 0.0) -> LaneState:
        """Refuse a request that would wait in vain. A look is used for a second, and for a part of its room.

        ``within``: the seconds that the caller waits; 0 where that is not known.

        Raises:
            Unavailable: unknown gateway, no live writer, a stuck one, a full lane, or a wait that is too long.
            Draining: a create for a gateway that is being emptied.
        """
        if (lane := self.believed(gateway, bulk=bulk, create=create, within=within)) is not None:
            return lane
        self.look(gateway)
        return self.admit(gateway, bulk=bulk, create=create, within=within)

    def admit(self, gateway: str, *, bulk: bool, create: bool, within: float) -> LaneState:
        """As ``check``, by the last look."""
        believed = self._believed[gateway]
        if refusal := believed.refusal(bulk, create, within):
            raise refusal
        believed.passed[bulk] += 1
        return believed.lane

    def stored(self, request_id: str) -> str | None:
        """The request's commit record, if there is one."""
        found = cast("bytes | None", self.redis.get(names.result_key(request_id)))
        return None if found is None else found.decode(errors="replace")

    def cancel(self, request_id: str, *, deadline: int = 0) -> str:
        """Cancel a request, unless it has an outcome; returns the record that decides it (peerlane.tasks.wire.cancel).

        ``deadline`` is the request's, in ms; 0 where it is not known.

        Raises:
            redis.ResponseError: Redis stores no tombstone, and has no record of the request.
        """
        cancel = self._cancel(request_id, deadline)
        try:
            before = cast(
                "bytes | None", self.redis.set(cancel.key, cancel.tombstone, nx=True, get=True, ex=cancel.life)
            )
        except ResponseError:
            record = cancel.decide(cast("bytes | None", self.redis.get(cancel.key)), written=False)
            if record is None:
                raise
            return record
        if before is None:
            with suppress(RedisError):
                for channel in names.result_channels(cancel.key):
                    self.redis.publish(channel, cancel.tombstone)
        return cast("str", cancel.decide(before, written=True))

    def cancel_many(self, requests: Sequence[tuple[str, int]]) -> None:
        """Cancel requests, each with its deadline, in one round trip; their outcomes are not returned."""
        cancels = [self._cancel(request_id, deadline) for request_id, deadline in requests]
        pipe = self.redis.pipeline(transaction=False)
        for cancel in cancels:
            pipe.set(cancel.key, cancel.tombstone, nx=True, get=True, ex=cancel.life)
        for cancel, before in zip(cancels, pipe.execute(raise_on_error=False), strict=True):
            if before is None:
                for channel in names.result_channels(cancel.key):
                    pipe.publish(channel, cancel.tombstone)
        pipe.execute(raise_on_error=False)

    def _cancel(self, request_id: str, deadline: int) -> Cancel:
        left = (deadline - self.clock.now_ms()) / 1000 if deadline else None
        return Cancel.of(request_id, result_ttl=self._result_ttl, seconds_left=left)


_lanes: WeakKeyDictionary[PeerlaneApp, Lanes] = WeakKeyDictionary()


def lanes_of(app: PeerlaneApp) -> Lanes:
    """The app's Lanes, made at the first call."""
    found = _lanes.get(app)
    if found is None:
        found = Lanes(connect(app.settings, timeout=1.0), result_ttl=app.settings.result_ttl)
        _lanes[app] = found
    return found


def close_app(app: PeerlaneApp) -> None:
    """Close every connection that an app has opened."""
    backend = cast("Any", app.backend)
    backend.result_consumer.stop()
    backend.client.close()
    lanes = lanes_of(app)
    lanes.listeners.close()
    lanes.redis.close()
    app.close()

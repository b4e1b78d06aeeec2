"""Reads a lane's state, admits or refuses requests by it for a second, and cancels requests."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.tasks.admission.lane_state import LaneState, spread, unknown_gateway
from peerlane.tasks.admission.waits import Waits
from peerlane.tasks.errors import PeerlaneError, Unavailable
from peerlane.tasks.redis.server_clock import ServerClock, milliseconds
from peerlane.tasks.redis.subscription import Listeners, Listening
from peerlane.tasks.wire.cancel import Cancel

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


class Admitted(NamedTuple):
    """A request may be sent: its lane, and when that was decided."""

    lane: LaneState
    #: In ms on Redis' clock.
    at: int


class Believed:
    """One look at a lane, and the requests that this process has sent there since."""

    __slots__ = ("_at", "_cap", "_full", "_lead", "_paces", "_refused", "lane", "passed", "waiting")

    def __init__(self, lane: LaneState, lead: float) -> None:
        """``lead`` is that of Redis' clock over this host's monotonic one, in ms."""
        self.lane, self._lead = lane, lead
        self._at = time.monotonic()
        # Read once: these are the same for all requests of a look. Pairs by ``create``, and the paces by ``bulk``.
        self._cap = lane.cap
        self._refused = [lane.refusal(waiting=0, create=create) is not None for create in (False, True)]
        self._full = [lane.most_waiting(create=create) for create in (False, True)]
        self._paces = [lane.pace(bulk=bulk) for bulk in (False, True)]
        #: By queue, interactive and bulk: requests waiting, and those let pass since that was read.
        self.waiting = [lane.waiting, lane.waiting_bulk]
        self.passed = [0, 0]

    def pushed(self, length: int, *, bulk: bool) -> None:
        """Take note of a queue's length."""
        self.waiting[bulk] = length
        self.passed[bulk] = 0

    def holds(self, *, bulk: bool) -> bool:
        """Whether the look is recent enough, and has room enough, for another request."""
        return time.monotonic() - self._at <= BELIEVED_FOR and self.passed[bulk] < self.most(bulk=bulk)

    def admit(self, *, bulk: bool) -> Admitted:
        """Count a request that passes."""
        self.passed[bulk] += 1
        return Admitted(self.lane, int(time.monotonic() * 1000 + self._lead))

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


class Lanes:
    """One caller's view of all lanes, on a connection pool of its own. Raises redis.RedisError as it comes."""

    def __init__(self, redis: Redis, *, result_ttl: int) -> None:
        self.redis = redis
        self.listeners = Listeners(redis)
        self.waits = Waits()
        self.clock = ServerClock(cast("Callable[[], tuple[int, int]]", redis.time))
        self._result_ttl = result_ttl
        self._believed: dict[str, Believed] = {}

    def look(self, gateway: str) -> LaneState:
        """Look at a lane now."""
        pipe = self.redis.pipeline(transaction=False)
        self.ask_of(gateway, pipe)
        asked = time.monotonic()
        return self.answered(gateway, pipe.execute(), asked)

    @staticmethod
    def ask_of(gateway: str, pipe: Any) -> None:
        """Add the commands of a look to a pipeline; ``answered`` reads their answers."""
        pipe.hgetall(names.gateway_key(gateway))
        pipe.time()
        pipe.llen(names.lane_queue(gateway))
        pipe.llen(names.bulk_queue(gateway))

    def answered(self, gateway: str, answers: Sequence[Any], asked: float) -> LaneState:
        """The lane, from the answers to ``ask_of``; ``asked`` is when they were asked for, on the monotonic clock."""
        raw, time_reply, waiting, bulk = cast("tuple[dict[bytes, bytes], tuple[int, int], int, int]", tuple(answers))
        now = milliseconds(time_reply)
        lane = LaneState.of(gateway, raw, waiting, bulk, now=now)
        self._believed[gateway] = Believed(lane, self.clock.heard(now, asked))
        return lane

    def believe(self, lane: LaneState) -> None:
        """Use a look that was made otherwise, for a second (``check``)."""
        self._believed[lane.gateway] = Believed(lane, self.clock.lead())

    def pushed(self, gateway: str, length: int, *, bulk: bool) -> None:
        """Take note of a queue's length, which a push has returned."""
        if (believed := self._believed.get(gateway)) is not None:
            believed.pushed(length, bulk=bulk)

    def believed(self, gateway: str, *, bulk: bool, create: bool, within: float) -> Admitted | None:
        """Admit the request, if the last look lets it pass. None: look at the lane first."""
        believed = self._believed.get(gateway)
        if believed is None or not believed.holds(bulk=bulk) or believed.refusal(bulk, create, within):
            return None
        return believed.admit(bulk=bulk)

    def may_pass(self, gateway: str, *, bulk: bool) -> float:
        """How many requests may pass on the last look; infinite if it has no room, because they are then refused."""
        believed = self._believed.get(gateway)
        most = believed.most(bulk=bulk) if believed is not None else 0
        return most if most >= 1 else math.inf

    def check(self, gateway: str, *, bulk: bool = False, create: bool = True, within: float = 0.0) -> Admitted:
        """Refuse a request that would wait in vain. A look is used for a second, and for a part of its room.

        ``within``: the seconds that the caller waits; 0 where that is not known.

        Raises:
            Unavailable: unknown gateway, no live writer, a stuck one, a full lane, or a wait that is too long.
            Draining: a create for a gateway that is being emptied.
        """
        if (admitted := self.believed(gateway, bulk=bulk, create=create, within=within)) is not None:
            return admitted
        self.look(gateway)
        return self.admit(gateway, bulk=bulk, create=create, within=within)

    def admit(self, gateway: str, *, bulk: bool, create: bool, within: float) -> Admitted:
        """As ``check``, by the last look."""
        believed = self._believed.get(gateway)
        if believed is None or not believed.lane.facts:
            self._believed.pop(gateway, None)  # the names are the caller's to choose: there is no end of them
            raise unknown_gateway(gateway)
        if refusal := believed.refusal(bulk, create, within):
            raise refusal
        return believed.admit(bulk=bulk)

    def stored(self, request_id: str) -> str | None:
        """The request's commit record, if there is one."""
        record = cast("bytes | None", self.redis.get(names.result_key(request_id)))
        return None if record is None else record.decode(errors="replace")

    def cancel(self, request_id: str, *, deadline: int = 0, by: Listening | None = None) -> str:
        """Cancel a request, unless it has an outcome; returns the record that decides it (peerlane.tasks.wire.cancel).

        ``deadline`` is the request's, in ms; 0 where it is not known. ``by`` is a connection to use.

        Raises:
            redis.ResponseError: Redis stores no tombstone, and has no record of the request.
        """
        cancel = self._cancel(request_id, deadline)
        try:
            if by is None:
                before = self.redis.set(cancel.key, cancel.tombstone, nx=True, get=True, ex=cancel.life)
            else:
                before = by.command("SET", cancel.key, cancel.tombstone, "NX", "GET", "EX", cancel.life)
        except ResponseError:
            record = cancel.decide(cast("bytes | None", self.redis.get(cancel.key)), written=False)
            if record is None:
                raise
            return record
        if before is None:
            with suppress(RedisError):
                for channel in names.result_channels(cancel.key):
                    if by is None:
                        self.redis.publish(channel, cancel.tombstone)
                    else:
                        by.command("PUBLISH", channel, cancel.tombstone)
        return cast("str", cancel.decide(cast("bytes | None", before), written=True))

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
#: Threads that ask at once get the same: who waits for a request is known to all of them.
_making = threading.Lock()


def lanes_of(app: PeerlaneApp) -> Lanes:
    """The app's Lanes, made at the first call."""
    lanes = _lanes.get(app)
    if lanes is None:
        with _making:
            lanes = _lanes.get(app)
            if lanes is None:
                lanes = _lanes[app] = Lanes(connect(app.settings, timeout=1.0), result_ttl=app.settings.result_ttl)
    return lanes


def close_app(app: PeerlaneApp) -> None:
    """Close every connection that an app has opened."""
    backend = cast("Any", app.backend)
    backend.result_consumer.stop()
    backend.client.close()
    lanes = lanes_of(app)
    lanes.listeners.close()
    lanes.redis.close()
    app.close()

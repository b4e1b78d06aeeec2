"""Reads the fleet every few seconds for Flower's pages, and keeps the last state while Redis is away."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.redis.errors import reading
from peerlane.tasks.status.fleet_snapshot import FleetReader
from peerlane.tasks.status.inspection import ANSWERS, nodes_of
from peerlane.tasks.status.rates import FleetRates, Row

log = logging.getLogger(__name__)

#: Seconds between two looks.
EVERY = 2.0
#: Age in seconds from which on the last look is too old for Flower to be healthy: two looks that wait for Redis.
STALE = 10.0


@dataclass(frozen=True, slots=True)
class Look:
    """The fleet at one moment; the most urgent gateways first."""

    #: Redis' clock, in seconds.
    at: float
    rows: tuple[Row, ...]
    beat_silent_for: float | None
    #: Name of a worker → Celery's command → its answer, for dead ones too.
    workers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    #: Queue → how many live writers or observers consume it.
    consumers: Counter[str] = field(default_factory=Counter[str])


class FleetView:
    """The last successful look, and the error since. ``look`` blocks: call it in a thread."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reader = FleetReader(redis)
        self._rates = FleetRates()
        self._looked = 0.0
        #: None before the first.
        self.last: Look | None = None
        self._trouble = "nothing has been read from Redis yet"
        self._away = False

    def look(self) -> bool:
        """Read now; returns whether that succeeded. Logs the begin and the end of an outage."""
        try:
            snapshot = self._reader.read()
        except PeerlaneError as error:
            self._trouble = error.message
            if not self._away:
                log.error("the fleet cannot be read: %s", error.message)
            self._away = True
            return False
        nodes = nodes_of(snapshot)
        workers = {node.name: {command: node.answer(command) for command in ANSWERS} for node in nodes}
        consumers = Counter(queue for node in nodes if node.live for queue in node.queues)
        rows = tuple(self._rates.rows(snapshot))
        self.last = Look(snapshot.at, rows, snapshot.beat_silent_for, workers, consumers)
        if self._away:
            log.warning("the fleet can be read again")
        self._trouble, self._away, self._looked = "", False, time.monotonic()
        return True

    def lengths(self, queues: Sequence[str]) -> dict[str, int]:
        """The length of each queue now. Blocks, as ``look`` does.

        Raises:
            OutcomeUnknown: Redis could not be reached.
            StorageError: Redis refuses to show a queue to this user.
        """
        with reading():
            pipe = self._redis.pipeline(transaction=False)
            for queue in queues:
                pipe.llen(queue)
            return dict(zip(queues, pipe.execute(), strict=True))

    def consumers(self) -> Counter[str]:
        """Queue → how many live processes consumed it at the last look."""
        return Counter() if self.last is None else self.last.consumers

    @property
    def trouble(self) -> str:
        """Why what is shown may be old: the last attempt failed, or none has ended for some time; else empty."""
        if self._trouble or self.age < STALE:
            return self._trouble
        return f"nothing has been read from Redis for {self.age:.0f} s"

    @property
    def age(self) -> float:
        """Seconds since the last look that succeeded."""
        return time.monotonic() - self._looked

    @property
    def healthy(self) -> bool:
        """Whether Redis has answered the last look, a moment ago."""
        return not self.trouble

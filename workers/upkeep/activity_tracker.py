"""Tracks each peer's activity: reads the device's counters and stores activity in memory and in Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import KernelError
from peerlane.tasks.redis.hash_pages import hash_pages
from peerlane.workers.dataplane.counters import CounterSource
from peerlane.workers.store.activity import advance, decode, encode
from peerlane.workers.upkeep.lean_mappings import Activities, Keys
from peerlane.workers.upkeep.sweep_policy import Sight

log = logging.getLogger(__name__)

#: Entries written, dropped or loaded per round trip: Redis is busy with one for well under a millisecond.
SLICE = 500
#: Seconds for which the activity of a peer that is gone is kept: one that comes back keeps its totals.
FORGET_AFTER = 3600.0


class ActivityTracker:
    """The activity of all peers. Belongs to the observer's thread."""

    def __init__(self, redis: Redis, gateway: str, source: CounterSource, index: Callable[[], int]) -> None:
        """``index`` returns the device's number, which changes when the device is created again."""
        self._redis, self._key = redis, names.seen_key(gateway)
        self._gateway = gateway
        self._source, self._index = source, index
        self._device = 0
        #: Since when this device has been watched.
        self._since = 0
        self._unwritten: set[str] = set()
        self._gone: dict[str, float] = {}
        self.seen = Activities()
        #: The last reading, or None where there was none or it failed.
        self.sight: Sight | None = None
        #: Why the last reading failed.
        self.trouble: str | None = None
        #: When the last reading began, on the monotonic clock, and how long it took.
        self.read_at = float("-inf")
        self.took = 0.0
        #: Bytes received from peers and sent to them since this process began to watch.
        self._moved = (0, 0)
        #: When ``reading`` told last, on the monotonic clock, and what had moved by then; None before the first time.
        self._told: tuple[float, tuple[int, int]] | None = None

    def load(self) -> None:
        """Load the stored activity. Raises redis.RedisError."""
        unreadable = 0
        for page in hash_pages(self._redis, self._key, count=SLICE):
            for name, stored in page:
                if (found := decode(stored)) is None:
                    unreadable += 1
                else:
                    self.seen[name.decode(errors="replace")] = found
        if unreadable:
            log.warning("gateway %s: %d entries of activity are not readable and begin anew", self._gateway, unreadable)

    def recall(self, newcomers: Collection[str]) -> None:
        """Load the stored activity of new peers, because a restore brings peers with their activity.

        Raises redis.RedisError.
        """
        for keys in _slices([key for key in newcomers if key not in self.seen]):
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.hget(self._key, key)
            for key, stored in zip(keys, cast("list[bytes | None]", pipe.execute()), strict=True):
                if stored is not None and (found := decode(stored)) is not None:
                    self.seen[key] = found

    def read(self, now: int) -> None:
        """Read all counters; ``now`` is in seconds on Redis' clock. An error is in ``trouble`` afterwards."""
        self.read_at = time.monotonic()
        device = self._index()
        if device != self._device:
            self._since = now  # counters of a new device begin at 0: they tell nothing yet
        self._device, self._since = device, min(self._since, now)
        shown = Keys()
        try:
            for batch in self._source.counters():
                for raw in batch:
                    shown.add(raw.public_key)
                    before = self.seen.get(raw.public_key)
                    after = advance(before, raw, now)
                    if after is not before and after is not None:
                        rx, tx = (before.rx, before.tx) if before is not None else (0, 0)
                        self._moved = (self._moved[0] + after.rx - rx, self._moved[1] + after.tx - tx)
                        self.seen[raw.public_key] = after
                        self._unwritten.add(raw.public_key)
        except KernelError as error:
            self.sight, self.trouble = None, error.message
            return
        finally:
            self.took = time.monotonic() - self.read_at
        self.trouble = None
        self.sight = Sight(shown, self._source.complete, self._since)

    def reading(self, now: int) -> dict[str, Any]:
        """The last reading for the heartbeat, with the bytes a second since the previous one."""
        shown = len(self.sight.shown) if self.sight is not None else 0
        found: dict[str, Any] = {"at": now, "peers": shown, "seconds": round(self.took, 3), "trouble": self.trouble}
        if self.trouble is None:
            before, self._told = self._told, (self.read_at, self._moved)
            if before is not None and (seconds := self.read_at - before[0]) > 0:
                rx, tx = (round((n - m) / seconds) for n, m in zip(self._moved, before[1], strict=True))
                found |= {"rx_per_second": rx, "tx_per_second": tx}
        return found

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes received from peers and sent to them since this process began to watch."""
        return self._moved

    def complete_with(self, peers: Collection[str]) -> None:
        """Count an interrupted reading as complete if it shows all of ``peers``."""
        if self.sight is not None and not self.sight.complete and all(key in self.sight.shown for key in peers):
            self.sight = replace(self.sight, complete=True)

    def write(self) -> None:
        """Write the changes to Redis. Raises redis.RedisError; the next call then writes the rest."""
        for keys in _slices(list(self._unwritten)):
            fields = {key: encode(self.seen[key]) for key in keys if key in self.seen}
            if fields:
                self._redis.hset(self._key, mapping=cast("Any", fields))
            self._unwritten.difference_update(keys)

    def forget(self, peers: Collection[str]) -> int:
        """Drop the activity of peers that neither Redis nor the device has had for some time; returns how many.

        Raises redis.RedisError.
        """
        now = time.monotonic()
        shown = self.sight.shown if self.sight is not None else ()
        gone = [key for key in self.seen if key not in peers and key not in shown]
        self._gone = {key: self._gone.get(key, now) for key in gone}
        old = [key for key, since in self._gone.items() if now - since >= FORGET_AFTER]
        for keys in _slices(old):
            self._redis.hdel(self._key, *keys)
            for key in keys:
                del self.seen[key], self._gone[key]
            self._unwritten.difference_update(keys)
        return len(old)


def _slices(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + SLICE] for start in range(0, len(keys), SLICE)]

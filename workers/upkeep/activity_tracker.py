"""Every peer's activity: read from the device's counters, kept in Redis. In memory is a slice of them at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.tasks.errors import KernelError
from peerlane.tasks.redis.hash_pages import PageSize, hash_pages
from peerlane.tasks.values.key_set import KeySet
from peerlane.workers.dataplane.counters import CounterSource, PeerCounters
from peerlane.workers.store.activity import StoredActivity, advance, decode, encode
from peerlane.workers.upkeep.sweep_policy import Keys, Sight

log = logging.getLogger(__name__)

#: Entries read and written per round trip to a Redis nearby, few as those of a page are (``hash_pages``).
SLICE = 100
#: Seconds for which the activity of a peer that is gone is kept at least: one that comes back keeps its totals.
FORGET_AFTER = 3600.0


class ActivityTracker:
    """Every peer's activity. Belongs to the observer's thread. Methods raise redis.RedisError where Redis is away."""

    def __init__(self, redis: Redis, gateway: str, source: CounterSource, index: Callable[[], int]) -> None:
        """``index`` returns the device's number, which changes when the device is created again."""
        self._redis, self._key = redis, names.seen_key(gateway)
        self._gateway = gateway
        self._source, self._index = source, index
        self._device = 0
        #: Since when this device has been watched.
        self._since = 0
        #: The peers that were gone when ``forget`` last looked, and when that was, on the monotonic clock.
        self._gone, self._looked_at = KeySet(), float("-inf")
        #: The last reading, or None where there was none or it failed.
        self.sight: Sight | None = None
        #: Called between two slices of a reading, or of a look for what is to be forgotten: both may take long.
        self.between: Callable[[], object] = lambda: None
        #: Why the last reading failed.
        self.trouble: str | None = None
        #: When the last reading began, on the monotonic clock, and how long it took.
        self.read_at = float("-inf")
        self.took = 0.0
        #: Bytes received from peers and sent to them since this process began to watch.
        self._moved = (0, 0)
        #: The last call of ``reading``, on the monotonic clock, and the bytes counted by then; None before the first.
        self._reported: tuple[float, tuple[int, int]] | None = None

    def known(self, keys: Sequence[str]) -> dict[str, StoredActivity]:
        """What is stored of these peers' activity."""
        return self._known(keys)[0]

    def _known(self, keys: Sequence[str]) -> tuple[dict[str, StoredActivity], int]:
        """Their stored activity, and how many entries are not readable."""
        if not keys:
            return {}, 0
        stored = cast("list[bytes | None]", self._redis.hmget(self._key, list(keys)))
        there = [(key, decode(value)) for key, value in zip(keys, stored, strict=True) if value is not None]
        return {key: seen for key, seen in there if seen is not None}, sum(seen is None for _, seen in there)

    def read(self, now: int) -> None:
        """Read all counters, and store what has changed, slice by slice; ``now`` is in seconds on Redis' clock.

        What goes wrong with the device is in ``trouble``. What could not be stored is stored by the next reading:
        an entry holds the raw counters that it was derived from.
        """
        self.read_at = time.monotonic()
        device = self._index()
        if device != self._device:
            self._since = now  # the counters of a new device begin at 0
        self._device, self._since = device, min(self._since, now)
        self.sight = None  # its keys are not held beside those of the next
        shown, unreadable = KeySet(), 0
        failure: RedisError | None = None
        try:
            for part in _parts(self._source.counters(), size := PageSize(SLICE)):
                for raw in part:
                    shown.add(raw.public_key)
                if failure is None:  # a dump is read to its end in any case
                    try:
                        unreadable += self._advance(part, now, size)
                        self.between()
                    except RedisError as error:
                        failure = error
        except KernelError as error:
            self.trouble = error.message
            return
        finally:
            self.took = time.monotonic() - self.read_at
        if unreadable:
            log.warning("gateway %s: %d entries of activity are not readable and begin anew", self._gateway, unreadable)
        self.trouble = None
        self.sight = Sight(shown, self._source.complete, self._since, now)
        if failure is not None:
            raise failure

    def _advance(self, part: Sequence[PeerCounters], now: int, size: PageSize) -> int:
        """Store the activity that some counters have changed; returns how many entries were not readable."""
        asked = time.monotonic()
        known, unreadable = self._known([raw.public_key for raw in part])
        size.took(time.monotonic() - asked)
        changed: dict[str, str] = {}
        rx, tx = self._moved
        for raw in part:
            before = known.get(raw.public_key)
            after = advance(before, raw, now)
            if after is not before and after is not None:
                rx += after.rx - (before.rx if before is not None else 0)
                tx += after.tx - (before.tx if before is not None else 0)
                changed[raw.public_key] = encode(after)
        if changed:
            self._redis.hset(self._key, mapping=cast("Any", changed))
        self._moved = rx, tx
        return unreadable

    def reading(self, now: int) -> dict[str, Any]:
        """The last reading for the heartbeat, with the bytes a second since the previous one."""
        shown = len(self.sight.shown) if self.sight is not None else 0
        report: dict[str, Any] = {"at": now, "peers": shown, "seconds": round(self.took, 3), "trouble": self.trouble}
        if self.trouble is None:
            before, self._reported = self._reported, (self.read_at, self._moved)
            if before is not None and (seconds := self.read_at - before[0]) > 0:
                rx, tx = (round((n - m) / seconds) for n, m in zip(self._moved, before[1], strict=True))
                report |= {"rx_per_second": rx, "tx_per_second": tx}
        return report

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes received from peers and sent to them since this process began to watch."""
        return self._moved

    def forget(self, peers: Keys) -> int:
        """Drop the activity of peers that neither Redis nor the device had, last time and now; returns how many.

        Looks once in ``FORGET_AFTER`` seconds.
        """
        now = time.monotonic()
        if now - self._looked_at < FORGET_AFTER:
            return 0
        shown: Keys = self.sight.shown if self.sight is not None else KeySet()
        gone, dropped = KeySet(), 0
        for page in hash_pages(self._redis, self._key):
            keys = [key for name, _ in page if (key := name.decode(errors="replace")) not in peers and key not in shown]
            if old := [key for key in keys if key in self._gone]:
                dropped += self._redis.hdel(self._key, *old)
            for key in keys:
                gone.add(key)
            self.between()
        self._gone, self._looked_at = gone, now
        return dropped


def _parts(batches: Iterator[list[PeerCounters]], size: PageSize) -> Iterator[list[PeerCounters]]:
    """The same counters, ``size`` at a time."""
    part: list[PeerCounters] = []
    for raw in chain.from_iterable(batches):
        part.append(raw)
        if len(part) >= size.fields:
            yield part
            part = []
    if part:
        yield part

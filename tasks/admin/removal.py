"""Removes a gateway from Redis in one step; its epoch stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.exceptions import NoPermissionError, WatchError

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.settings import Settings
from peerlane.tasks.admission.lane_state import number, unknown_gateway
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, StorageError, Unavailable
from peerlane.tasks.redis.errors import reaching
from peerlane.tasks.redis.server_clock import milliseconds
from peerlane.tasks.status.gateway_status import OBSERVER_LIVE_FOR_MS, observer_is_live, observer_silence

#: Seconds that Redis may take for an answer.
PATIENCE = 10.0
#: Keys that Redis looks at per round trip, where short-lived ones are looked for.
PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Removed:
    """The data that was removed with a gateway, counted."""

    gateway: str
    peers: int
    #: Requests that waited in its lane, or that a writer had taken and not answered.
    requests: int


def remove_gateway(settings: Settings, gateway: str, *, force: bool = False) -> Removed:
    """Remove a gateway whose writer and observer have ended, in one step. A gateway of that name can be started again.

    The epoch stays and grows by one: a writer that was frozen all the while is refused when it wakes. Requests that
    waited are forgotten too: their callers cancel at their timeouts, and learn that nothing was done. Outcomes, and
    copies that a backup is reading, live on until their time is up; so does everything that lives for a day at most,
    where this Redis user may not see which keys there are.

    Raises:
        Unavailable: no such gateway is registered, or its writer or observer is running; nothing was changed.
        Conflict: it holds peers or requests, and ``force`` was not said; or it changed meanwhile. Nothing was changed.
        StorageError: Redis refuses; nothing was changed.
        OutcomeUnknown: Redis could not be reached; doing it again is harmless.
    """
    redis = connect(settings, timeout=PATIENCE)
    consequence = f"whether {gateway} is removed is unknown; ask again"
    try:
        with reaching(consequence, refused="nothing was changed"):
            try:
                return _remove(Lanes(redis, result_ttl=settings.result_ttl), gateway, force=force)
            except WatchError:
                raise Conflict(
                    f"nothing was removed: the gateway {gateway} changed meanwhile; is its writer starting?"
                ) from None
    finally:
        redis.close()


def _remove(lanes: Lanes, gateway: str, *, force: bool) -> Removed:
    epoch, lasting = names.epoch_key(gateway), names.lasting_keys(gateway)
    _look(lanes, gateway, force=force)
    passing = _passing_keys(lanes.redis, gateway)
    with lanes.redis.pipeline(transaction=True) as pipe:
        # If a process starts, commits, asks or writes a heartbeat from here on, the removal fails.
        pipe.watch(epoch)
        pipe.watch(*lasting)
        removed = _look(lanes, gateway, force=force)
        stored = cast("bytes | None", pipe.get(epoch)) or b"0"
        if number(stored.decode(errors="replace"), -1) < 0:
            raise StorageError(f"the epoch of {gateway} in Redis is no number; nothing was changed")
        pipe.multi()
        pipe.execute_command("INCR", epoch)  # not redis-py's INCRBY: an operator must not be able to count back
        pipe.unlink(*lasting)
        if passing:
            pipe.unlink(*passing)
        pipe.srem(names.GATEWAYS_KEY, gateway)
        pipe.execute()
    return removed


def _look(lanes: Lanes, gateway: str, *, force: bool) -> Removed:
    """The data that would be removed now. Raises Unavailable and Conflict as ``remove`` does."""
    lane = lanes.look(gateway)
    pipe = lanes.redis.pipeline(transaction=False)
    pipe.smembers(names.GATEWAYS_KEY)
    pipe.hget(names.observer_key(gateway), "heartbeat")
    pipe.time()
    pipe.hlen(names.peers_key(gateway))
    pipe.hlen(names.unacked_key(gateway))
    members, beat, time_reply, peers, taken = cast(
        "tuple[set[bytes], bytes | None, tuple[int, int], int, int]", tuple(pipe.execute())
    )
    if not lane.facts and gateway.encode() not in members:
        raise unknown_gateway(gateway)
    if lane.live:
        raise Unavailable(f"the gateway {gateway} has a live writer: stop it, wait five seconds, then remove", 5.0)
    if observer_is_live(observer_silence(beat, milliseconds(time_reply))):
        wait = OBSERVER_LIVE_FOR_MS / 1000
        raise Unavailable(f"the gateway {gateway} has a live observer: stop it, wait {wait:g} s, then remove", wait)
    removed = Removed(gateway, peers, lane.waiting + lane.waiting_bulk + taken)
    words = ((peers, "peer", "peers"), (removed.requests, "request that waits", "requests that wait"))
    counted = [f"{count:,} {single if count == 1 else many}" for count, single, many in words if count]
    if counted and not force:
        raise Conflict(f"the gateway {gateway} holds {' and '.join(counted)}: --force forgets them with it")
    return removed


def _passing_keys(redis: Redis, gateway: str) -> list[bytes]:
    """The expiring keys without a fixed name; empty if this user may not list keys."""
    kept = names.snapshot_key(gateway, "", "").rstrip(":").encode()
    fixed = {key.encode() for key in (names.epoch_key(gateway), *names.lasting_keys(gateway))}
    try:
        scan = cast("Iterator[bytes]", redis.scan_iter(match=f"peerlane:{{{gateway}}}:*", count=PAGE))
        keys = set(scan)  # which may tell a key twice
    except NoPermissionError:
        return []
    return [key for key in keys if key not in fixed and not key.startswith(kept)]

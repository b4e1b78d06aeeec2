"""A gateway full of stale peers, and a caller who creates peers while they are swept: for a test, and for the bench."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from keys import key_number, some_key
from redis import Redis
from waiting import Stopwatch

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.wire.commit_record import decode
from peerlane.workers.store.activity import StoredActivity, encode
from peerlane.workers.upkeep.activity_tracker import KEPT_SINCE

DAY = 86_400
#: For the writer and the observer: counters count at once, peers go after a day without a handshake or 30 days idle.
SETTINGS: dict[str, Any] = {"sweep_start_grace": 0, "observe_every": 3600, "sweep_every": 3600, "reconcile_every": 3600}


@dataclass(frozen=True)
class Crowd:
    """Who must go and who must stay."""

    stale: frozenset[str]
    staying: frozenset[str]


def crowd(redis: Redis, gateway: str, count: int, *, stale: float = 0.9) -> Crowd:
    """Records as if ``count`` peers had been made long ago: a third of the stale expired, never came, were idle.

    Those that stay are pinned, have time left, or were seen today. Before the writer starts.
    """
    now = int(redis.time()[0])
    going: list[str] = []
    staying: list[str] = []
    peers: dict[Any, Any] = {}
    addresses: dict[Any, Any] = {}
    seen: dict[Any, Any] = {}
    for number in range(1, count + 1):
        key = key_number(number)
        allowed_ips = [f"{IPv4Address('10.8.0.1') + number}/32", f"{IPv6Address('fd00:8::1') + number}/128"]
        record: dict[str, Any] = {"v": 1, "allowed_ips": allowed_ips, "created_at": now - 90 * DAY}
        last_seen, kind = 0, number % 3
        if number <= count * stale:
            going.append(key)
            if kind == 0:
                record |= {"ttl": DAY, "expires_at": now - 60}
            last_seen = now - 31 * DAY if kind == 1 else 0
        else:
            staying.append(key)
            if kind == 0:
                record |= {"pinned": True}
            elif kind == 1:
                record |= {"ttl": 91 * DAY, "expires_at": now + DAY}
            last_seen = 0 if kind == 0 else now - 60
        peers[key] = json.dumps(record)
        addresses |= dict.fromkeys(allowed_ips, key)
        if last_seen:
            seen[key] = encode(StoredActivity(last_seen, 1000, 1000, 0, 0, 0))
    for name, mapping in (
        (names.peers_key(gateway), peers),
        (names.addresses_key(gateway), addresses),
        (names.seen_key(gateway), seen),
    ):
        items = list(mapping.items())
        for start in range(0, len(items), 5_000):
            redis.hset(name, mapping=dict(items[start : start + 5_000]))
    redis.hset(names.observer_key(gateway), KEPT_SINCE, now - 90 * DAY)
    return Crowd(frozenset(going), frozenset(staying))


def create(peers: Gateway, latencies: list[float]) -> str:
    """One more peer, and how long it took."""
    key, watch = some_key(), Stopwatch()
    assert peers.create_peer(key, timeout=10).outcome == "created"
    latencies.append(watch.seconds)
    return key


def create_during_a_sweep(
    app: PeerlaneApp, peers: Gateway, redis: Redis, latencies: list[float]
) -> tuple[dict[str, Any], list[str]]:
    """Sweep by force, and create one peer after another until it is over: the report, and who was made."""
    request = names.request_id(peers.name, "swept-by-the-way")
    app.send_task(names.SWEEP, kwargs={"gateway": peers.name, "force": True}, task_id=request)
    made: list[str] = []
    while (stored := redis.get(names.result_key(request))) is None:
        made.append(create(peers, latencies))
    return decode(str(stored)), made


def percentile(latencies: Sequence[float], share: float) -> float:
    """In ms; ``share`` of all are at most this."""
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))] * 1000


def summary(title: str, latencies: Sequence[float]) -> str:
    """One line for people."""
    figures = "  ".join(f"{name} {percentile(latencies, share):7.2f} ms" for name, share in _SHARES.items())
    return f"{title:<28} {len(latencies):>6} times  {figures}  max {max(latencies) * 1000:7.2f} ms"


_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def quiet_creates(peers: Gateway, seconds: float, latencies: list[float]) -> list[str]:
    """Create one peer after another for so long."""
    until = time.monotonic() + seconds
    made: list[str] = []
    while time.monotonic() < until:
        made.append(create(peers, latencies))
    return made

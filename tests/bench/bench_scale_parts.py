"""What bench_scale measures beside the running gateway: records, and each of its parts in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from bench_report import Figures
from gateways import close
from keys import key_number, some_key
from redis import Redis

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.admin.archive import read_header
from peerlane.tasks.admin.backup import back_up, check_archive
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.upkeep import SweepGateway
from peerlane.workers.dataplane import DeviceIdentity, DevicePeer, SetPeer
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.factory import device_spec, open_plane
from peerlane.workers.host import garbage
from peerlane.workers.peers.plan import plan_create
from peerlane.workers.peers.table import Policy, build_table
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.comparison import BothSides
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper

POOLS = ("10.0.0.0/8", "fd00:8::/64")
_POOLS = tuple(map(Prefix.parse, POOLS))
#: Of eleven peers so many have expired.
EXPIRED = 6
#: Records written at a time.
PAGE = 5_000
#: Plans that are timed.
PLANS = 5_000
#: How much more often a record is decoded: a guest's clock of processor time goes by hundredths of a second.
_MORE = 20


def crowd(redis: Redis, gateway: str, count: int, advance: Callable[[float], None]) -> None:
    """Records of ``count`` peers as an earlier writer has left them, each seen a second after the one before."""
    now = int(redis.time()[0])
    for start in range(1, count + 1, PAGE):
        peers: dict[Any, Any] = {}
        addresses: dict[Any, Any] = {}
        seen: dict[Any, Any] = {}
        for number in range(start, min(start + PAGE, count + 1)):
            key, made = key_number(number), now - 90 * 86_400
            prefixes = [str(prefix) for prefix in prefixes_of(number)]
            expires = now - 60 if number % 11 < EXPIRED else now + 86_400
            peers[key] = (
                f'{{"v":1,"allowed_ips":["{prefixes[0]}","{prefixes[1]}"],"ttl":3600,'
                f'"expires_at":{expires},"created_at":{made}}}'
            )
            addresses |= dict.fromkeys(prefixes, key)
            seen[key] = f"1 {now - count + number} 1234567 7654321 {now}000000 1234567 7654321 192.0.2.7:51820"
        redis.hset(names.peers_key(gateway), mapping=peers)
        redis.hset(names.addresses_key(gateway), mapping=addresses)
        redis.hset(names.seen_key(gateway), mapping=seen)
        advance(start / count)


def prefixes_of(number: int) -> list[Prefix]:
    """The allowed IPs of the peer with this number."""
    return [Prefix.host(pool.version, pool.network + 1 + number) for pool in _POOLS]


def memory(pid: int) -> tuple[int, int]:
    """A process' resident memory, and the most it ever had, in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def planning(url: str, gateway: str) -> Figures:
    """What the table costs by itself: µs of this processor for each peer."""
    redis = Redis.from_url(url)
    policy = Policy(gateway, key_number(2**200), tuple(map(Prefix.parse, POOLS)), max_peers=1 << 21)
    began = time.process_time()
    with garbage.loading():  # as a writer
        loaded = Store(redis, gateway, result_ttl=600).load()
        table = build_table(policy, loaded)
    loading = time.process_time() - began
    wishes = [CreatePeer(gateway=gateway, public_key=some_key()) for _ in range(PLANS)]
    began = time.process_time()
    for wish in wishes:
        after = plan_create(table, wish, now=1_800_000_000).after
        assert after is not None
        table.put(after)
    planned = time.process_time() - began
    record = next(iter(table.peers.values())).record()
    began = time.process_time()
    for _ in range(_MORE * PLANS):
        json.loads(record)
    baseline = (time.process_time() - began) / _MORE
    redis.close()
    count = max(1, len(table.peers) - PLANS)
    return {
        "load_us": round(loading / count * 1e6, 2),
        "plan_put_us": round(planned / PLANS * 1e6, 2),
        "plan_put_to_json": round(planned / baseline, 1),
    }


class Readings:
    """Stands in for a device: as many peers as the bench has, and their counters, one after the other."""

    complete = True

    def __init__(self, count: int) -> None:
        self._count = count

    def counters(self) -> Iterator[list[PeerCounters]]:
        for start in range(1, self._count + 1, 200):
            yield [
                PeerCounters(key_number(n), 1_800_000_000.0, 7_000_000, 9_000_000, ("192.0.2.7", 51_820))
                for n in range(start, min(start + 200, self._count + 1))
            ]

    def peers(self) -> Iterator[DevicePeer]:
        for number in range(1, self._count + 1):
            yield DevicePeer(key_number(number), None, 0, frozenset(prefixes_of(number)))

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        return frozenset(), frozenset(_POOLS)

    def up(self) -> bool:
        return True

    def identity(self) -> DeviceIdentity:
        return DeviceIdentity("", 0, 1420)

    def index(self) -> int:
        return 1

    def close(self) -> None:
        """Nothing is held."""


def reconciling(url: str, gateway: str, count: int) -> Figures:
    """What an observer holds while it compares device and Redis, and how long that takes it."""
    os.nice(10)  # as an observer
    redis = Redis.from_url(url)
    before = memory(multiprocessing.current_process().pid or 0)[0]
    policy = Policy(gateway, key_number(2**200), _POOLS, max_peers=1 << 21)
    store = Store(redis, gateway, result_ttl=600)
    began = time.process_time()
    suspects = BothSides(store, policy, Readings(count), lambda _: True, None).suspects()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    redis.close()
    return {
        "reconcile_peak_mb": round(peak / 1e6),
        "reconcile_bytes_per_peer": round((peak - before) / max(1, count)),
        "reconcile_cpu_s": round(seconds, 1),
        # Created meanwhile by the bench's caller: a second look would follow.
        "reconcile_suspects": len(suspects.keys),
    }


def observing(url: str, gateway: str, count: int) -> Figures:
    """What an observer holds after it has read the counters twice and all records once, and how long that took."""
    redis = Redis.from_url(url)
    before = memory(multiprocessing.current_process().pid or 0)[0]
    tracker = ActivityTracker(redis, gateway, Readings(count), lambda: 1)
    clock = ClockMonitor(redis, gateway)
    limits = Limits(start_grace=0)
    sweeper = Sweeper(
        redis=redis, gateway=gateway, limits=limits, clock=clock, counted=tracker, errands=cast("Any", None)
    )
    began = time.process_time()
    tracker.read(int(redis.time()[0]))
    sweeper.sweep(SweepGateway(gateway=gateway, dry_run=True), lambda _: True)
    seconds = time.process_time() - began
    after = memory(multiprocessing.current_process().pid or 0)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    redis.close()
    return {
        "observer_mb": round(after / 1e6),
        "observer_grown_mb": round((after - before) / 1e6),
        "observer_peak_mb": round(peak / 1e6),
        "observer_cpu_s": round(seconds, 1),
    }


def archiving(url: str, gateway: str, file: str) -> Figures:
    """The most that a backup, a list and a check of the backup have in memory, and how long they take."""
    chosen = read(redis_url=url)
    app = PeerlaneApp(chosen)
    client = Gateway(gateway, app=app)
    before, began = memory(multiprocessing.current_process().pid or 0)[0], time.process_time()
    back_up(chosen, gateway, Path(file), replace=True)
    check_archive(Path(file), read_header(Path(file)))
    listed = sum(1 for _ in client.peers_with_activity())
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    close(app)
    return {
        "archive_listed": listed,
        "archive_grown_mb": round((peak - before) / 1e6),
        "archive_cpu_s": round(seconds, 1),
    }


def own_adds(directory: str, first: int, count: int) -> Figures:
    """How long a WireGuard device of its own takes to be given so many peers, as fast as it takes them.

    Made are those with numbers from ``first`` on, as a gateway has them.
    """
    settings = read(
        gateway="own",
        interface="wgown",
        private_key_file=Path(directory) / "own.key",
        dataplane="kernel",
        listen_port=51_999,
        pools=("172.31.0.0/16",),  # not those of a gateway that runs here
        endpoint="vpn.example.com:51999",
    )
    plane = open_plane(settings).writer
    plane.open(device_spec(settings)[0])
    peers = [SetPeer(key_number(n), frozenset(prefixes_of(n))) for n in range(first, first + count)]
    began = time.monotonic()
    for start in range(0, count, 64):
        plane.apply(peers[start : start + 64])
    seconds = time.monotonic() - began
    subprocess.run(["ip", "link", "del", "wgown"], check=True)
    return {"own_adds_s": round(seconds, 2)}


@contextmanager
def apart(function: Callable[..., Figures], *arguments: object) -> Generator[Future[Figures]]:
    """Have it called meanwhile in a process of its own, one that is there already, with all its modules."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(memory, os.getpid()).result()
        yield pool.submit(function, *arguments)


def alone(function: Callable[..., Figures], *arguments: object) -> Figures:
    """Call it in a process of its own, so that its memory is nobody else's."""
    with apart(function, *arguments) as figures:
        return figures.result()  # raises where that process was ended, for lack of memory say

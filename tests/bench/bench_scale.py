"""One gateway over its number of peers: memory, start, creates while it fills and is swept, what planning costs.

    make bench-scale    or: python tests/bench/bench_scale.py [--peers 100000,1000000] [--plane kernel] [--json]

A gateway's writer is started on records that an earlier one has left, on a device in its memory that has lost all
(``--plane kernel``: on a WireGuard device, where a kernel has it). One caller creates peers: while the others are
still being added, after that, and while those that have expired, more than half, are swept. Each of these is measured
for a while at most; ratios are of one run. Memory is that of the process when the lane opens, less that of a gateway
without peers: what the simulated device then holds of its own is a few thousand peers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from bench_report import Advance, Bench, Figures, quantile, run
from gateways import GatewayProcess, close, new_name
from keys import key_number, some_key
from observers import Observer, ending
from redis import Redis
from rich.table import Table
from servers import RedisServer
from waiting import Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.upkeep import SweepGateway
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.peers.plan import plan_create
from peerlane.workers.peers.table import Policy, build_table
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper

POOLS = ("10.0.0.0/8", "fd00:8::/64")
SETTINGS: dict[str, Any] = {
    "pools": POOLS,
    "max_peers": 1 << 20,
    "sweep_start_grace": 0,
    "observe_every": 3600,
    "sweep_every": 86_400,
    "reconcile_every": 86_400,
}
#: Of eleven peers so many have expired.
EXPIRED = 6
#: Records written at a time.
PAGE = 5_000
#: Plans that are timed.
PLANS = 5_000


def crowd(redis: Redis, gateway: str, count: int, advance: Callable[[float], None]) -> None:
    """Records of ``count`` peers as an earlier writer has left them, each seen a second after the one before."""
    now = int(redis.time()[0])
    first, second = (Prefix.parse(pool) for pool in POOLS)
    for start in range(1, count + 1, PAGE):
        peers: dict[Any, Any] = {}
        addresses: dict[Any, Any] = {}
        seen: dict[Any, Any] = {}
        for number in range(start, min(start + PAGE, count + 1)):
            key, made = key_number(number), now - 90 * 86_400
            prefixes = [str(Prefix.host(pool.version, pool.network + 1 + number)) for pool in (first, second)]
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


def memory(pid: int) -> tuple[int, int]:
    """A process' resident memory, and the most it ever had, in bytes."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(found["VmRSS"].split()[0]) * 1024, int(found["VmHWM"].split()[0]) * 1024


def creates(peers: Gateway, seconds: float, go_on: Callable[[], bool] = lambda: True) -> list[float]:
    """How long creates one after the other took, in ms."""
    watch, took = Stopwatch(), list[float]()
    while watch.seconds < seconds and (len(took) % 20 or go_on()):
        each = Stopwatch()
        peers.create_peer(some_key(), timeout=10)
        took.append(each.seconds * 1000)
    return took


def spread(found: list[float]) -> Figures:
    """In ms."""
    if not found:
        return {"count": 0}
    return {"count": len(found), **{f"p{at}": round(quantile(found, at / 100), 2) for at in (50, 99)}}


def planning(url: str, gateway: str) -> Figures:
    """What the table costs by itself: µs of this processor for each peer."""
    redis = Redis.from_url(url)
    policy = Policy(gateway, key_number(2**200), tuple(map(Prefix.parse, POOLS)), max_peers=1 << 21)
    began = time.process_time()
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
    redis.close()
    count = max(1, len(table.peers) - PLANS)
    return {"load_us": round(loading / count * 1e6, 2), "plan_put_us": round(planned / PLANS * 1e6, 2)}


class Readings:
    """Stands in for a device: counters of as many peers as the bench has, in batches as the kernel tells them."""

    complete = True

    def __init__(self, count: int) -> None:
        self._count = count

    def counters(self) -> Iterator[list[PeerCounters]]:
        for start in range(1, self._count + 1, 200):
            yield [
                PeerCounters(key_number(n), 1_800_000_000.0, 7_000_000, 9_000_000, ("192.0.2.7", 51_820))
                for n in range(start, min(start + 200, self._count + 1))
            ]

    def close(self) -> None:
        """Nothing is held."""


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


def alone(function: Callable[..., Figures], *arguments: object) -> Figures:
    """Call it in a process of its own, so that its memory is nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="0,100000", help="numbers of peers, separated by commas")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each of a caller's measurements, at most")
    parser.add_argument("--plane", default="memory", choices=("memory", "kernel"))
    parser.add_argument("--fsync", default="always", choices=("always", "everysec", "no"))


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    sizes = sorted({0, *(int(size) for size in chosen.peers.split(","))})
    points: list[Figures] = []
    for at, size in enumerate(sizes):

        def tell(what: str, share: float, at: int = at, size: int = size) -> None:
            advance(f"{size:,} peers: {what}", (at + share) / len(sizes))

        points.append(one_size(chosen, size, tell))
    base = points[0]
    for point in points[1:]:
        grown = point["rss_open"] - base["rss_open"]
        point["bytes_per_peer"] = round(grown / point["peers"])
        point["peak_bytes_per_peer"] = round((point["rss_peak"] - base["rss_open"]) / point["peers"])
        if base["idle"]["count"] and point["idle"]["count"]:
            point["p50_to_0"] = round(point["idle"]["p50"] / base["idle"]["p50"], 2)
        for phase in ("filling", "sweep"):
            if point[phase]["count"] and point["idle"]["count"]:
                point[f"{phase}_p99_to_idle"] = round(point[phase]["p99"] / point["idle"]["p99"], 2)
    return {"plane": chosen.plane, "fsync": chosen.fsync, "sizes": points}


def one_size(chosen: argparse.Namespace, size: int, advance: Advance) -> Figures:
    directory = Path(tempfile.mkdtemp(prefix="peerlane-"))
    server = RedisServer(directory, appendfsync="no")
    server.start()
    name, app = new_name(), PeerlaneApp(read(redis_url=server.url))
    site = GatewayProcess(name, server.url, directory, dataplane=chosen.plane, interface="wgscale", **SETTINGS)
    try:
        crowd(server.redis, name, size, lambda share: advance("making records", 0.2 * share))
        point: Figures = {"peers": size}
        if size:
            used = int(server.redis.memory_usage(names.peers_key(name), samples=0) or 0)
            used += int(server.redis.memory_usage(names.addresses_key(name), samples=0) or 0)
            point["redis_bytes_per_peer"] = round(used / size)
            point |= alone(planning, server.url, name)
            point |= alone(observing, server.url, name, size)
        server.redis.config_set("appendfsync", chosen.fsync)
        advance("the writer's start", 0.4)
        watch = Stopwatch()
        site.start(wait=False)
        site.await_serving(within=600)
        point["start_s"] = round(watch.seconds, 1)
        point["rss_open"], point["rss_peak"] = memory(site.pid)
        point["coming_at_open"] = int(site.look().facts.get("recovering", 0))
        caller = Gateway(name, app=app)
        creates(caller, 1.0)  # connections, scripts

        def filling() -> bool:
            return int(site.look().facts.get("recovering", 0)) > 0

        advance("creates while peers are added", 0.5)
        point["filling"] = spread(creates(caller, chosen.seconds, filling) if size and filling() else [])
        eventually(lambda: not filling(), "the last peer being back", within=900)
        point["full_s"] = round(watch.seconds, 1)
        advance("creates", 0.7)
        point["idle"] = spread(creates(caller, chosen.seconds))
        advance("creates while peers are swept", 0.8)
        point["sweep"] = spread(during_a_sweep(site, app, caller, chosen.seconds) if size else [])
        return point
    finally:
        close(app)
        site.finish()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def during_a_sweep(site: GatewayProcess, app: PeerlaneApp, caller: Gateway, seconds: float) -> list[float]:
    """Creates from a sweep's first removal on."""
    with ending(Observer(site, wait=False)):
        before = caller.info().peers or 0
        app.send_task(
            names.SWEEP,
            kwargs={"gateway": site.name, "force": True},
            task_id=names.request_id(site.name, "swept-by-the-way"),
        )
        try:
            eventually(lambda: (caller.info().peers or 0) < before, "the first removals", within=300)
        except AssertionError:
            return []  # the figure is left out; the others stand
        return creates(caller, seconds)


def show(figures: Figures) -> Table:
    sizes = figures["sizes"]
    table = Table(title=f"one gateway over its peers, {figures['plane']} data plane, appendfsync {figures['fsync']}")
    table.add_column("")
    for point in sizes:
        table.add_column(f"{point['peers']:,}", justify="right")
    table.add_column("at most", justify="right")
    for title, key, most in (
        ("Redis: peers and addresses, B/peer", "redis_bytes_per_peer", ""),
        ("writer when the lane opens, B/peer", "bytes_per_peer", "600"),
        ("writer at its most, B/peer", "peak_bytes_per_peer", ""),
        ("read and index a record, µs", "load_us", ""),
        ("plan_create + put, µs", "plan_put_us", "15"),
        ("start until the lane opens, s", "start_s", "12 at 1M"),
        ("peers still to be added then", "coming_at_open", ""),
        ("start until all are back, s", "full_s", ""),
        ("create p50, idle, ms", "idle.p50", ""),
        ("  ÷ without peers", "p50_to_0", "1.10"),
        ("create p99, idle, ms", "idle.p99", ""),
        ("create p99 while peers are added ÷ idle", "filling_p99_to_idle", "3"),
        ("create p99 during a sweep ÷ idle", "sweep_p99_to_idle", "3"),
        ("observer, MB", "observer_mb", "300 at 1M"),
        ("observer at its most, MB", "observer_peak_mb", ""),
        ("observer: read all once, s of processor", "observer_cpu_s", ""),
    ):
        table.add_row(title, *(_cell(point, key) for point in sizes), most)
    return table


def _cell(point: Figures, path: str) -> str:
    group, _, name = path.rpartition(".")
    found = point.get(group, {}).get(name) if group else point.get(name)
    return "" if found is None else f"{found:,}"


def bench(*, needs_kernel: bool) -> Bench:
    """On the one data plane or on the other."""
    about = __doc__ or ""
    return Bench(script=__file__, about=about, measure=measure, show=show, options=options, needs_kernel=needs_kernel)


if __name__ == "__main__":
    sys.exit(run(bench(needs_kernel="kernel" in sys.argv)))

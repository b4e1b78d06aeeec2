"""One gateway over its number of peers: memory, start, creates while it fills and is swept, what planning costs.

    make bench-scale ARGS='--peers 100000,1000000'    [--plane kernel] [--seconds 15] [--json FILE]

A gateway's writer is started on records that an earlier one has left, on a device in its memory that has lost all
(``--plane kernel``: on a WireGuard device, where a kernel has it). A start has two spans: the program itself, up to its
first word in Redis, and "Redis to lane open", from the first read of the peers on. ``--python`` starts the gateway by
the interpreter of another environment, one without the tools of this one.

On a WireGuard device one more start is measured, to its last peer, while nobody asks anything: what adding costs by
itself. One caller creates peers: while the others are still being added, after that (in turns with creates on a gateway
without peers, on the same Redis), and while those that have expired, more than half, are swept. Each of these is
measured for a while at most; ratios are of one run. Memory is that of the process when the lane opens, less that of a
gateway without peers: what the simulated device then holds of its own is a few thousand peers. Redis writes its
append-only file anew before the measurements, so that it does not during them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from bench_report import Advance, Bench, Figures, run
from bench_scale_parts import POOLS, alone, apart, archiving, crowd, memory, observing, own_adds, planning, reconciling
from bench_scale_start import Starts, supervised, writer_alone
from bench_site import NAME, Site, site
from bench_timing import one_create, spread
from gateways import GatewayProcess
from keys import key_number
from observers import Observer, ending
from redis import Redis
from rich.table import Table
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp

SETTINGS: dict[str, Any] = {
    "pools": POOLS,
    "max_peers": 1 << 20,
    "sweep_start_grace": 0,
    "observe_every": 3600,
    "sweep_every": 86_400,
    "reconcile_every": 86_400,
}


#: Seconds of creates on a gateway before it is another's turn.
TURN = 0.25


def creates(peers: Gateway, seconds: float, go_on: Callable[[], bool] = lambda: True) -> list[float]:
    """How long creates one after the other took, in ms."""
    watch, took = Stopwatch(), list[float]()
    while watch.seconds < seconds and (len(took) % 20 or go_on()):
        took.append(one_create(peers))
    return took


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="0,100000", help="numbers of peers, separated by commas")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each of a caller's measurements, at most")
    parser.add_argument("--plane", default="memory", choices=("memory", "kernel"))
    parser.add_argument("--fsync", default="always", choices=("always", "everysec", "no"))
    parser.add_argument("--python", default=sys.executable, help="interpreter that has peerlane, to start gateways by")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    sizes = sorted({0, *(int(size) for size in chosen.peers.split(","))})
    points: list[Figures] = []
    for at, size in enumerate(sizes):

        def tell(step: str, share: float, at: int = at, size: int = size) -> None:
            advance(f"{size:,} peers: {step}", (at + share) / len(sizes))

        points.append(one_size(chosen, size, tell))
    base = points[0]
    for point in points[1:]:
        grown = point["rss_open"] - base["rss_open"]
        point["bytes_per_peer"] = round(grown / point["peers"])
        point["peak_bytes_per_peer"] = round((point["rss_peak"] - base["rss_open"]) / point["peers"])
        point["p50_to_empty"] = round(point["idle"]["p50"] / point["empty"]["p50"], 2)
        if "own_adds_s" in point:
            point["back_to_own_adds"] = round(point["back_s"] / point["own_adds_s"], 2)
        for phase in ("filling", "sweep", "reconcile"):
            if point.get(phase, {"count": 0})["count"] and point["idle"]["count"]:
                point[f"{phase}_p99_to_idle"] = round(point[phase]["p99"] / point["idle"]["p99"], 2)
    return {"plane": chosen.plane, "fsync": chosen.fsync, "sizes": points}


def one_size(chosen: argparse.Namespace, size: int, advance: Advance) -> Figures:
    with site("no") as bench:
        server, app = bench.server, bench.app
        gateway = bench.gateway(dataplane=chosen.plane, interface="wgscale", **SETTINGS)
        crowd(server.redis, NAME, size, lambda share: advance("making records", 0.2 * share))
        point: Figures = {"peers": size}
        if size:
            used = int(server.redis.memory_usage(names.peers_key(NAME), samples=0) or 0)
            used += int(server.redis.memory_usage(names.addresses_key(NAME), samples=0) or 0)
            point["redis_bytes_per_peer"] = round(used / size)
            point |= alone(planning, server.url, NAME)
            advance("the observer", 0.25)
            point |= alone(observing, server.url, NAME, size)
            point |= alone(reconciling, server.url, NAME, size)
            advance("backup and list", 0.3)
            server.redis.hset(names.gateway_key(NAME), mapping={"public_key": key_number(2**200), "state": "active"})
            point |= alone(archiving, server.url, NAME, str(bench.directory / "backup"))
            server.redis.delete(names.gateway_key(NAME))
            if chosen.plane == "kernel":
                point |= alone(own_adds, str(bench.directory), 1, size)
        durable(server.redis, chosen.fsync)
        advance("the writer's start", 0.4)
        starts = Starts(gateway, server.redis)
        if not size:
            supervised(gateway, chosen.python)
            point["supervised_s"] = starts.start()["start_s"]
            gateway.stop()
            starts.lose_device()
        writer_alone(gateway, chosen.python)
        if "own_adds_s" in point:
            point |= starts.undisturbed()
            opened = starts.start()
        else:
            opened = starts.start()
            point |= opened
        point["rss_open"], point["rss_peak"] = memory(gateway.pid)
        point["coming_at_open"] = int(gateway.look().facts.get("recovering", 0))
        caller = bench.client
        creates(caller, 1.0)  # connections, scripts

        def filling() -> bool:
            return int(gateway.look().facts.get("recovering", 0)) > 0

        advance("creates while peers are added", 0.5)
        point["filling"] = spread(creates(caller, chosen.seconds, filling) if size and filling() else [])
        if size:
            point["called_back_s"] = round(opened["open_s"] + starts.filled(), 2)
        advance("creates", 0.7)
        point |= idle(bench, chosen, caller, beside_empty=size > 0)
        advance("creates while peers are swept", 0.8)
        point["sweep"] = spread(during(names.SWEEP, gateway, app, caller, chosen.seconds) if size else [])
        if size:
            advance("creates while device and Redis are compared", 0.9)
            point["reconcile"] = spread(reconciled(chosen, bench, gateway, caller, size))
        return point


def idle(bench: Site, chosen: argparse.Namespace, caller: Gateway, *, beside_empty: bool) -> Figures:
    """Creates while nothing else goes on; in turns with those on a gateway without peers, where that is asked for."""
    if not beside_empty:
        return {"idle": spread(creates(caller, chosen.seconds))}
    empty = bench.gateway(
        "empty",
        dataplane=chosen.plane,
        **SETTINGS | {"interface": "wgempty", "listen_port": 51_998, "pools": ("172.30.0.0/16", "fd00:9::/64")},
    )
    empty.start()
    callers = {"idle": caller, "empty": Gateway(empty.name, app=bench.app, timeout=PATIENCE)}
    creates(callers["empty"], 1.0)  # connections, scripts
    times: dict[str, list[float]] = {name: [] for name in callers}
    watch = Stopwatch()
    while watch.seconds < 2 * chosen.seconds:
        for name, one in callers.items():
            times[name] += creates(one, TURN)
    empty.stop()
    return {name: spread(took) for name, took in times.items()}


def durable(redis: Redis, fsync: str) -> None:
    """Sync as asked from now on, on a new append-only file: Redis' rewriting it would be measured with the creates."""

    def through() -> bool:
        state = redis.info("persistence")
        return not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]

    eventually(through, "the end of a rewrite of its own accord", within=300)
    redis.bgrewriteaof()
    eventually(through, "the rewrite's end", within=300)
    redis.config_set("appendfsync", fsync)


def reconciled(
    chosen: argparse.Namespace, bench: Site, gateway: GatewayProcess, caller: Gateway, size: int
) -> list[float]:
    """Creates during a reconciliation; without a WireGuard device one with a simulated device."""
    if chosen.plane == "kernel":
        return during(names.RECONCILE, gateway, bench.app, caller, chosen.seconds)
    with apart(reconciling, bench.server.url, NAME, size) as figures:
        times = creates(caller, chosen.seconds, lambda: not figures.done())
        figures.result()
        return times


def during(task: str, gateway: GatewayProcess, app: PeerlaneApp, caller: Gateway, seconds: float) -> list[float]:
    """Creates from a sweep's first removal on, or from the beginning of a reconciliation to its end."""
    with ending(Observer(gateway, wait=False) if task == names.SWEEP else Observer(gateway)):
        before = caller.info().peers or 0
        request_id = names.request_id(gateway.name, task.rpartition(".")[2])
        app.send_task(
            task,
            kwargs={"gateway": gateway.name} | ({"force": True} if task == names.SWEEP else {"dry_run": True}),
            task_id=request_id,
        )
        if task == names.RECONCILE:
            return creates(caller, seconds, lambda: not app.AsyncResult(request_id).ready())
        try:
            eventually(lambda: (caller.info().peers or 0) < before, "the first removals", within=60 + before / 2_000)
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
        ("  ÷ json.loads of a record", "plan_put_to_json", ""),
        ("start under `gateway run` until the lane opens, s", "supervised_s", ""),
        ("start of the writer until the lane opens, s", "start_s", "kernel 4 at 100k"),
        ("  the program itself, s", "process_s", ""),
        ("  Redis to lane open, s", "open_s", "12 at 1M"),
        ("peers still to be added then", "coming_at_open", ""),
        ("from Redis until all are back, a caller meanwhile, s", "called_back_s", ""),
        ("  nobody asks meanwhile, s", "back_s", ""),
        ("    ÷ adding them to a device as fast as it goes", "back_to_own_adds", "1.6"),
        ("create p50, idle, ms", "idle.p50", ""),
        ("  ÷ that of a gateway without peers, in turns", "p50_to_empty", "1.10"),
        ("create p99, idle, ms", "idle.p99", ""),
        ("create p99 while peers are added ÷ idle", "filling_p99_to_idle", "3"),
        ("create p99 during a sweep ÷ idle", "sweep_p99_to_idle", "3"),
        ("create p99 during a reconciliation ÷ idle", "reconcile_p99_to_idle", "3"),
        ("observer, MB", "observer_mb", "300 at 1M"),
        ("observer at its most, MB", "observer_peak_mb", ""),
        ("observer: read and look once, s of processor", "observer_cpu_s", ""),
        ("observer while it reconciles, at its most, MB", "reconcile_peak_mb", "300 at 1M"),
        ("  B/peer more than before", "reconcile_bytes_per_peer", ""),
        ("  s of processor", "reconcile_cpu_s", ""),
        ("backup, its check, list: memory more, MB", "archive_grown_mb", "200 at 1M"),
        ("  s of processor", "archive_cpu_s", ""),
    ):
        table.add_row(title, *(_cell(point, key) for point in sizes), most)
    return table


def _cell(point: Figures, path: str) -> str:
    group, _, name = path.rpartition(".")
    value = point.get(group, {}).get(name) if group else point.get(name)
    return "" if value is None else f"{value:,}"


def bench(*, needs_kernel: bool) -> Bench:
    """On the one data plane or on the other."""
    about = __doc__ or ""
    return Bench(script=__file__, about=about, measure=measure, show=show, options=options, needs_kernel=needs_kernel)


if __name__ == "__main__":
    sys.exit(run(bench(needs_kernel="kernel" in sys.argv)))

"""A caller's latency while stale peers are swept from a real device, beside its latency while they are not, in one run.

    make bench          or: python tests/bench/bench_sweep.py [--peers N] [--slices 16,32,64] [--json FILE]

Nine peers of ten are stale. One caller asks again and again. Every few creates the observer, and with it the sweep, is
frozen or let go, so that whatever else the machine does falls on both sides alike; the creates while the observer still
looks and decides are told apart. What the writer's log tells of its slices is shown beside. With several ``--slices``
the sweep changes between these sizes, so that they too are measured in one run.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from bench_report import Advance, Bench, Figures, quantile, run
from bench_site import NAME, site
from bench_timing import spread
from observers import Observer, ending
from redis import Redis
from rich.table import Table
from stale import SETTINGS, create, crowd
from waiting import Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.tasks.wire.commit_record import decode
from peerlane.workers.upkeep import sweeper as sweeping

#: Creates until the sweep is frozen, or let go: some of its slices go by meanwhile.
TURN = 25
#: Seconds in which the writer gets through what a frozen observer had asked for.
SETTLE = 0.1
#: The longest pause of the caller, in seconds: it is not in step with the slices.
PAUSE = 0.01
#: Fewer say nothing of a p99.
ENOUGH = 500
#: Names the file that tells the observer (bench_sweep_observer) its slice's size.
SIZE_FILE = "BENCH_SLICE_FILE"

#: A line of the writer's log: when a task was through, which, and the seconds that it took.
_THROUGH = re.compile(r"\[(\S+ \S+): INFO/\w+\] Task peerlane\.(\w+)\[[^]]*\] succeeded in ([0-9.e-]+)s")

#: Where a create belongs: while the observer decides, while nothing goes on, or while slices of a size do.
LOOKING, QUIET = "looking", "quiet"


class Caller:
    """Creates one peer after another."""

    def __init__(self, peers: Gateway) -> None:
        self._peers = peers
        self.made: list[str] = []

    def create(self, count: int, times: list[float]) -> None:
        """So many peers; how long each took, in ms, goes into ``times``."""
        took: list[float] = []
        for _ in range(count):
            time.sleep(random.uniform(0, PAUSE))
            self.made.append(create(self._peers, took))
        times += [seconds * 1000 for seconds in took]


class Alternation:
    """The sweep, frozen and let go, and what the caller saw meanwhile."""

    def __init__(self, redis: Redis, observer: Observer, sizes: list[int], size_file: Path) -> None:
        self._redis, self._observer = redis, observer
        self._sizes, self._size_file = sizes, size_file
        self.times: dict[str, list[float]] = {LOOKING: [], QUIET: [], **{str(size): [] for size in sizes}}
        #: While which size's slices were let go, in seconds since 1970.
        self.turns: list[tuple[float, float, str]] = []

    def drive(self, request: str, caller: Caller, progress: Callable[[float], None], *, stale: int) -> dict[str, Any]:
        """Until the sweep is over; its report."""
        key, peers = names.result_key(request), names.peers_key(self._observer.name)
        at_first = self._left(peers, caller)
        while not self._redis.exists(key) and self._left(peers, caller) >= at_first:
            caller.create(1, self.times[LOOKING])
        while (stored := self._redis.get(key)) is None:
            self._frozen(caller)
            for size in random.sample(self._sizes, len(self._sizes)):
                self._going_on(key, size, caller)
            progress(1 - (self._left(peers, caller) - (at_first - stale)) / stale)
        return decode(str(stored))

    def _left(self, peers: str, caller: Caller) -> int:
        return int(self._redis.hlen(peers)) - len(caller.made)

    def _frozen(self, caller: Caller) -> None:
        self._observer.pause()
        try:
            time.sleep(SETTLE)
            caller.create(TURN, self.times[QUIET])
        finally:
            self._observer.resume()

    def _going_on(self, key: str, size: int, caller: Caller) -> None:
        new_file = self._size_file.with_suffix(".new")
        new_file.write_text(str(size))
        new_file.replace(self._size_file)  # whole: the observer may read it at any time
        began, times = time.time(), list[float]()
        caller.create(TURN, times)
        if not self._redis.exists(key):  # else it ended on the way
            self.times[str(size)] += times
            self.turns.append((began, time.time(), str(size)))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=50_000, help="on the gateway, nine of ten stale")
    parser.add_argument("--slices", default="", help="sizes of slices to change between; at most 64")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    with site("always") as bench:
        server, app = bench.server, bench.app
        gateway = bench.gateway(dataplane="kernel", interface="wgbench", **SETTINGS)
        size_file = bench.directory / "slice"
        sizes = [int(size) for size in chosen.slices.split(",")] if chosen.slices else [sweeping.SLICE]
        if chosen.slices:
            os.environ[SIZE_FILE] = str(size_file)
        size_file.write_text(str(sizes[0]))
        advance("making peers", 0.0)
        expected = crowd(server.redis, NAME, chosen.peers)
        advance("the writer's start", 0.05)
        watch = Stopwatch()
        gateway.start(wait=False)
        gateway.await_serving(within=300)
        start = watch.seconds
        caller = Caller(bench.client)
        application = "bench_sweep_observer" if chosen.slices else "peerlane.workers.observer"
        with ending(observer := Observer(gateway, wait=False, application=application)):
            # The sweep that it makes by itself at its start is refused: nine of ten are too many.
            eventually(lambda: observer.report("sweep"), "the observer's start", within=300)
            caller.create(20, [])  # connections, scripts
            request = names.request_id(NAME, "swept-by-the-way")
            app.send_task(names.SWEEP, kwargs={"gateway": NAME, "force": True}, task_id=request)
            turns = Alternation(server.redis, observer, sizes, size_file)
            report = turns.drive(
                request,
                caller,
                lambda share: advance("creates, with the sweep and without", 0.2 + 0.8 * share),
                stale=len(expected.stale),
            )
            left = {peer.public_key for peer in bench.client.peers()}
        removed = sum(report["removed"].values())
        exact = left == {*expected.staying, *caller.made}
        return {
            "peers": chosen.peers,
            "stale": len(expected.stale),
            "removed": removed,
            "sound": exact and removed == len(expected.stale),
            "start_s": round(start, 1),
            "sweep_s": report["seconds"],
            LOOKING: longest_too(turns.times[LOOKING]),
            QUIET: longest_too(turns.times[QUIET]),
            "slices": [of_size(str(size), turns, gateway.log) for size in sizes],
        }


def of_size(size: str, turns: Alternation, log: str) -> Figures:
    """What slices of one size cost the caller, and what the writer says of them."""
    mine = [turn for turn in turns.turns if turn[2] == size]
    seconds = sum(ended - began for began, ended, _ in mine)
    through = [took * 1000 for at, took in slices_through(log) if any(began <= at <= ended for began, ended, _ in mine)]
    quiet, busy = turns.times[QUIET], turns.times[size]
    return {
        "size": int(size),
        "creates": longest_too(busy),
        "p50_ratio": round(quantile(busy, 0.5) / quantile(quiet, 0.5), 2),
        "p99_ratio": round(quantile(busy, 0.99) / quantile(quiet, 0.99), 2),
        "seconds": round(seconds, 1),
        "slices_per_s": round(len(through) / seconds, 1),
        "writer": longest_too(through),
    }


def slices_through(log: str) -> list[tuple[float, float]]:
    """When the writer was through with each slice, in seconds since 1970, and the seconds it took."""
    return [
        (datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp(), float(took))
        for at, task, took in _THROUGH.findall(log)
        if task == "remove_peers"
    ]


def longest_too(times: list[float]) -> Figures:
    """In ms."""
    return spread(times, 50, 90, 99) | ({"max": round(max(times), 2)} if times else {})


def show(figures: Figures) -> Table:
    exactly = "exactly those" if figures["sound"] else "BUT NOT EXACTLY THOSE"
    table = Table(
        title=f"creates while {figures['stale']:,} of {figures['peers']:,} peers are swept, and with the sweep frozen",
        caption=f"{figures['removed']:,} removed, {exactly}, in {figures['sweep_s']:.0f} s with what it was frozen; "
        f"the writer's start took {figures['start_s']:.1f} s",
    )
    for column in ("", "times", "p50, ms", "p90", "p99", "longest", "p50 ratio", "p99 ratio", "per second"):
        table.add_column(column, justify="left" if not column else "right")
    rows: list[tuple[str, Figures, Figures]] = [
        ("creates, the sweep frozen", figures[QUIET], {}),
        ("creates, the observer decides", figures[LOOKING], {}),
    ]
    for measured in figures["slices"]:
        rows += [
            (f"creates, slices of {measured['size']}", measured["creates"], measured),
            (
                f"slices of {measured['size']} in the writer",
                measured["writer"],
                {"per_second": measured["slices_per_s"]},
            ),
        ]
    for title, times, more in rows:
        few = " (few)" if times["count"] < ENOUGH and "slices" not in title.split()[:1] else ""
        table.add_row(
            title,
            f"{times['count']:,}{few}",
            *(f"{times[at]:.1f}" if at in times else "" for at in ("p50", "p90", "p99", "max")),
            *(f"{more[at]:.2f}" if at in more else "" for at in ("p50_ratio", "p99_ratio")),
            f"{more['per_second']:.1f}" if "per_second" in more else "",
        )
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options, needs_kernel=True)

if __name__ == "__main__":
    sys.exit(run(BENCH))

"""What it costs that a confirmed peer is on the disk: creates under each way of Redis to sync its append-only file.

    python tests/bench/bench_durability.py [--requests N] [--directory DIR] [--json FILE]

The writer is a real process on the memory data plane; for the drain it is frozen while requests pile up. "Alone" is a
writer in this process, without the queue: what a commit costs. The last row has it wait for WAITAOF after each commit;
no setting does so, and docs/guarantees.md says why. The price is the disk's: name a directory on the one of Redis.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from bench_report import Advance, Bench, Figures, run
from bench_site import NAME, Site, site
from bench_timing import drain, quantiles, round_trips
from keys import some_key
from rich.table import Table
from servers import RedisServer
from writer_alone import WriterAlone

from peerlane.config import names
from peerlane.tasks.lane.tasks import task_of

MODES = {
    "no append-only file": ("no", "everysec"),
    "everysec": ("yes", "everysec"),
    "always": ("yes", "always"),
}

#: Creates of a writer alone.
ALONE = 200


def measured(bench: Site, requests: int) -> tuple[float, list[float]]:
    """Of a gateway on this server: creates per second, milliseconds of round trips."""
    gateway = bench.gateway(lane_cap=10 * requests)
    gateway.start()
    create = task_of(bench.app, names.CREATE_PEER)

    def send() -> Any:
        return create.apply_async(kwargs={"gateway": NAME, "public_key": some_key()}, expires=600)

    round_trips(send, 50)
    trips = round_trips(send, requests // 2)
    rate = drain(bench.server, gateway.pid, names.lane_queue(NAME), send, requests)
    gateway.finish()
    return rate, trips


def alone(server: RedisServer, directory: Path, requests: int, *, waitaof: bool = False) -> list[float]:
    """Milliseconds of creates of a writer in this process, without the queue."""
    bench = WriterAlone(server, directory)
    redis = bench.writer.store.redis
    redis.connection_pool.connection_kwargs["socket_timeout"] = 10
    ask: Any = cast("Any", redis).execute_command
    trips: list[float] = []
    try:
        for _ in range(requests):
            began = time.perf_counter()
            bench.create()
            if waitaof:
                synced, _ = ask("WAITAOF", 1, 0, 5000)
                assert synced == 1, "the file was not synced within five seconds"
            trips.append((time.perf_counter() - began) * 1000)
    finally:
        bench.close()
    return trips


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    modes: list[Figures] = []
    waited: Figures = {}
    for number, (name, (appendonly, appendfsync)) in enumerate(MODES.items()):
        advance(name, number / len(MODES))
        with site(appendfsync, parent=chosen.directory) as bench:
            server, directory = bench.server, bench.directory
            server.redis.config_set("appendonly", appendonly)
            rate, trips = measured(bench, chosen.requests)
            modes.append(
                {
                    "mode": name,
                    "creates_per_s": round(rate, 1),
                    **quantiles(trips, "round_trip_"),
                    **quantiles(alone(server, directory, ALONE), "alone_"),
                }
            )
            if name == "everysec":
                waited = quantiles(alone(server, directory, ALONE, waitaof=True), "alone_")
    return {"modes": [*modes, {"mode": "everysec, WAITAOF after each commit", **waited}]}


def show(figures: Figures) -> Table:
    table = Table(title="creates, by how Redis syncs its append-only file")
    for column in ("", "per second", "p50, ms", "p99, ms", "writer alone p50, ms", "p99, ms"):
        table.add_column(column, justify="left" if not column else "right")
    shown = ("round_trip_p50_ms", "round_trip_p99_ms", "alone_p50_ms", "alone_p99_ms")
    for mode in figures["modes"]:
        rate = f"{mode['creates_per_s']:,.0f}" if "creates_per_s" in mode else ""
        table.add_row(mode["mode"], rate, *(f"{mode[name]:.2f}" if name in mode else "" for name in shown))
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    sys.exit(run(BENCH))

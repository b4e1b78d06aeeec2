"""What it costs that a confirmed peer is on the disk: creates under each way of Redis to sync its append-only file.

    python tests/bench_durability.py [--requests N] [--directory DIR]

The writer is a real process on the memory data plane; for the drain it is frozen while requests pile up. "Alone" is a
writer in this process, without the queue: what a commit costs. The last row has it wait for WAITAOF after each commit;
no setting does so, and docs/guarantees.md says why. The price is the disk's: name a directory on the one of Redis.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from bench_flood import at
from bench_lane import drain, round_trips
from gateways import GatewayProcess, close
from keys import some_key
from rich.console import Console
from rich.table import Table
from servers import RedisServer
from test_writer import Bench

from config import names
from config.celery_app import PeerlaneApp
from config.settings import read
from tasks.definitions import task_of

NAME = "bench"
MODES = {
    "no append-only file": ("no", "everysec"),
    "everysec": ("yes", "everysec"),
    "always": ("yes", "always"),
}

#: Creates of a writer alone.
ALONE = 200
#: (creates per second, milliseconds of round trips, sorted)
Figures = tuple[float, list[float]]


def fresh_server(parent: Path, appendonly: str, appendfsync: str) -> RedisServer:
    """A server with these settings and nothing in it."""
    server = RedisServer(Path(tempfile.mkdtemp(prefix="redis-", dir=parent)))
    server.start()
    server.redis.config_set("appendfsync", appendfsync)
    server.redis.config_set("appendonly", appendonly)
    return server


def measured(server: RedisServer, directory: Path, requests: int) -> Figures:
    """A gateway's figures on this server."""
    gateway = GatewayProcess(NAME, server.url, directory, dataplane="memory", lane_cap=10 * requests)
    app = PeerlaneApp(read(redis_url=server.url))
    try:
        gateway.start()
        create = task_of(app, names.CREATE_PEER)

        def send() -> Any:
            return create.apply_async(kwargs={"gateway": NAME, "public_key": some_key()}, expires=600)

        round_trips(send, 50)
        trips = round_trips(send, requests // 2)
        return drain(server, gateway.pid, names.lane_queue(NAME), send, requests), trips
    finally:
        close(app)
        gateway.finish()


def alone(server: RedisServer, directory: Path, requests: int, *, waitaof: bool = False) -> list[float]:
    """Milliseconds of creates of a writer in this process, without the queue, sorted."""
    bench = Bench(server, directory)
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
    return sorted(trips)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="pl-", dir=chosen.directory))
    table = Table(title="creates, by how Redis syncs its append-only file", caption=f"in {chosen.directory}")
    for column in ("", "per second", "p50, ms", "p99, ms", "writer alone p50, ms", "p99, ms"):
        table.add_column(column, justify="left" if not column else "right")
    waited = ("", "")
    try:
        for name, (appendonly, appendfsync) in MODES.items():
            sys.stderr.write(f"{name} …\n")
            server = fresh_server(parent, appendonly, appendfsync)
            try:
                rate, trips = measured(server, parent, chosen.requests)
                own = alone(server, parent, ALONE)
                table.add_row(name, f"{rate:,.0f}", *_shown(trips), *_shown(own))
                if name == "everysec":
                    waited = _shown(alone(server, parent, ALONE, waitaof=True))
            finally:
                server.kill()
        table.add_row("everysec, WAITAOF after each commit", "", "", "", *waited)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    Console(width=120).print(table)


def _shown(trips: list[float]) -> tuple[str, str]:
    return f"{at(trips, 0.5):.2f}", f"{at(trips, 0.99):.2f}"


if __name__ == "__main__":
    main()

"""What it would cost to wait for a replica after each commit: one server pair, commits in turns with and without WAIT.

    python tests/bench/bench_wait.py [--commits N] [--directory DIR] [--json FILE]

A commit is a writer's own, without a queue: what a group of one costs. The replica is a process on this machine, so
its way over a network is not in it, and both sync to the same disk. No setting waits; docs/guarantees.md says why.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bench_report import Advance, Bench, Figures, quantile, run
from replicated import free_ports
from rich.table import Table
from servers import RedisServer
from waiting import eventually
from writer_alone import WriterAlone

#: Milliseconds after which a WAIT gives up.
PATIENCE = 1_000


def pair(parent: Path, fsync: str) -> tuple[RedisServer, RedisServer]:
    """A primary and its replica, in step."""
    (port,) = free_ports(1)
    directories = [Path(tempfile.mkdtemp(prefix="redis-", dir=parent)) for _ in range(2)]
    primary = RedisServer(directories[0], appendfsync=fsync, port=str(port))
    primary.start()
    replica = RedisServer(directories[1], appendfsync=fsync, replicaof=f"127.0.0.1 {port}")
    replica.start()
    eventually(
        lambda: cast("Any", replica.redis.info("replication"))["master_link_status"] == "up",
        "the replica following its primary",
        within=30,
    )
    return primary, replica


def commits(server: RedisServer, directory: Path, count: int, advance: Callable[[float], None]) -> Figures:
    """Milliseconds of commits without and with WAIT 1, in turns."""
    bench = WriterAlone(server, directory)
    redis: Any = bench.writer.store.redis
    redis.connection_pool.connection_kwargs["socket_timeout"] = 10
    took: dict[str, list[float]] = {"alone": [], "waited": []}
    in_vain = 0
    try:
        for number in range(2 * count):
            advance(number / 2 / count)
            began = time.perf_counter()
            bench.create()
            if number % 2:
                in_vain += redis.execute_command("WAIT", 1, PATIENCE) < 1
            took["waited" if number % 2 else "alone"].append((time.perf_counter() - began) * 1000)
    finally:
        bench.close()
    figures: Figures = {
        f"{name}_p{share}_ms": round(quantile(values, share / 100), 3)
        for name, values in took.items()
        for share in (50, 99)
    }
    return figures | {"ratio_p50": round(figures["waited_p50_ms"] / figures["alone_p50_ms"], 2), "in_vain": in_vain}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commits", type=int, default=120, help="with WAIT, and as many without")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    parent = Path(tempfile.mkdtemp(prefix="pl-", dir=chosen.directory))
    modes: list[Figures] = []
    try:
        for at, fsync in enumerate(("everysec", "always")):
            primary, replica = pair(parent, fsync)
            try:
                figures = commits(
                    primary, parent, chosen.commits, lambda share, at=at, name=fsync: advance(name, (at + share) / 2)
                )
                modes.append({"mode": fsync, **figures})
            finally:
                replica.kill()
                primary.kill()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    return {"modes": modes}


def show(figures: Figures) -> Table:
    table = Table(title="a commit without and with WAIT 1, beside a replica on this machine (ms)")
    for column in ("appendfsync of both", "p50", "p99", "with WAIT 1: p50", "p99", "ratio of p50", "in vain"):
        table.add_column(column, justify="left" if "append" in column else "right")
    for mode in figures["modes"]:
        values = [f"{mode[f'{name}_p{share}_ms']:.2f}" for name in ("alone", "waited") for share in (50, 99)]
        table.add_row(mode["mode"], *values, f"{mode['ratio_p50']:.2f}", str(mode["in_vain"]))
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    sys.exit(run(BENCH))

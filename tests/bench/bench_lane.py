"""What a whole durable create costs beside a Celery task that does nothing: same machine, same server, same run.

    make bench          or: python tests/bench/bench_lane.py [--requests N] [--rounds N] [--json FILE]

Both workers are real processes (pool solo, prefetch 1, acks late, events on as operators have them, for Flower). For
the drain the worker is frozen while requests pile up, and then let go; rounds alternate, medians are shown. Absolute
times are this machine's; the ratio is the point.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench_report import Advance, Bench, Figures, quantile, run
from gateways import ROOT, GatewayProcess, clean_environment, close
from keys import some_key
from rich.table import Table
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.lane.tasks import task_of

COMMAND = [sys.executable, "-m", "celery", "-A", "bench_stock_worker", "worker", "-l", "warning", "-Q", "stock"]


class Stock:
    """A stock Celery worker as a process of its own."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        os.environ |= {"STOCK_BROKER": f"redis+socket://{server.socket}", "STOCK_EVENTS": "1"}
        from bench_stock_worker import nothing  # noqa: PLC0415 - reads the environment when imported

        self.task: Any = nothing
        self._process = subprocess.Popen(
            [*COMMAND, "--without-gossip", "--without-mingle"],
            cwd=ROOT / "tests" / "bench",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.send().get(timeout=30)

    def send(self) -> Any:
        """One request."""
        return self.task.apply_async(kwargs={"gateway": "bench", "public_key": some_key()})

    def end(self) -> None:
        """Stop the worker."""
        self._process.terminate()
        self._process.wait(20)


def drain(server: RedisServer, pid: int, queue: str, send: Callable[[], Any], requests: int) -> float:
    """Requests per second of one worker that finds ``requests`` waiting."""
    os.kill(pid, signal.SIGSTOP)
    sent = [send() for _ in range(requests)]
    last = str(sent[-1].id)
    began = time.perf_counter()
    os.kill(pid, signal.SIGCONT)
    eventually(
        lambda: server.redis.llen(queue) == 0 and server.redis.exists(names.result_key(last)),
        "the queue being drained",
        within=300,
        every=0.005,
    )
    took = time.perf_counter() - began
    for result in sent:
        result.backend.remove_pending_result(result)
    return requests / took


def round_trips(send: Callable[[], Any], requests: int) -> list[float]:
    """Milliseconds of requests that are awaited one after the other, sorted."""
    times: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        send().get(timeout=30)
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=3000, help="requests of a drain")
    parser.add_argument("--rounds", type=int, default=3)


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    directory = Path(tempfile.mkdtemp(prefix="peerlane-bench-"))
    server = RedisServer(directory)
    server.start()
    server.redis.config_set("appendfsync", "everysec")
    gateway = GatewayProcess("bench", server.url, directory, dataplane="memory", lane_cap=10 * chosen.requests)
    stock = Stock(server)
    try:
        gateway.start()
        app = PeerlaneApp(read(redis_url=server.url))
        create = task_of(app, names.CREATE_PEER)

        def send() -> Any:
            return create.apply_async(kwargs={"gateway": "bench", "public_key": some_key()})

        rates: dict[str, list[float]] = {"stock": [], "create": []}
        trips: dict[str, list[float]] = {"stock": [], "create": []}
        kinds = {
            "stock": (stock.pid, "stock", stock.send),
            "create": (gateway.pid, names.lane_queue("bench"), send),
        }
        for number in range(chosen.rounds):
            for at, (kind, (pid, queue, ask)) in enumerate(kinds.items()):
                advance(f"round {number + 1}: drain, {kind}", (number + at / 4) / chosen.rounds)
                rates[kind].append(drain(server, pid, queue, ask, chosen.requests))
            for at, (kind, (_, _, ask)) in enumerate(kinds.items()):
                advance(f"round {number + 1}: round trips, {kind}", (number + 0.5 + at / 4) / chosen.rounds)
                trips[kind] += round_trips(ask, 500)
        close(app)
        return {
            kind: {
                "drains_per_s": round(median(rates[kind]), 1),
                "round_trip_p50_ms": round(quantile(trips[kind], 0.5), 3),
                "round_trip_p99_ms": round(quantile(trips[kind], 0.99), 3),
            }
            for kind in kinds
        }
    finally:
        stock.end()
        gateway.finish()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def show(figures: Figures) -> Table:
    table = Table(title="the writer on the memory data plane beside a no-op Celery task (medians)")
    for column in ("", "no-op task", "create", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    stock, create = figures["stock"], figures["create"]
    a, b = stock["drains_per_s"], create["drains_per_s"]
    table.add_row("drains, per second", f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.2f}")
    table.add_row("cost in the worker, µs", f"{1e6 / a:,.0f}", f"{1e6 / b:,.0f}", f"{a / b:.2f}")
    for title, name in (("round trip p50, ms", "round_trip_p50_ms"), ("round trip p99, ms", "round_trip_p99_ms")):
        table.add_row(title, f"{stock[name]:.2f}", f"{create[name]:.2f}", f"{create[name] / stock[name]:.2f}")
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    sys.exit(run(BENCH))

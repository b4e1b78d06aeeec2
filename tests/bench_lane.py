"""What a whole durable create costs beside a Celery task that does nothing: same machine, same server, same run.

    make bench          or: python tests/bench_lane.py [--requests N] [--rounds N]

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

from gateways import ROOT, GatewayProcess, clean_environment, close
from keys import some_key
from rich.console import Console
from rich.table import Table
from servers import RedisServer
from waiting import eventually

from config import names
from config.celery_app import PeerlaneApp
from config.settings import read
from tasks.definitions import task_of

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
            cwd=ROOT / "tests",
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
    found: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        send().get(timeout=30)
        found.append((time.perf_counter() - began) * 1000)
    return sorted(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
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
        for _ in range(chosen.rounds):
            rates["stock"].append(drain(server, stock.pid, "stock", stock.send, chosen.requests))
            rates["create"].append(drain(server, gateway.pid, names.lane_queue("bench"), send, chosen.requests))
            trips["stock"] += round_trips(stock.send, 500)
            trips["create"] += round_trips(send, 500)
        table = Table(title="the writer on the memory data plane beside a no-op Celery task (medians)")
        for column in ("", "no-op task", "create", "ratio"):
            table.add_column(column, justify="left" if not column else "right")
        a, b = median(rates["stock"]), median(rates["create"])
        table.add_row("drains, per second", f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.2f}")
        table.add_row("cost in the worker, µs", f"{1e6 / a:,.0f}", f"{1e6 / b:,.0f}", f"{a / b:.2f}")
        for title, share in (("round trip p50, ms", 0.5), ("round trip p99, ms", 0.99)):
            one, other = (sorted(trips[kind])[int(len(trips[kind]) * share)] for kind in ("stock", "create"))
            table.add_row(title, f"{one:.2f}", f"{other:.2f}", f"{other / one:.2f}")
        Console(width=100).print(table)
        close(app)
    finally:
        stock.end()
        gateway.finish()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

"""What a flood of bulk creates does to somebody who creates one peer now and then, on the same gateway.

    make bench          or: python tests/bench_flood.py [--flood N] [--samples N] [--always]

The gateway, the flood and the caller are processes of their own, the flood's results are nobody's. The caller asks five
times a second; the flood is sent again until the caller has been served often enough while it waited in the lane.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gateways import ROOT, GatewayProcess, clean_environment, close
from keys import some_key
from rich.console import Console
from rich.table import Table
from servers import RedisServer
from waiting import eventually

from config import names
from config.celery_app import PeerlaneApp
from config.settings import read
from tasks import Gateway
from tasks.definitions import task_of

NAME = "bench"
EVERY = 0.2


def flood(url: str, count: int) -> None:
    """Send so many bulk creates; nobody waits for them."""
    app = PeerlaneApp(read(redis_url=url))
    create = task_of(app, names.CREATE_PEER)
    for _ in range(count):
        create.apply_async(
            kwargs={"gateway": NAME, "public_key": some_key()}, expires=600, bulk=True, ignore_result=True
        )
    close(app)


def start_flood(url: str, count: int) -> subprocess.Popen[bytes]:
    """``flood`` in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--as-flood", url, "--flood", str(count)]
    return subprocess.Popen(command, cwd=ROOT, env=clean_environment() | {"PYTHONPATH": str(ROOT)})


def one_create(client: Gateway) -> float:
    """Milliseconds that one interactive create takes."""
    began = time.perf_counter()
    client.create_peer(some_key(), timeout=30)
    return (time.perf_counter() - began) * 1000


def at(sorted_times: list[float], share: float) -> float:
    """A quantile."""
    return sorted_times[min(len(sorted_times) - 1, int(len(sorted_times) * share))]


def calm(client: Gateway, samples: int) -> list[float]:
    """Creates on an idle gateway."""
    for _ in range(20):
        one_create(client)  # connections, scripts
    found: list[float] = []
    while len(found) < samples:
        found.append(one_create(client))
        time.sleep(EVERY)
    return sorted(found)


def flooded(gateway: GatewayProcess, client: Gateway, url: str, size: int, samples: int) -> tuple[list[float], str]:
    """Creates that were served while bulk creates were waiting, and what the floods were like."""
    found: list[float] = []
    floods, most = 0, 0
    while len(found) < samples:
        sender = start_flood(url, size)
        floods += 1
        eventually(lambda: gateway.look().waiting_bulk > 0, "the flood", within=30)
        while (lane := gateway.look()).waiting_bulk or sender.poll() is None:
            most = max(most, lane.waiting_bulk)
            took = one_create(client)
            if gateway.look().waiting_bulk:
                found.append(took)
            time.sleep(EVERY)
    return sorted(found), f"{floods} floods of {size:,}, up to {most:,} waiting"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flood", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--always", action="store_true", help="appendfsync always, instead of everysec")
    parser.add_argument("--as-flood", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_flood:
        flood(chosen.as_flood, chosen.flood)
        return
    directory = Path(tempfile.mkdtemp(prefix="peerlane-bench-"))
    server = RedisServer(directory)
    server.start()
    fsync = "always" if chosen.always else "everysec"
    server.redis.config_set("appendfsync", fsync)
    gateway = GatewayProcess(NAME, server.url, directory, dataplane="memory", pools="10.0.0.0/9,fd00:8::/64")
    app = PeerlaneApp(read(redis_url=server.url))
    client = Gateway(NAME, app=app)
    try:
        gateway.start()
        idle = calm(client, chosen.samples)
        busy, about = flooded(gateway, client, server.url, chosen.flood, chosen.samples)
        table = Table(title="interactive creates, five a second, beside floods of bulk creates")
        for column in ("", "idle", "in a flood", "ratio"):
            table.add_column(column, justify="left" if not column else "right")
        for name, share in (("p50, ms", 0.5), ("p99, ms", 0.99)):
            one, other = at(idle, share), at(busy, share)
            table.add_row(name, f"{one:.2f}", f"{other:.2f}", f"{other / one:.2f}")
        table.add_row("creates", str(len(idle)), str(len(busy)), "")
        table.caption = f"{about}; appendfsync {fsync}, memory data plane"
        Console(width=120).print(table)
    finally:
        close(app)
        gateway.finish()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

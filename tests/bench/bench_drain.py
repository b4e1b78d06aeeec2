"""How fast a writer works off what waits, beside a Celery task that does nothing: same machine, same server, same run.

    make bench     or: python tests/bench/bench_drain.py [--waiting N,N,…] [--requests N] [--everysec] [--json FILE]

Both workers are real processes (pool solo, prefetch 1, acks late, events on). Requests pile up elsewhere and are put on
the queue of a worker at once; the two alternate. CPU is the worker's own, from its process' times. Syncs are those of
Redis from that moment on, counted by strace where it is there and may look; they are counted apart from
the rates, which that would spoil. Absolute figures are this machine's; the ratios are the point.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench_report import Advance, Bench, Figures, run
from bench_site import NAME, site
from bench_timing import processor_seconds
from keys import some_key
from rich.table import Table
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.lane.request import admit, checked
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.psk_cipher import PskCipher

#: Where requests are kept until a worker may have them.
SPARE = "bench.spare"


@dataclass(frozen=True)
class Worker:
    """What is let go on a queue."""

    pid: int
    queue: str
    send: Callable[[], Any]


def drain(server: RedisServer, worker: Worker, waiting: int, before: Callable[[], None] = lambda: None) -> float:
    """Seconds in which a worker answers what waits. ``before`` is called once all of it is there."""
    last = [worker.send() for _ in range(waiting)][-1]
    os.kill(worker.pid, signal.SIGSTOP)
    before()
    server.redis.rename(SPARE, worker.queue)
    began = time.perf_counter()
    os.kill(worker.pid, signal.SIGCONT)
    eventually(
        lambda: server.redis.exists(names.result_key(str(last.id))),
        "the queue being drained",
        within=300,
        every=0.0005 if waiting < 100 else 0.005,
    )
    return time.perf_counter() - began


class Syncs:
    """Counts what Redis has the disk confirm, by strace."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self._pid = server.pid
        self._file = directory / "syncs"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Begin to count; nothing where there is no strace."""
        program = shutil.which("strace")
        if program is None:
            return
        self._file.write_text("")
        words = [program, "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", str(self._file), "-p", str(self._pid)]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self._attached() or self._ended(), "strace looking")

    def _attached(self) -> bool:
        return "TracerPid:\t0\n" not in Path(f"/proc/{self._pid}/status").read_text()

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def end(self) -> int | None:
        """The count; None where nobody could look."""
        if self._process is None or self._ended():
            return None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        self._process = None
        return sum("sync(" in line for line in self._file.read_text().splitlines())


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--waiting", default="1,8,32,256,2000", help="requests that wait, such as 1,8,32,256,2000")
    parser.add_argument("--requests", type=int, default=2000, help="requests of each kind for each number, about")
    parser.add_argument("--everysec", action="store_true", help="appendfsync everysec, instead of always")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    fsync = "everysec" if chosen.everysec else "always"
    with site(fsync) as bench:
        gateway = bench.gateway(lane_cap=1_000_000, pools="10.0.0.0/9,fd00:8::/64")
        gateway.loglevel = "warning"  # as the other
        server, app, stock = bench.server, bench.app, bench.stock()
        gateway.start()
        create = task_of(app, names.CREATE_PEER)

        def send() -> Any:
            wish = {"gateway": NAME, "public_key": some_key()}
            request = checked(create.name, create.model, wish, cipher=PskCipher, within=600)
            request.id = names.request_id(NAME, uuid.uuid4().hex)
            admit(lanes_of(app), request)
            request.queue = SPARE
            return create.publish(request)

        def send_nothing() -> Any:
            sent = stock.task.apply_async(kwargs={"gateway": NAME, "public_key": some_key()}, queue=SPARE)
            sent.backend.remove_pending_result(sent)
            return sent

        workers = {
            "stock": Worker(stock.pid, "stock", send_nothing),
            "create": Worker(gateway.pid, names.lane_queue(NAME), send),
        }
        for worker in workers.values():
            drain(server, worker, 64)
        counts = [int(count) for count in chosen.waiting.split(",")]
        points: list[Figures] = []
        for at, waiting in enumerate(counts):
            advance(f"{waiting:,} waiting", at / len(counts))
            points.append(
                _point(server, workers, waiting, max(2, min(30, chosen.requests // waiting)), bench.directory)
            )
        return {"about": f"appendfsync {fsync}, memory data plane, {os.cpu_count()} processors", "points": points}


def _point(server: RedisServer, workers: dict[str, Worker], waiting: int, rounds: int, directory: Path) -> Figures:
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    used: defaultdict[str, float] = defaultdict(float)
    for _ in range(rounds):
        for kind, worker in workers.items():
            before = processor_seconds(worker.pid)
            seconds[kind].append(drain(server, worker, waiting))
            used[kind] += processor_seconds(worker.pid) - before
    figures: Figures = {"waiting": waiting}
    for kind, worker in workers.items():
        syncs = Syncs(server, directory)
        drain(server, worker, waiting, syncs.begin)
        with suppress(subprocess.TimeoutExpired):
            count = syncs.end()
            figures |= {f"{kind}_syncs": None if count is None else round(count / waiting, 3)}
        figures |= {
            f"{kind}_per_s": round(waiting / median(seconds[kind]), 1),
            f"{kind}_cpu_us": round(used[kind] / (rounds * waiting) * 1e6),
        }
    figures["rate_ratio"] = round(figures["create_per_s"] / figures["stock_per_s"], 2)
    figures["cpu_ratio"] = round(figures["create_cpu_us"] / max(1, figures["stock_cpu_us"]), 2)
    return figures


def show(figures: Figures) -> Table:
    table = Table(title="a lane worked off, beside a no-op Celery task", caption=figures["about"])
    for column in (
        "waiting",
        "no-op/s",
        "creates/s",
        "ratio",
        "no-op CPU, µs",
        "create",
        "ratio",
        "no-op syncs",
        "create",
    ):
        table.add_column(column, justify="right")
    for point in figures["points"]:
        syncs = [point.get(f"{kind}_syncs") for kind in ("stock", "create")]
        table.add_row(
            f"{point['waiting']:,}",
            *(f"{point[name]:,.0f}" for name in ("stock_per_s", "create_per_s")),
            f"{point['rate_ratio']:.2f}",
            *(f"{point[name]:,}" for name in ("stock_cpu_us", "create_cpu_us")),
            f"{point['cpu_ratio']:.2f}",
            *("–" if count is None else f"{count:.2f}" for count in syncs),
        )
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    sys.exit(run(BENCH))

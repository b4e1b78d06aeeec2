"""What measuring costs a writer: drains with it and without it, in turn, on the same machine and server.

    make bench          or: python tests/bench/bench_measurements.py [--requests N] [--rounds N] [--json FILE]

Both writers are real processes on the memory data plane, and find the same number of creates waiting. What counts is
the processor's time in the writer's main thread, by the kernel, so that what else runs on the machine matters little;
medians are shown, and what one request costs to measure when nothing else is done. The ratio is the point.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench_report import Advance, Bench, Figures, run
from bench_site import program_environment, site
from bench_timing import drain
from keys import some_key
from rich.table import Table

from peerlane.config import names
from peerlane.tasks.lane.tasks import task_of
from peerlane.workers.request.request import Delivery, Measurements, Outcome, Request

KINDS = ("with", "without")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=4000, help="requests of a drain")
    parser.add_argument("--rounds", type=int, default=5)


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    cap = (chosen.rounds + 1) * chosen.requests
    os.environ["PYTHONPATH"] = program_environment()["PYTHONPATH"]  # where bench_unmeasured is
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with site("everysec") as bench:
        server, create = bench.server, task_of(bench.app, names.CREATE_PEER)
        writers = {kind: bench.gateway(f"bench-{kind}", lane_cap=cap, pools=("10.0.0.0/8",)) for kind in KINDS}
        writers["without"].program = ["-m", "celery", "-A", "bench_unmeasured", "worker", "-l"]
        for writer in writers.values():
            writer.start()
        for number in range(chosen.rounds):
            # Whoever goes first does so in every second round.
            for at, kind in enumerate(KINDS if number % 2 else KINDS[::-1]):
                advance(f"round {number + 1}: {kind}", (number + at / 2) / chosen.rounds)
                gateway = writers[kind].name
                facts = names.gateway_key(gateway)

                def send(gateway: str = gateway, facts: str = facts) -> Any:
                    # The writer is frozen meanwhile, and would count as gone after 5 s.
                    server.redis.hset(facts, "heartbeat", int(time.time() * 1000))
                    return create.apply_async(kwargs={"gateway": gateway, "public_key": some_key()}, expires=600)

                pid, before_drain = writers[kind].pid, processor_time(writers[kind].pid)
                rates[kind].append(drain(server, pid, names.lane_queue(gateway), send, chosen.requests))
                costs[kind].append((processor_time(pid) - before_drain) / chosen.requests)
        figures: Figures = {f"{kind}_per_s": round(median(rates[kind]), 1) for kind in KINDS}
        figures |= {f"{kind}_us": round(median(costs[kind]), 1) for kind in KINDS}
        figures["ratio"] = round(figures["with_us"] / figures["without_us"], 3)
        figures["us_a_request"] = round(alone(), 2)
        return figures


def processor_time(pid: int) -> float:
    """Microseconds that a process' main thread has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def alone(requests: int = 50_000) -> float:
    """Microseconds of measuring one request and nothing else."""
    measured, outcome = Measurements(), Outcome({"outcome": "created"})
    request = Request(names.CREATE_PEER, Delivery("bench.x", sent_at=1), {})
    began = time.perf_counter()
    for _ in range(requests):
        request.times.planned = time.monotonic()
        request.times.applied = time.monotonic()
        measured.answered(request, outcome, 2.0)
    return (time.perf_counter() - began) / requests * 1e6


def show(figures: Figures) -> Table:
    table = Table(title="a writer that measures its requests beside one that does not (medians)")
    for column in ("", "without", "with", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for title, unit, digits in (("processor time a request, µs", "us", 1), ("drains, per second", "per_s", 0)):
        without, measured = figures[f"without_{unit}"], figures[f"with_{unit}"]
        table.add_row(title, f"{without:,.{digits}f}", f"{measured:,.{digits}f}", f"{measured / without:.3f}")
    table.add_row("measuring alone, µs a request", "", f"{figures['us_a_request']:.2f}", "")
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    sys.exit(run(BENCH))

"""What a whole durable create costs beside a Celery task that does nothing: same machine, same server, same run.

    make bench          or: python tests/bench/bench_lane.py [--requests N] [--rounds N] [--json FILE]

Both workers are real processes (pool solo, prefetch 1, acks late, events on as operators have them, for Flower). For
the drain the worker is frozen while requests pile up, and then let go; rounds alternate, medians are shown. Absolute
times are this machine's; the ratio is the point.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

from bench_report import Advance, Bench, Figures, run
from bench_site import NAME, site
from bench_timing import drain, quantiles, round_trips
from keys import some_key
from rich.table import Table

from peerlane.config import names
from peerlane.tasks.lane.tasks import task_of


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=3000, help="requests of a drain")
    parser.add_argument("--rounds", type=int, default=3)


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    with site("everysec") as bench:
        gateway = bench.gateway(lane_cap=10 * chosen.requests)
        stock = bench.stock()
        gateway.start()
        create = task_of(bench.app, names.CREATE_PEER)

        def send() -> Any:
            return create.apply_async(kwargs={"gateway": NAME, "public_key": some_key()})

        rates: dict[str, list[float]] = {"stock": [], "create": []}
        trips: dict[str, list[float]] = {"stock": [], "create": []}
        kinds = {
            "stock": (stock.pid, "stock", stock.send),
            "create": (gateway.pid, names.lane_queue(NAME), send),
        }
        for number in range(chosen.rounds):
            for at, (kind, (pid, queue, ask)) in enumerate(kinds.items()):
                advance(f"round {number + 1}: drain, {kind}", (number + at / 4) / chosen.rounds)
                rates[kind].append(drain(bench.server, pid, queue, ask, chosen.requests))
            for at, (kind, (_, _, ask)) in enumerate(kinds.items()):
                advance(f"round {number + 1}: round trips, {kind}", (number + 0.5 + at / 4) / chosen.rounds)
                trips[kind] += round_trips(ask, 500)
        return {
            kind: {"drains_per_s": round(median(rates[kind]), 1), **quantiles(trips[kind], "round_trip_")}
            for kind in kinds
        }


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

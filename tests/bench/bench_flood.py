"""What a flood of bulk creates does to somebody who creates one peer now and then, on the same gateway.

    make bench          or: python tests/bench/bench_flood.py [--flood N] [--samples N] [--always] [--json FILE]

The gateway, the flood and the caller are processes of their own, the flood's results are nobody's. The caller asks five
times a second; the flood is sent again until the caller has been served often enough while it waited in the lane.
"""

from __future__ import annotations

import argparse
import sys
import time

from bench_report import Advance, Bench, Figures, run
from bench_site import NAME, site, start_program
from bench_timing import one_create, quantiles
from gateways import GatewayProcess, close
from keys import some_key
from rich.table import Table
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.lane.tasks import task_of

EVERY = 0.2
#: Runs this file as one that sends a flood.
SENDER = "--as-flood"


def flood(url: str, count: int) -> None:
    """Send so many bulk creates; nobody waits for them."""
    app = PeerlaneApp(read(redis_url=url))
    create = task_of(app, names.CREATE_PEER)
    for _ in range(count):
        create.apply_async(
            kwargs={"gateway": NAME, "public_key": some_key()}, expires=600, bulk=True, ignore_result=True
        )
    close(app)


def calm(client: Gateway, samples: int, advance: Advance) -> list[float]:
    """Creates on an idle gateway."""
    for _ in range(20):
        one_create(client)  # connections, scripts
    seconds: list[float] = []
    while len(seconds) < samples:
        advance("creates on an idle gateway", len(seconds) / samples / 2)
        seconds.append(one_create(client))
        time.sleep(EVERY)
    return seconds


def flooded(
    gateway: GatewayProcess, client: Gateway, url: str, chosen: argparse.Namespace, advance: Advance
) -> tuple[list[float], str]:
    """Creates that were served while bulk creates were waiting, and what the floods were like."""
    seconds: list[float] = []
    floods, most = 0, 0
    while len(seconds) < chosen.samples:
        sender = start_program(__file__, SENDER, url, str(chosen.flood))
        floods += 1
        eventually(lambda: gateway.look().waiting_bulk > 0, "the flood")
        while (lane := gateway.look()).waiting_bulk or sender.poll() is None:
            most = max(most, lane.waiting_bulk)
            took = one_create(client)
            if gateway.look().waiting_bulk:
                seconds.append(took)
            advance("creates in a flood", 0.5 + min(1.0, len(seconds) / chosen.samples) / 2)
            time.sleep(EVERY)
    return seconds, f"{floods} floods of {chosen.flood:,}, up to {most:,} waiting"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flood", type=int, default=5000, help="bulk creates of one flood")
    parser.add_argument("--samples", type=int, default=100, help="creates of the caller, idle and in a flood")
    parser.add_argument("--always", action="store_true", help="appendfsync always, instead of everysec")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    fsync = "always" if chosen.always else "everysec"
    with site(fsync) as bench:
        gateway, client = bench.gateway(pools="10.0.0.0/9,fd00:8::/64"), bench.client
        gateway.start()
        idle = calm(client, chosen.samples, advance)
        busy, floods = flooded(gateway, client, bench.server.url, chosen, advance)
        shown = {
            kind: {"creates": len(times), **quantiles(times)} for kind, times in (("idle", idle), ("flooded", busy))
        }
        return {**shown, "about": f"{floods}; appendfsync {fsync}, memory data plane"}


def show(figures: Figures) -> Table:
    table = Table(title="interactive creates, five a second, beside floods of bulk creates", caption=figures["about"])
    for column in ("", "idle", "in a flood", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    idle, busy = figures["idle"], figures["flooded"]
    for title, name in (("p50, ms", "p50_ms"), ("p99, ms", "p99_ms")):
        table.add_row(title, f"{idle[name]:.2f}", f"{busy[name]:.2f}", f"{busy[name] / idle[name]:.2f}")
    table.add_row("creates", str(idle["creates"]), str(busy["creates"]), "")
    return table


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options)

if __name__ == "__main__":
    if sys.argv[1:2] == [SENDER]:
        flood(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(run(BENCH))

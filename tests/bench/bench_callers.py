"""What callers get from one lane, few and many, beside a no-op Celery task in the same run.

    make bench          or: python tests/bench/bench_callers.py [--seconds S] [--json FILE] [--svg FILE]

Goodput is creates answered in time: so many asyncio callers ask in a closed loop with a timeout, and who is refused
asks again when it was told to. Clients, writers and server are processes of their own; fsync is always, the data plane
in memory. Absolute figures are this machine's; the ratios are the point.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, cast

from bench_callers_client import WARM_UP, Load
from bench_goodput_plot import plot_goodput
from bench_raw_client import RawLoad
from bench_report import Advance, Bench, Figures, run
from bench_site import Stock, program_environment, site
from bench_timing import processor_seconds
from gateways import ROOT
from observers import Process
from rich.table import Table
from servers import RedisServer

#: Callers and their timeout, in the order in which they are measured.
GOODPUT = ((8, 1.0), (40, 1.0), (300, 1.0), (1_000, 2.0))
#: Kind of client and number of callers, each for Peerlane and for the no-op task.
PAIRS = {
    "1 caller": (1, "threads", "stock"),
    "32 threads": (32, "threads", "stock"),
    "1,000": (1_000, "asyncio", "window"),
}
#: Rounds of each pair, alternately: medians are told.
ROUNDS = 2
CLIENT = ROOT / "tests" / "bench" / "bench_callers_client.py"
RAW_CLIENT = CLIENT.with_name("bench_raw_client.py")
#: Callers that are admitted by nobody, and their timeout: more than one lane can do. One request in twenty is a delete.
RAW = ((1_000, 0.5), (2_000, 1.0))
RAW_DELETES = 0.05
#: Seconds beyond those of a load in which its client process ends.
SLACK = 180
#: Seconds for which an idle gateway is watched.
IDLE = 10.0


def client(load: Load | RawLoad, program: Path = CLIENT) -> dict[str, Any]:
    """Have a client process ask; its figures."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), json.dumps(asdict(load))],
        cwd=CLIENT.parent,
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=load.seconds + SLACK,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"a client ended with status {result.returncode}: {result.stderr[-2000:]}")
    return cast("dict[str, Any]", json.loads(result.stdout.splitlines()[-1]))


@contextmanager
def syncs(pid: int, directory: Path) -> Generator[dict[str, int]]:
    """Count a process' syncs of files, as ``calls``; where there is no perf, or it may not count them, nothing."""
    counted: dict[str, int] = {}
    program = shutil.which("perf")
    if program is None:
        yield counted
        return
    output = directory / "syncs"
    events = "syscalls:sys_enter_fdatasync,syscalls:sys_enter_fsync"
    words = [program, "stat", "-x", ",", "-e", events, "-o", str(output), "-p", str(pid)]
    none = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=none, stdout=none, stderr=none) as watching:
        try:
            yield counted
        finally:
            watching.send_signal(signal.SIGINT)
            watching.wait(20)
    lines = output.read_text().splitlines() if output.exists() else []
    calls = [int(line.split(",")[0]) for line in lines if re.match(r"[0-9]+,", line)]
    if calls:
        counted["calls"] = sum(calls)


def idle(server: RedisServer, settings: dict[str, Any], directory: Path) -> dict[str, float]:
    """Commands a second and connections of a gateway with its observer to which nobody turns."""
    observer = Process(["-A", "peerlane.workers.observer", "worker"], directory / "observer.log", settings)
    try:
        observer.says("ready.", within=60)
        time.sleep(2.0)  # what a start does is over
        info = server.redis.info("all")
        before, began = info["total_commands_processed"], time.monotonic()
        time.sleep(IDLE)
        info = server.redis.info("all")
        return {
            # One of the commands is the bench's own, and two of the connections: it has looked at the lane.
            "commands_per_s": round((info["total_commands_processed"] - before - 1) / (time.monotonic() - began), 1),
            "connections": info["connected_clients"] - 2,
        }
    finally:
        observer.stop()


def ratio(value: float, other: float) -> float:
    """Of two figures; infinite where the second is nothing."""
    return round(value / other, 3) if other else float("inf")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=4.0, help="of one figure")
    parser.add_argument("--goodput", action="store_true", help="nothing but goodput, which is what is drawn")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw goodput over the number of callers")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    with site("always") as bench:
        gateway = bench.gateway(pools="10.0.0.0/9,fd00:8::/64", lane_cap=1_000_000, max_peers=1_048_576)
        gateway.loglevel = "warning"
        stock: Stock | None = None
        steps = (0 if chosen.goodput else 2 * ROUNDS * len(PAIRS) + 1) + len(GOODPUT) + len(RAW)
        done = 0

        def asked(kind: str, callers: int, timeout: float = 60.0) -> dict[str, Any]:
            nonlocal done
            advance(f"{callers:,} callers, {kind}", done / steps)
            done += 1
            pid = stock.pid if stock is not None and kind in {noop for _, _, noop in PAIRS.values()} else gateway.pid
            before = processor_seconds(pid)
            report = client(Load(kind, bench.server.url, callers, chosen.seconds, timeout))
            return report | {
                "writer_us": round((processor_seconds(pid) - before) / max(report["done"] + WARM_UP, 1) * 1e6, 1)
            }

        gateway.start()
        figures: Figures = {"pairs": {}, "syncs_per_create": {}, "idle": {}}
        if not chosen.goodput:
            advance("an idle gateway", done / steps)
            figures["idle"] = idle(bench.server, gateway.settings, bench.directory)
            done += 1
            stock = bench.stock()
        for name, (callers, kind, noop) in () if chosen.goodput else PAIRS.items():
            rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
            for _ in range(ROUNDS):
                beside = asked(noop, callers)
                with syncs(bench.server.pid, bench.directory) as counted:
                    rounds.append((beside, asked(kind, callers)))
                if callers > 1:
                    created = rounds[-1][1]["done"]
                    per_create = ratio(counted["calls"], created) if "calls" in counted else None
                    figures["syncs_per_create"][str(callers)] = per_create
            figures["pairs"][name] = {
                which: {field: median(each[at][field] for each in rounds) for _, field in _ROWS}
                for at, which in enumerate(("noop", "create"))
            }
        if stock is not None:
            stock.end()
        goodput = [{"callers": n, "timeout_s": timeout, **asked("asyncio", n, timeout)} for n, timeout in GOODPUT]
        best = max(point["per_s"] for point in goodput[:2])
        raw: list[dict[str, Any]] = []
        for callers, timeout in RAW:
            advance(f"{callers:,} callers that nobody admits", done / steps)
            done += 1
            load = RawLoad(bench.server.url, callers, chosen.seconds, timeout, RAW_DELETES)
            raw.append({"callers": callers, "timeout_s": timeout, **client(load, RAW_CLIENT)})
        figures["raw"] = [{**point, "of_best": ratio(point["per_s"], best)} for point in raw]
        figures["goodput"] = [{**point, "of_best": ratio(point["per_s"], best)} for point in goodput]
        figures["about"] = "fsync always, memory data plane, one writer"
        return figures


def show(figures: Figures) -> Table:
    table = Table(title="callers of one lane beside a no-op Celery task", caption=figures["about"])
    for column in ("", "no-op task", "create", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, pair in figures["pairs"].items():
        for title, field in _ROWS:
            noop, create = pair["noop"][field], pair["create"][field]
            table.add_row(f"{name}: {title}", f"{noop:,.2f}", f"{create:,.2f}", f"{ratio(create, noop):.2f}")
    for point in figures["goodput"]:
        failed = ", ".join(f"{count:,} {name}" for name, count in point["errors"].items())
        name = f"in time, {point['callers']:,} callers × {point['timeout_s']:g} s, per second"
        table.add_row(
            name + (f" ({failed})" if failed else ""), "", f"{point['per_s']:,.0f}", f"{point['of_best']:.2f}"
        )
    for point in figures["raw"]:
        name = f"in time, {point['callers']:,} × {point['timeout_s']:g} s, admitted by nobody, per second"
        late = f" (asked {point['offered_per_s']:,.0f}, deletes late: {point['delete_peer']['late']})"
        table.add_row(name + late, "", f"{point['per_s']:,.0f}", f"{point['of_best']:.2f}")
    for callers, count in figures["syncs_per_create"].items():
        table.add_row(
            f"syncs per create, {int(callers):,} callers", "", "no perf" if count is None else f"{count:.2f}", ""
        )
    if not figures["idle"]:
        return table
    table.add_row("idle, with its observer: commands a second", "", f"{figures['idle']['commands_per_s']:.1f}", "")
    table.add_row("idle, with its observer: connections", "", f"{figures['idle']['connections']:.0f}", "")
    return table


_ROWS: Iterable[tuple[str, str]] = (
    ("per second", "per_s"),
    ("p50, ms", "p50_ms"),
    ("p99, ms", "p99_ms"),
    ("client's CPU, µs", "client_us"),
    ("writer's CPU, µs", "writer_us"),
)


def keep(chosen: argparse.Namespace, figures: Figures) -> None:
    if chosen.svg is not None:
        chosen.svg.write_text(plot_goodput(figures), encoding="utf-8")


BENCH = Bench(script=__file__, about=__doc__ or "", measure=measure, show=show, options=options, keep=keep)

if __name__ == "__main__":
    sys.exit(run(BENCH))
